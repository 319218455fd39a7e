"""Accuracy against cost: the picture with its Pareto front, and the front as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyfast_nas.viz.chart import axis_marks, mark_label, text_at
from pyfast_nas.viz.graph import FONT
from pyfast_nas.viz.markup import attributes, escape, printable
from pyfast_nas.viz.units import amount, number, percent

__all__ = ["front_lines", "judged", "pareto_section", "pareto_svg"]

WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 84.0, 620.0, 52.0, 336.0

# Light and dark: ground, text, secondary text, grid, what was found, what epochs derived.
_SHADES = {
    "paper": ("#ffffff", "#1c1f24"),
    "ink": ("#181b20", "#e6e8eb"),
    "soft": ("#575e68", "#a3abb5"),
    "grid": ("#dcdee2", "#343a43"),
    "final": ("#b85a00", "#f0ab5f"),
    "epoch": ("#1d5fa8", "#7db4f0"),
}
_OUTLINES = ("ink", "soft", "paper")
_WORDS = {"final": "found", "epoch": "derived in an epoch", "sample": "drawn"}
# From which cost on the axis counts in what.
_SCALES = (
    (1e9, 1e9, "billions of "),
    (1e6, 1e6, "millions of "),
    (1e4, 1e3, "thousands of "),
    (0.0, 1.0, ""),
)


def pareto_svg(record: Mapping[str, Any], *, inline: bool = False) -> str:
    """Draw architectures by cost and accuracy, with the Pareto front as a step line.

    The steps are the best accuracy that a cost buys. What was found, what epochs derived and what
    was drawn differ in form, not only in colour; a ring marks what is on the front. The picture
    brings its own ground and follows the viewer's light or dark setting.

    Args:
        record: Content of ``pareto.json``.
        inline: Whether the picture goes into an HTML page: without the XML name space, and never
            drawn so small that its text cannot be read.

    Returns:
        The text of an SVG file, ending in a newline.

    Example:
        >>> row = {"hash": "ab12", "genotype": {}, "source": "final", "epochs": [3],
        ...        "accuracy": 0.9, "cost": 2.5, "on_front": True}
        >>> picture = pareto_svg({"unit": "ms", "images": 64, "architectures": [row]})
        >>> picture.startswith("<svg"), "cost (ms)" in picture
        (True, True)
    """
    rows, unit = record["architectures"], printable(record["unit"], 40)
    about = f", {printable(record['about'], 60)}" if "about" in record else ""
    largest = max(abs(row["cost"]) for row in rows)
    _, scale, word = next(row for row in _SCALES if largest >= row[0])
    across = _Axis([row["cost"] / scale for row in rows], LEFT, RIGHT)
    upward = _Axis([row["accuracy"] for row in rows], BOTTOM, TOP)

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        return across(row["cost"] / scale), upward(row["accuracy"])

    title = (
        f"Accuracy against cost of {len(rows)} architectures, "
        f"{sum(row['on_front'] for row in rows)} of them on the Pareto front"
    )
    head = attributes(
        {
            "xmlns": None if inline else "http://www.w3.org/2000/svg",
            "style": f"min-width:{number(0.8 * WIDTH, 0)}px" if inline else None,
            "class": "pfn-pareto",
            "viewBox": f"0 0 {number(WIDTH)} {number(HEIGHT)}",
            "width": WIDTH,
            "height": HEIGHT,
            "role": "img",
            "aria-label": title,
            "font-family": FONT,
        }
    )
    # What was found is drawn last: nothing covers it.
    order = sorted(rows, key=lambda row: list(reversed(_WORDS)).index(row["source"]))
    parts = [
        _style(),
        f'<rect class="paper" width="100%" height="100%" rx="8" fill="{_SHADES["paper"][0]}"/>',
        *_axes(across, upward, f"cost ({word}{unit}{about})"),
        *_legend([kind for kind in _WORDS if any(row["source"] == kind for row in rows)]),
        _front([place(row) for row in rows if row["on_front"]]),
        *(_mark(row["source"], *place(row), row["on_front"], _told(row, unit)) for row in order),
    ]
    return f"<svg{head}>\n" + "\n".join(parts) + "\n</svg>\n"


def front_lines(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the front from the cheapest on, and what was found if it is not there.

    Args:
        record: Content of ``pareto.json``.

    Returns:
        By row accuracy, cost, test accuracy in a table of measured architectures where there is
        one, name and origin.

    Example:
        >>> row = {"hash": "ab12", "genotype": {}, "source": "sample", "epochs": [],
        ...        "accuracy": 0.9, "cost": 2.5, "on_front": True}
        >>> front_lines({"unit": "ms", "images": 64, "architectures": [row]})
        [('90.00 %', '2.5 ms', 'ab12', 'drawn')]
    """
    unit = printable(record["unit"], 40)
    return [
        (
            percent(row["accuracy"], 2),
            amount(row["cost"], unit),
            *((f"{number(row['test'])} in the table",) if "test" in row else ()),
            printable(row["hash"], 16),
            _origin(row) + ("" if row["on_front"] else ", not on the front"),
        )
        for row in record["architectures"]
        if row["on_front"] or row["source"] == "final"
    ]


