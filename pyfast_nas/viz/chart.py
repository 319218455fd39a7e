"""Small charts as inline SVG for the report page: lines, dots with spread, heat maps.

Colours are CSS variables of the page, so the charts follow its light and dark setting.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyfast_nas.viz.markup import attributes, escape, number, percent

__all__ = ["LEVELS", "Group", "Line", "Scale", "dot_plot", "heat_map", "heat_strip", "line_chart"]

LEVELS = 8  # shades on either side of the neutral one
_VALUE = ' class="value"'
MOST_COLUMNS = 80  # epochs drawn in a strip; of more, evenly spaced ones


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a line chart."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0  # number of the CSS variable --line-N
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """One row of a dot plot."""

    name: str
    values: Sequence[float]
    colour: int = 0
    labels: Sequence[str] = field(default_factory=tuple)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: Literal["", "%"] = "",
    bottom: float | None = None,
    top: float | None = None,
    whole: bool = False,
) -> str:
    """Draw curves over epochs with axes, names at the line ends and the last values.

    Args:
        lines: The curves; those without points are left out.
        title: What the picture shows, for screen readers.
        unit: ``"%"`` for shares, which are written as per cent.
        bottom: The axis reaches at least down to here.
        top: The axis reaches at least up to here.
        whole: Whether the values are counts, so that the axis carries whole numbers only.

    Returns:
        An ``svg`` element, or an empty text when there is nothing to draw.

    Example:
        >>> line_chart([Line(name="train", points=[(1, 2.0), (2, 1.5)])], title="loss")[:4]
        '<svg'
        >>> line_chart([], title="loss")
        ''
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _y in line.points]
    ys = [y for line in lines for _x, y in line.points]
    low = min(ys) if bottom is None else min(bottom, *ys)
    high = max(ys) if top is None else max(top, *ys)
    ticks = _ticks(low, high, whole)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(xs)
    left, right, up, down = 52.0, 344.0, 12.0, 168.0

    def shown(value: float) -> str:
        return percent(value) if unit == "%" else number(value, 4 if abs(value) < 1 else 3)

    def across(x: float) -> float:
        return left + (right - left) * ((x - first) / (last - first) if last > first else 0.5)

    def upward(y: float) -> float:
        return down - (down - up) * ((y - low) / (high - low) if high > low else 0.5)

    parts = []
    for tick in ticks:
        y = number(upward(tick))
        parts.append(f'<path class="grid" d="M{number(left)} {y}H{number(right)}"/>')
        parts.append(_text(left - 6, upward(tick) + 4, _tick_label(tick, ticks, unit), "end"))
    for tick in _whole_ticks(first, last):
        parts.append(_text(across(tick), down + 17, number(tick), "middle"))
    parts.append(_text((left + right) / 2, down + 33, "epoch", "middle"))
    ends = _spread([upward(line.points[-1][1]) for line in lines], up + 4, down, 27.0)
    for line, end in zip(lines, ends, strict=True):
        path = "L".join(f"{number(across(x))} {number(upward(y))}" for x, y in line.points)
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        colour = f"var(--line-{line.colour})"
        x, y = line.points[-1]
        parts.append(f'<path class="line" stroke="{colour}"{dash} d="M{path}"/>')
        for x, y in line.points if len(line.points) <= 30 else line.points[-1:]:
            label = f"{line.name}, epoch {number(x)}: {shown(y)}"
            parts.append(
                f'<circle cx="{number(across(x))}" cy="{number(upward(y))}" r="2.4" '
                f'fill="{colour}"><title>{escape(label)}</title></circle>'
            )
        parts.append(_text(right + 10, end, line.name, "start", f' style="fill:{colour}"'))
        parts.append(_text(right + 10, end + 13, shown(y), "start", _VALUE))
    return _svg(430, 206, title, parts)


