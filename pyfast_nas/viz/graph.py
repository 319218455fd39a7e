"""The picture of a cell: SVG of our own drawing.

No layout program is needed, and the same genotype always gives the same bytes.
"""

from collections.abc import Sequence

from pyfast_nas.spaces.base import Genotype
from pyfast_nas.viz.cell import FAMILIES, Cell, Family, family_of, read_cell
from pyfast_nas.viz.layout import Item, Layout, lay_out
from pyfast_nas.viz.markup import attributes, escape, printable
from pyfast_nas.viz.units import number

__all__ = ["cell_svg"]

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
LABEL_HEIGHT = 24.0
CHARACTER_WIDTH = 7.3  # of the monospaced 12-pixel font
LONGEST_LABEL = 40  # characters; what is cut off stands in the tooltip
MARGIN = 18.0


_PAPER, _INK, _SOFT, _STATE = (
    ("#ffffff", "#181b20"),
    ("#1c1f24", "#e6e8eb"),
    ("#5c636d", "#a3abb5"),
    ("#f0f1f3", "#2a2f37"),
)


def cell_svg(genotype: Genotype, table: str, *, inline: bool = False) -> str:
    """Draw one cell of a genotype as an SVG document.

    Inputs stand on the left, the output on the right; every edge carries the name of its
    operation in the colour of its family. The picture brings its own ground and follows the
    viewer's light or dark setting, so it can be read on any page.

    Args:
        genotype: The architecture.
        table: Which of its cells, for example ``"normal"``.
        inline: Whether the picture goes into an HTML page: without the XML name space, and never
            drawn so small that its text cannot be read.

    Returns:
        The text of the file, ending in a newline.

    Raises:
        ValueError: If the genotype has no such cell.

    Example:
        >>> from pyfast_nas.spaces.base import Genotype, GenotypeEdge
        >>> edges = (GenotypeEdge(source=0, target=1, op="skip_connect"),)
        >>> genotype = Genotype(space="toy", cells={"cell": edges}, outputs={"cell": (1,)})
        >>> cell_svg(genotype, "cell").startswith("<svg")
        True
    """
    cell = read_cell(genotype, table, "cell_svg")
    names = cell.names
    sizes = {
        state: (max(38.0, 22.0 + CHARACTER_WIDTH * len(name.replace("_", ""))), 34.0)
        for state, name in names.items()
    }
    widths = [
        22.0 + CHARACTER_WIDTH * len(printable(op, LONGEST_LABEL)) for _s, _t, op in cell.edges
    ]
    edges = [(s, t, width) for (s, t, _op), width in zip(cell.edges, widths, strict=True)]
    edges += [(source, cell.output, 0.0) for source in cell.concatenated]
    plan = lay_out(edges, sizes, label_height=LABEL_HEIGHT)

    used = [f for f in FAMILIES if any(family_of(op) is f for _s, _t, op in cell.edges)]
    legend, legend_width = _legend(used, plan.height + MARGIN + 22)
    width = max(plan.width, legend_width) + 2 * MARGIN
    height = plan.height + 2 * MARGIN + (34 if legend else 0)
    ops = [op for _s, _t, op in cell.edges]
    body = [_lines(plan, ops, names, cell), _labels(plan, ops), _states(plan, names), legend]
    title = f"Cell '{table}' of a {genotype.space} genotype: " + "; ".join(
        f"{names[s]} to {names[t]} by {op}" for s, t, op in cell.edges
    )
    head = attributes(
        {
            "xmlns": None if inline else "http://www.w3.org/2000/svg",
            "style": f"min-width:{number(0.8 * width, 0)}px" if inline else None,
            "class": "pfn-cell",
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": title,
            "font-family": FONT,
        }
    )
    ground = f'<rect class="pfn-paper" width="100%" height="100%" rx="8" fill="{_PAPER[0]}"/>'
    shift = f'<g transform="translate({number(MARGIN)} {number(MARGIN)})">'
    return f"<svg{head}>\n{_style()}\n{ground}\n{shift}\n" + "\n".join(body) + "\n</g>\n</svg>\n"


def _port(item: Item, place: int, count: int, side: float) -> tuple[float, float]:
    """Where the ``place``-th of ``count`` lines meets a box, so that lines do not run together."""
    spread = min(9.0, (item.height - 12) / max(1, count - 1)) if item.height else 0.0
    return item.x + side * item.width / 2, item.y + (place - (count - 1) / 2) * spread