def front_table(record: Mapping[str, Any]) -> list[str]:
    """Return `front_lines` under each other: figures to the right and words to the left.

    Example:
        >>> row = {"hash": "ab12", "genotype": {}, "source": "sample", "epochs": [],
        ...        "accuracy": 0.9, "cost": 2.5, "on_front": True}
        >>> front_table({"unit": "ms", "images": 64, "architectures": [row]})
        ['90.00 %  2.5 ms  ab12  drawn']
    """
    rows = front_lines(record)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if cell[0].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def judged(record: Mapping[str, Any]) -> str:
    """Say how many architectures were judged, and how.

    Example:
        >>> judged({"unit": "ms", "images": 64, "architectures": [{"on_front": True}]})
        '1 of 1 architectures on the front; accuracy with shared weights on 64 validation images'
    """
    rows = record["architectures"]
    about = f"; cost of: {printable(record['about'], 200)}" if "about" in record else ""
    return (
        f"{sum(row['on_front'] for row in rows)} of {len(rows)} architectures on the front; "
        f"accuracy with shared weights on {record['images']:,} validation images{about}"
    )


def pareto_section(record: Mapping[str, Any] | None) -> str:
    """Return the section of the report page; empty without a record.

    Example:
        >>> pareto_section(None)
        ''
    """
    if record is None:
        return ""
    names = ["accuracy", "cost", "architecture", "origin"]
    if "column" in record:
        names.insert(2, f"test accuracy ({printable(record['column'], 60)})")
    head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in names)}</tr></thead>"
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>"
        for line in front_lines(record)
    )
    return (
        f"<p>{escape(judged(record))}.</p>\n"
        f"<div class='wide'>{pareto_svg(record, inline=True)}</div>\n"
        f"<div class='wide'><table>{head}<tbody>{body}</tbody></table></div>"
        '<p class="small soft">Weights that many architectures share rank them roughly: train from '
        "scratch what you mean to use. The line is the best accuracy that a cost buys.</p>"
    )


