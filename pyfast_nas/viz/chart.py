"""Small charts as inline SVG for the report page: curves, and dots with their spread.

Colours are CSS variables of the page, so the charts follow its light and dark setting.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyfast_nas.viz.markup import attributes, escape
from pyfast_nas.viz.units import number, percent

__all__ = [
    "Group",
    "Line",
    "axis_marks",
    "dot_plot",
    "line_chart",
    "mark_label",
    "svg",
    "text_at",
]

_VALUE = ' class="value"'


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
    ticks = axis_marks(low, high, whole)
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
        parts.append(text_at(left - 6, upward(tick) + 4, mark_label(tick, ticks, unit), "end"))
    for tick in _whole_ticks(first, last):
        parts.append(text_at(across(tick), down + 17, number(tick), "middle"))
    parts.append(text_at((left + right) / 2, down + 33, "epoch", "middle"))
    ends = _spread([upward(line.points[-1][1]) for line in lines], up + 4, down - 10, 27.0)
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
        parts.append(text_at(right + 10, end, line.name, "start", f' style="fill:{colour}"'))
        parts.append(text_at(right + 10, end + 13, shown(y), "start", _VALUE))
    return svg(430, 206, title, parts)


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
    ticks = axis_marks(min(reach), max(reach), False)
    low, high = min(ticks[0], *reach), max(ticks[-1], *reach)
    left, right, row = 78.0, 446.0, 58.0
    bottom = 14 + row * len(groups)

    def across(x: float) -> float:
        return left + (right - left) * ((x - low) / (high - low) if high > low else 0.5)

    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{number(across(tick))} 10V{number(bottom)}"/>')
        parts.append(text_at(across(tick), bottom + 18, mark_label(tick, ticks, "%"), "middle"))
    for place, group in enumerate(groups):
        y = 14 + row * (place + 0.5)
        mean, spread = _mean(group.values), _deviation(group.values)
        colour = f"var(--line-{group.colour})"
        parts.append(text_at(left - 12, y + 4, group.name, "end", f' style="fill:{colour}"'))
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
            text_at(across(mean), y - 19, f"mean {percent(mean)}", "middle", ' class="value"')
        )
        heights = _stack([across(value) for value in group.values])
        for index, (value, lift) in enumerate(zip(group.values, heights, strict=True)):
            label = group.labels[index] if index < len(group.labels) else group.name
            parts.append(
                f'<circle class="dot" cx="{number(across(value))}" cy="{number(y + lift)}" r="5" '
                f'fill="{colour}"><title>{escape(label)}: {escape(percent(value))}</title></circle>'
            )
    return svg(480, bottom + 28, title, parts)


def svg(
    width: float, height: float, title: str, parts: Sequence[str], *, narrowest: float | None = None
) -> str:
    """Wrap drawn parts into a chart element that names itself to screen readers.

    A chart shrinks with the page, but with ``narrowest`` no further than to that width in pixels.
    """
    head = attributes(
        {
            "class": "chart" if narrowest is None else "chart fixed",
            "style": None if narrowest is None else f"min-width:{number(narrowest, 0)}px",
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": title,
        }
    )
    return f"<svg{head}>{''.join(parts)}</svg>"


def text_at(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    """Write text at a place; ``more`` is further attributes."""
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
    return f"<text {place}{more}>{escape(text)}</text>"


def axis_marks(low: float, high: float, whole: bool, most: int = 5) -> list[float]:
    """Return at most ``most`` round numbers that span the values.

    Example:
        >>> axis_marks(0.3, 8.7, False)
        [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    span = high - low
    # What is nearly one value is drawn as one: narrower marks would not be told apart in a float.
    if span <= max(1e-12 * max(abs(low), abs(high)), 1e-100):
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


def mark_label(tick: float, ticks: Sequence[float], unit: str) -> str:
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
    inner = [tick for tick in axis_marks(first, last, True) if first + gap < tick < last - gap]
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