def dot_plot(groups: Sequence[Group], *, title: str) -> str:
    """Draw each share as a dot, each group on a row of its own with mean and spread.

    The bar reaches one sample standard deviation to either side of the mean; a group of one value
    has none.

    Args:
        groups: Rows from top to bottom; those without values are left out.
        title: What the picture shows, for screen readers.

    Returns:
        An ``svg`` element, or an empty text when there is nothing to draw.

    Example:
        >>> dot_plot([Group(name="random", values=[0.91, 0.93])], title="accuracy")[:4]
        '<svg'
    """
    groups = [group for group in groups if group.values]
    if not groups:
        return ""
    reach = []
    for group in groups:
        mean, spread = _mean(group.values), _deviation(group.values) or 0.0
        reach += [*group.values, mean - spread, mean + spread]
    ticks = _ticks(min(reach), max(reach), False)
    low, high = min(ticks[0], *reach), max(ticks[-1], *reach)
    left, right, row = 78.0, 446.0, 58.0
    bottom = 14 + row * len(groups)

    def across(x: float) -> float:
        return left + (right - left) * ((x - low) / (high - low) if high > low else 0.5)

    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{number(across(tick))} 10V{number(bottom)}"/>')
        parts.append(_text(across(tick), bottom + 18, _tick_label(tick, ticks, "%"), "middle"))
    for place, group in enumerate(groups):
        y = 14 + row * (place + 0.5)
        mean, spread = _mean(group.values), _deviation(group.values)
        colour = f"var(--line-{group.colour})"
        parts.append(_text(left - 12, y + 4, group.name, "end", f' style="fill:{colour}"'))
        if spread:
            start, end = number(across(mean - spread)), number(across(mean + spread))
            parts.append(
                f'<path class="spread" stroke="{colour}" d="M{start} {number(y)}H{end}"><title>'
                f"mean {escape(percent(mean))}, standard deviation {escape(percent(spread))}"
                "</title></path>"
            )
        x = number(across(mean))
        parts.append(f'<path class="mean" stroke="{colour}" d="M{x} {number(y - 15)}v30"/>')
        parts.append(
            _text(across(mean), y - 19, f"mean {percent(mean)}", "middle", ' class="value"')
        )
        heights = _stack([across(value) for value in group.values])
        for index, (value, lift) in enumerate(zip(group.values, heights, strict=True)):
            label = group.labels[index] if index < len(group.labels) else group.name
            parts.append(
                f'<circle class="dot" cx="{number(across(value))}" cy="{number(y + lift)}" r="5" '
                f'fill="{colour}"><title>{escape(label)}: {escape(percent(value))}</title></circle>'
            )
    return _svg(480, bottom + 28, title, parts)


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
    up = 84.0 if same else 10.0
    parts = []
    for column in range(columns if same else 0):
        x = left + wide * (column + 0.5)
        turn = f' transform="rotate(-38 {number(x)} {number(up - 8)})"'
        parts.append(_text(x, up - 8, column_names[0][column], "start", turn))
    boxes = []
    for index, row in enumerate(rows):
        y = up + tall * index
        kept = chosen[index] is not None
        style = ' class="kept"' if kept else ""
        parts.append(_text(left - 8, y + 15, row_names[index], "end", style))
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
                f'y="{number(y + 15)}">{_share(value)}</text></g>'
            )
            if column == chosen[index]:
                boxes.append(
                    f'<rect class="chosen" x="{number(x + 1)}" y="{number(y + 1)}" '
                    f'width="{number(wide - 2)}" height="{number(tall - 2)}" rx="2"/>'
                )
    width = left + wide * columns + (56 if same else 10)
    return _svg(width, up + tall * len(rows) + 6, title, parts + boxes)


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


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = attributes(
        {
            "class": "chart",
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": title,
        }
    )
    return f"<svg{head}>{''.join(parts)}</svg>"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
    return f"<text {place}{more}>{escape(text)}</text>"


def _share(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return "1.00" if value >= 0.995 else f"{value:.3f}"[1:] if value < 0.9995 else "1.00"


def _ticks(low: float, high: float, whole: bool, most: int = 5) -> list[float]:
    """At most ``most`` round numbers that span the values."""
    span = high - low
    if span <= 0:
        span = max(abs(high) * 0.1, 1e-6)
        low, high = low - span / 2, high + span / 2
    step = 10.0 ** math.floor(math.log10(span / (most - 1)))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        size = step * factor
        if whole and size != int(size):
            continue
        start, end = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
        if end - start < most:
            return [index * size for index in range(start, end + 1)]
    return [low, high]


def _tick_label(tick: float, ticks: Sequence[float], unit: str) -> str:
    """Write an axis mark with as many digits as tell it from its neighbours."""
    factor = 100 if unit == "%" else 1
    step = factor * abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = 2 - math.floor(math.log10(step))
    if digits > 6:  # a range so narrow or so small that only significant digits help
        largest = max(abs(factor * mark) for mark in ticks)
        text = f"{factor * tick:.{2 + math.ceil(math.log10(largest / step))}g}"
    else:
        text = number(factor * tick, max(0, digits))
    return text + (" %" if unit else "")


def _whole_ticks(first: float, last: float) -> list[float]:
    gap = 0.12 * (last - first)  # closer to an end, a number would touch its neighbour
    inner = [tick for tick in _ticks(first, last, True) if first + gap < tick < last - gap]
    return sorted({first, *inner, last})


def _spread(wanted: Sequence[float], top: float, bottom: float, gap: float) -> list[float]:
    """Move labels apart that would stand on each other, keeping their order."""
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    placed = list(wanted)
    for before, index in zip([None, *order], order, strict=False):
        floor = top if before is None else placed[before] + gap
        placed[index] = max(placed[index], floor)
    limit = bottom
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _stack(places: Sequence[float]) -> list[float]:
    """Lift dots that would cover each other: 0, up, down, further up, further down."""
    lifts: list[float] = []
    for index, place in enumerate(places):
        for lift in (0.0, -7.0, 7.0, -13.0, 13.0):
            near = zip(places[:index], lifts, strict=True)
            if all(math.hypot(place - x, lift - y) >= 6.5 for x, y in near):
                break
        lifts.append(lift)
    return lifts


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