def _lines(plan: Layout, ops: Sequence[str], names: dict[int, str], cell: Cell) -> str:
    """Lines from box to box, each with an arrow head at the target and a tooltip."""
    incoming: dict[int, list[tuple[float, int]]] = {}
    outgoing: dict[int, list[tuple[float, int]]] = {}
    for index, route in enumerate(plan.routes):
        incoming.setdefault(id(route[-1]), []).append((route[-2].y, index))
        outgoing.setdefault(id(route[0]), []).append((route[1].y, index))
    parts = []
    for index, route in enumerate(plan.routes):
        first, last = route[0], route[-1]
        starts, ends = sorted(outgoing[id(first)]), sorted(incoming[id(last)])
        start = _port(first, [i for _y, i in starts].index(index), len(starts), 1)
        end = _port(last, [i for _y, i in ends].index(index), len(ends), -1)
        tip = end[0] - 2
        path = f"M{number(start[0])} {number(start[1])}"
        x, y = start
        for item in route[1:]:
            left, right = plan.bounds[item.column]
            if item is not last and left == right:
                continue  # nothing stands in this column: bend once, past it
            to_x, to_y = (tip - 6, end[1]) if item is last else (left, item.y)
            middle = (x + to_x) / 2
            path += (
                f"C{number(middle)} {number(y)} {number(middle)} {number(to_y)} "
                f"{number(to_x)} {number(to_y)}"
            )
            x, y = to_x, to_y
            if item is not last:
                x = right
                path += f"H{number(x)}" if item.is_slot else f"M{number(x)} {number(y)}"
        family = family_of(ops[index]) if index < len(ops) else None
        colour = family.line[0] if family else _SOFT[0]
        marks = f"pfn-{family.key}" if family else "pfn-out"
        if index < len(ops):
            source, target, op = cell.edges[index]
            tooltip = f"{names[source]} → {names[target]}: {op}"
        else:
            source = cell.concatenated[index - len(ops)]
            tooltip = f"{names[source]} → {names[cell.output]}"
        head = f"M{number(tip)} {number(end[1])}l-8 -3.6v7.2z"
        parts.append(
            f'<g class="{marks}"><title>{escape(tooltip)}</title>'
            f'<path class="pfn-line" d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            f'<path class="pfn-head" d="{head}" fill="{colour}"/></g>'
        )
    return "\n".join(parts)


def _labels(plan: Layout, ops: Sequence[str]) -> str:
    parts = []
    for op, route in zip(ops, plan.routes, strict=False):
        family = family_of(op)
        item = next(item for item in route[1:-1] if not item.is_slot)
        box = attributes(
            {
                "class": "pfn-box",
                "x": item.x - item.width / 2,
                "y": item.y - item.height / 2,
                "width": item.width,
                "height": item.height,
                "rx": item.height / 2,
                "fill": family.fill[0],
                "stroke": family.line[0],
                "stroke-width": 1.2,
            }
        )
        parts.append(
            f'<g class="pfn-{family.key}"><title>{escape(op)}</title><rect{box}/>'
            + _text(item.x, item.y + 4.2, escape(op, LONGEST_LABEL), size=12, mono=True)
            + "</g>"
        )
    return "\n".join(parts)


def _states(plan: Layout, names: dict[int, str]) -> str:
    parts = []
    for state, item in plan.states.items():
        box = attributes(
            {
                "class": "pfn-state",
                "x": item.x - item.width / 2,
                "y": item.y - item.height / 2,
                "width": item.width,
                "height": item.height,
                "rx": 7,
                "fill": _STATE[0],
                "stroke": _SOFT[0],
            }
        )
        name, _, low = names[state].partition("_")
        shown = escape(name)
        if low:
            low = low.strip("{}").replace("-", "−")
            shown += f'<tspan dy="3.5" font-size="10">{escape(low)}</tspan>'
        parts.append(f"<rect{box}/>" + _text(item.x, item.y + 4.6, shown, size=13))
    return "\n".join(parts)


def _text(x: float, y: float, markup: str, *, size: int, mono: bool = False) -> str:
    values = attributes(
        {
            "class": "pfn-ink",
            "x": x,
            "y": y,
            "font-size": size,
            "font-family": MONO if mono else None,
            "text-anchor": "middle",
            "fill": _INK[0],
        }
    )
    return f"<text{values}>{markup}</text>"


def _legend(families: Sequence[Family], y: float) -> tuple[str, float]:
    parts, x = [], 0.0
    for family in families if [f.key for f in families] != ["other"] else ():
        box = attributes(
            {
                "class": "pfn-box",
                "x": x,
                "y": y - 9,
                "width": 18,
                "height": 11,
                "rx": 5.5,
                "fill": family.fill[0],
                "stroke": family.line[0],
            }
        )
        parts.append(
            f'<g class="pfn-{family.key}"><rect{box}/><text class="pfn-soft" x="{number(x + 24)}" '
            f'y="{number(y)}" font-size="11" fill="{_SOFT[0]}">{family.name}</text></g>'
        )
        x += 24 + 6.2 * len(family.name) + 20
    return "\n".join(parts), max(0.0, x - 20)


def _style() -> str:
    """Colours for a dark page; viewers that know no style sheets keep the light ones."""
    rules = [
        f".pfn-cell .pfn-paper{{fill:{_PAPER[1]}}}",
        f".pfn-cell .pfn-ink{{fill:{_INK[1]}}}",
        f".pfn-cell .pfn-soft{{fill:{_SOFT[1]}}}",
        f".pfn-cell .pfn-state{{fill:{_STATE[1]};stroke:{_SOFT[1]}}}",
        f".pfn-cell .pfn-out .pfn-line{{stroke:{_SOFT[1]}}}",
        f".pfn-cell .pfn-out .pfn-head{{fill:{_SOFT[1]}}}",
    ]
    for family in FAMILIES:
        scope = f".pfn-cell .pfn-{family.key}"
        rules.append(f"{scope} .pfn-box{{fill:{family.fill[1]};stroke:{family.line[1]}}}")
        rules.append(f"{scope} .pfn-line{{stroke:{family.line[1]}}}")
        rules.append(f"{scope} .pfn-head{{fill:{family.line[1]}}}")
    return "<style>@media screen and (prefers-color-scheme:dark){" + "".join(rules) + "}</style>"
