"""Heat maps of probabilities as inline SVG: tables and strips over time.

Colours are CSS classes of the page, so that the maps follow its light and dark setting.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyfast_nas.viz.chart import svg, text_at
from pyfast_nas.viz.markup import attributes, escape
from pyfast_nas.viz.units import number

__all__ = ["LEVELS", "Scale", "heat_map", "heat_strip"]

LEVELS = 8  # shades on either side of the neutral one
MOST_COLUMNS = 80  # epochs drawn in a strip; of more, evenly spaced ones


@dataclass(frozen=True)
class Scale:
    """Colours of a heat map: how far the probabilities of a picture go from an even choice.

    The two sides have ends of their own, since losers fall further than winners can rise.

    Attributes:
        up: Largest ``log(p * candidates)``.
        down: Largest ``-log(p * candidates)``.
    """

    up: float
    down: float

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> "Scale":
        """Return the scale that just holds some rows of probabilities.

        Example:
            >>> Scale.of([[0.5, 0.25, 0.25, 0.0]]).up == math.log(2)
            True
        """
        logs = [
            math.log(max(value * len(row), 1e-2))
            for row in rows
            for value in row
            if math.isfinite(value)
        ]
        return cls(max(logs, default=0.0), -min(logs, default=0.0))

    def level(self, value: float, candidates: int) -> str:
        """CSS class of a cell: ``h0`` is even, ``u1`` to ``u8`` above, ``d1`` to ``d8`` below.

        Example:
            >>> scale = Scale(up=1.0, down=1.0)
            >>> scale.level(0.25, 4), scale.level(1.0, 4)
            ('h0', 'u8')
        """
        if not math.isfinite(value):
            return "h0"
        log = math.log(max(value * candidates, 1e-2))
        end = self.up if log > 0 else self.down
        step = min(LEVELS, round(abs(log) / end * LEVELS)) if end > 0 else 0
        return f"{'u' if log > 0 else 'd'}{step}" if step else "h0"


def heat_map(
    rows: Sequence[Sequence[float]],
    *,
    row_names: Sequence[str],
    column_names: Sequence[Sequence[str]],
    chosen: Sequence[int | None],
    scale: Scale,
    title: str,
) -> str:
    """Draw one table of probabilities: a row per edge, a column per candidate.

    Args:
        rows: Probabilities, each row summing to one; a missing candidate is 0.
        row_names: Names of the edges.
        column_names: Candidate names of each row.
        chosen: Candidate that the genotype keeps on each row, ``None`` for a dropped edge.
        scale: Colours.
        title: What the picture shows, for screen readers.

    Example:
        >>> picture = heat_map([[0.7, 0.3]], row_names=["a"], column_names=[["skip", "conv"]],
        ...                    chosen=[0], scale=Scale(1, 1), title="alphas")
        >>> picture.count("<rect")
        3
    """
    same = all(tuple(names) == tuple(column_names[0]) for names in column_names)
    columns = max(len(row) for row in rows)
    wide, tall, left = 47.0, 21.0, 92.0
    shares = [value for row in rows for value in row if math.isfinite(value)]
    # At the start of a search all shares agree in three digits.
    digits = 4 if shares and max(shares) - min(shares) < 0.01 else 3
    up = 84.0 if same else 10.0
    parts = []
    for column in range(columns if same else 0):
        x = left + wide * (column + 0.5)
        turn = f' transform="rotate(-38 {number(x)} {number(up - 8)})"'
        parts.append(text_at(x, up - 8, column_names[0][column], "start", turn))
    boxes = []
    for index, row in enumerate(rows):
        y = up + tall * index
        kept = chosen[index] is not None
        style = ' class="kept"' if kept else ""
        parts.append(text_at(left - 8, y + 15, row_names[index], "end", style))
        best = max(row)
        for column, value in enumerate(row[: len(column_names[index])]):
            x, level = left + wide * column, scale.level(value, len(column_names[index]))
            name = column_names[index][column]
            label = f"{row_names[index]}, {name}: {value:.4f}"
            weight = " lead" if value == best else ""
            strong = " strong" if int(level[1:]) > 5 else ""
            parts.append(
                f'<g><title>{escape(label)}</title><rect class="{level}" x="{number(x + 0.5)}" '
                f'y="{number(y + 0.5)}" width="{number(wide - 1)}" height="{number(tall - 1)}"/>'
                f'<text class="cell{weight}{strong}" x="{number(x + wide / 2)}" '
                f'y="{number(y + 15)}">{_share(value, digits)}</text></g>'
            )
            if column == chosen[index]:
                boxes.append(
                    f'<rect class="chosen" x="{number(x + 1)}" y="{number(y + 1)}" '
                    f'width="{number(wide - 2)}" height="{number(tall - 2)}" rx="2"/>'
                )
    width = left + wide * columns + (56 if same else 10)
    height = up + tall * len(rows) + 6
    return svg(width, height, title, parts + boxes, narrowest=0.82 * width)


def heat_strip(
    epochs: Sequence[int],
    rows: Sequence[Sequence[float]],
    *,
    scale: Scale,
    title: str,
) -> str:
    """Draw how the probabilities of one edge went: epochs to the right, candidates downwards.

    Cells of one shade are one path, so that fifty epochs of many edges stay a small page.

    Args:
        epochs: The recorded epochs, ascending.
        rows: For each epoch the probabilities of the candidates.
        scale: Colours.
        title: What the picture shows, for screen readers and as a tooltip.

    Example:
        >>> strip = heat_strip([0, 1], [[0.5, 0.5], [0.9, 0.1]], scale=Scale(1, 1), title="a")
        >>> strip.count("<path")
        3
    """
    picked = _evenly(len(epochs), MOST_COLUMNS)
    candidates = len(rows[0])
    paths: dict[str, list[str]] = {}
    for column, index in enumerate(picked):
        run_start, run_level = 0, ""
        levels = [scale.level(value, candidates) for value in rows[index]]
        for place, level in enumerate([*levels, ""]):
            if level != run_level:
                if run_level:
                    height = place - run_start
                    paths.setdefault(run_level, []).append(f"M{column} {run_start}h1v{height}h-1z")
                run_start, run_level = place, level
    body = [f'<path class="{level}" d="{"".join(paths[level])}"/>' for level in sorted(paths)]
    head = attributes(
        {
            "class": "strip",
            "viewBox": f"0 0 {len(picked)} {candidates}",
            "preserveAspectRatio": "none",
            "role": "img",
            "aria-label": title,
            "shape-rendering": "crispEdges",
        }
    )
    return f"<svg{head}><title>{escape(title)}</title>{''.join(body)}</svg>"


def _share(value: float, digits: int) -> str:
    """Write a probability in a narrow cell: without the zero in front of the point."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0") else text[:4]


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
