"""Bars as an SVG document of its own, readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyfast_nas.viz.chart import text_at
from pyfast_nas.viz.graph import FONT
from pyfast_nas.viz.markup import attributes
from pyfast_nas.viz.units import number

__all__ = ["Bar", "Panel", "bar_chart"]

LEFT, FULL, RIGHT = 220.0, 360.0, 150.0  # names, the longest bar, values
ROW, HEAD, GAP, MARGIN = 24.0, 30.0, 18.0, 20.0

# Light and dark: ground, text, secondary text, bars of others, bars that stand out.
_PAPER, _INK, _SOFT, _PLAIN, _STRONG = (
    ("#ffffff", "#1c1f24"),
    ("#181b20", "#e6e8eb"),
    ("#575e68", "#a3abb5"),
    ("#b9bfc8", "#5a626d"),
    ("#1d5fa8", "#7db4f0"),
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        name: What stands left of it.
        value: Its length, at least 0.
        label: What stands right of it.
        strong: Whether it is the one to look at.
    """

    name: str
    value: float
    label: str
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Bars on one scale, which starts at 0."""

    title: str
    bars: Sequence[Bar]


def bar_chart(panels: Sequence[Panel], *, title: str) -> str:
    """Draw panels of horizontal bars below each other.

    Args:
        panels: From top to bottom; those without bars are left out.
        title: What the picture shows, for screen readers.

    Returns:
        The text of an SVG file, ending in a newline.

    Example:
        >>> panel = Panel(title="time", bars=[Bar(name="loop", value=2.0, label="2 ms")])
        >>> bar_chart([panel], title="times").startswith("<svg")
        True
    """
    parts, y = [], MARGIN
    for panel in panels:
        if not panel.bars:
            continue
        parts.append(text_at(MARGIN, y + 15, panel.title, "start", _look("ink", _INK, 14, True)))
        y += HEAD
        longest = max(bar.value for bar in panel.bars) or 1.0
        for bar in panel.bars:
            parts.append(_bar(bar, y, bar.value / longest))
            y += ROW
        y += GAP
    width, height = LEFT + FULL + RIGHT, y - GAP + MARGIN
    head = attributes(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "pfn-bars",
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": title,
            "font-family": FONT,
        }
    )
    ground = f'<rect class="paper" width="100%" height="100%" rx="8" fill="{_PAPER[0]}"/>'
    return "\n".join([f"<svg{head}>", _style(), ground, *parts, "</svg>\n"])


def _bar(bar: Bar, y: float, share: float) -> str:
    fill, kind = (_STRONG, "strong") if bar.strong else (_PLAIN, "plain")
    box = attributes(
        {
            "class": kind,
            "x": LEFT,
            "y": y + 3,
            "width": max(1.5, FULL * share),
            "height": ROW - 6,
            "rx": 3,
            "fill": fill[0],
        }
    )
    name_look = _look("ink", _INK, 13, True) if bar.strong else _look("soft", _SOFT, 13, False)
    end = LEFT + max(1.5, FULL * share) + 8
    return (
        text_at(LEFT - 10, y + 16.5, bar.name, "end", name_look)
        + f"<rect{box}/>"
        + text_at(end, y + 16.5, bar.label, "start", _look("ink", _INK, 13, bar.strong))
    )


def _look(kind: str, colour: tuple[str, str], size: int, bold: bool) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f' class="{kind}" fill="{colour[0]}" font-size="{size}"{weight}'


def _style() -> str:
    """Colours for a dark page; viewers that know no style sheets keep the light ones."""
    shades = {"paper": _PAPER, "ink": _INK, "soft": _SOFT, "plain": _PLAIN, "strong": _STRONG}
    rules = "".join(f".pfn-bars .{name}{{fill:{dark}}}" for name, (_, dark) in shades.items())
    return f"<style>@media screen and (prefers-color-scheme:dark){{{rules}}}</style>"