class _Axis:
    """Places values between two ends, with round marks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.marks = axis_marks(min(values), max(values), False, most=6)
        self._low = min(self.marks[0], *values)
        self._high = max(self.marks[-1], *values)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * share


def _axes(across: _Axis, upward: _Axis, cost: str) -> list[str]:
    grid = f' class="grid" stroke="{_SHADES["grid"][0]}" fill="none"'
    parts = []
    for mark in upward.marks:
        y = upward(mark)
        parts.append(f'<path{grid} d="M{number(LEFT)} {number(y)}H{number(RIGHT)}"/>')
        parts.append(text_at(LEFT - 8, y + 4, mark_label(mark, upward.marks, "%"), "end", _SOFT))
    for mark in across.marks:
        x = across(mark)
        parts.append(f'<path{grid} d="M{number(x)} {number(TOP)}V{number(BOTTOM)}"/>')
        label = mark_label(mark, across.marks, "")
        parts.append(text_at(x, BOTTOM + 19, label, "middle", _SOFT))
    middle = (TOP + BOTTOM) / 2
    turn = f'{_INK} transform="rotate(-90 20 {number(middle)})"'
    return [
        *parts,
        text_at((LEFT + RIGHT) / 2, BOTTOM + 44, cost, "middle", _INK),
        text_at(20, middle, "validation accuracy, shared weights", "middle", turn),
    ]


def _front(places: Sequence[tuple[float, float]]) -> str:
    """Draw the steps: nothing more is bought until the next architecture can be paid."""
    if not places:
        return ""
    (x, y), *rest = places
    path = f"M{number(x)} {number(y)}" + "".join(f"H{number(x)}V{number(y)}" for x, y in rest)
    ink = _SHADES["ink"][0]
    return (
        f'<path class="steps" stroke="{ink}" stroke-width="1.6" fill="none" '
        f'd="{path}H{number(RIGHT)}"/>'
    )


def _mark(kind: str, x: float, y: float, strong: bool, label: str) -> str:
    """Draw a diamond for what was found, a disc for an epoch's, an open circle for a drawn one."""
    outline = "ink" if strong else "soft" if kind == "sample" else "paper"
    fill = kind if kind in _SHADES else "paper"
    head = attributes(
        {
            "class": f"{fill} {outline}-line",
            "fill": _SHADES[fill][0],
            "stroke": _SHADES[outline][0],
            "stroke-width": 1.8 if strong else 1.2,
        }
    )
    tooltip = f"<title>{escape(label)}</title>" if label else ""
    if kind == "final":
        return f'<path{head} d="M{number(x)} {number(y - 9)}l9 9l-9 9l-9 -9z">{tooltip}</path>'
    radius = 5 if kind == "epoch" else 4
    return f'<circle{head} cx="{number(x)}" cy="{number(y)}" r="{radius}">{tooltip}</circle>'


def _legend(kinds: Sequence[str]) -> list[str]:
    parts, x = [], LEFT
    for kind in kinds:
        parts.append(_mark(kind, x + 9, 26, False, ""))
        parts.append(text_at(x + 24, 30, _WORDS[kind], "start", _INK))
        x += 50 + 7 * len(_WORDS[kind])
    ink = _SHADES["ink"][0]
    line = f'stroke="{ink}" stroke-width="1.6" fill="none" d="M{number(x)} 26h24"'
    return [
        *parts,
        f'<path class="steps" {line}/>',
        text_at(x + 32, 30, "Pareto front", "start", _INK),
    ]


def _told(row: Mapping[str, Any], unit: str) -> str:
    test = f", {number(row['test'])} in the table" if "test" in row else ""
    return (
        f"{printable(row['hash'], 16)}, {_origin(row)}: {percent(row['accuracy'], 2)}{test}, "
        f"{amount(row['cost'], unit)}"
    )


def _origin(row: Mapping[str, Any]) -> str:
    """Say where an architecture is from; of many epochs how many, the first and the last."""
    epochs = row["epochs"]
    if not epochs:
        return _WORDS[row["source"]]
    shown = f"epoch {epochs[0]}"
    if len(epochs) > 1:
        span = f"epochs {epochs[0]} to {epochs[-1]}"
        is_whole = len(epochs) == epochs[-1] - epochs[0] + 1
        shown = span if is_whole else f"{len(epochs)} of the {span}"
    return f"found, {shown}" if row["source"] == "final" else shown


def _look(kind: str) -> str:
    return f' class="{kind}" fill="{_SHADES[kind][0]}" font-size="13"'


_INK, _SOFT = _look("ink"), _look("soft")


def _style() -> str:
    """Colours for a dark page; viewers that know no style sheets keep the light ones."""
    fills = "".join(
        f".pfn-pareto .{name}{{fill:{dark}}}"
        for name, (_, dark) in _SHADES.items()
        if name != "grid"
    )
    lines = "".join(
        f".pfn-pareto .{name}-line{{stroke:{_SHADES[name][1]}}}"
        for name in ("ink", "paper", "soft")
    )
    lines += f".pfn-pareto .steps{{stroke:{_SHADES['ink'][1]}}}"
    lines += f".pfn-pareto .grid{{fill:none;stroke:{_SHADES['grid'][1]}}}"
    return f"<style>@media screen and (prefers-color-scheme:dark){{{fills}{lines}}}</style>"
