"""Pictures of cells: well-formed, legible, and nothing drawn over anything else."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from pyfast_nas.spaces import DARTS, DARTS_V1, DARTS_V2, Genotype, GenotypeEdge, Toy
from pyfast_nas.viz.cell import family_of
from pyfast_nas.viz.graph import cell_svg
from pyfast_nas.viz.graph_text import to_dot, to_mermaid

SVG = "{http://www.w3.org/2000/svg}"
TOY = Toy().optimum()


def random_genotypes(count):
    generator = torch.Generator().manual_seed(5)
    return [DARTS().random_genotype(generator) for _ in range(count)]


def boxes(root):
    """Left, top, right, bottom of every state and label; the legend's small ones left out."""
    found = []
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("class") in {"pfn-box", "pfn-state"} and float(rect.get("height")) > 20:
            x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


def points(path):
    """Points along a path of M, H and C commands with absolute coordinates."""
    x = y = 0.0
    for command, text in re.findall(r"([MHC])([-\d. ]+)", path):
        numbers = [float(number) for number in text.split()]
        if command == "M":
            x, y = numbers
        elif command == "H":
            yield from ((x + (numbers[0] - x) * t / 20, y) for t in range(21))
            x = numbers[0]
        else:
            x1, y1, x2, y2, x3, y3 = numbers
            for step in range(41):
                t = step / 40
                a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                yield a * x + b * x1 + c * x2 + d * x3, a * y + b * y1 + c * y2 + d * y3
            x, y = x3, y3


def overlaps(svg, grow=0.0):
    """Pairs of things that are drawn over each other; ``grow`` enlarges the boxes."""
    root = ElementTree.fromstring(svg)
    rects = boxes(root)
    clashes = [
        (a, b)
        for index, a in enumerate(rects)
        for b in rects[:index]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "pfn-line":
            clashes += [
                (point, box)
                for point in points(path.get("d"))
                for box in rects
                if box[0] + 0.5 < point[0] < box[2] - 0.5
                and box[1] + 0.5 - grow < point[1] < box[3] - 0.5 + grow
            ]
    return clashes


@pytest.mark.parametrize(
    "genotype", [DARTS_V1, DARTS_V2, *random_genotypes(40)], ids=lambda genotype: genotype.hash
)
def test_nothing_is_drawn_over_anything_else(genotype):
    for table in genotype.cells:
        assert not overlaps(cell_svg(genotype, table))


def test_the_overlap_check_can_fail():
    picture = cell_svg(DARTS_V2, "reduce")
    assert overlaps(picture, grow=20)


@pytest.mark.parametrize("genotype", [DARTS_V2, TOY], ids=["darts", "toy"])
def test_svg_is_well_formed_and_shows_every_edge(genotype):
    for table, edges in genotype.cells.items():
        root = ElementTree.fromstring(cell_svg(genotype, table))
        texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
        for op in {edge.op for edge in edges}:
            assert texts.count(op) == sum(edge.op == op for edge in edges)
        lines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "pfn-line"]
        assert len(lines) == len(edges) + len(genotype.outputs[table])
        assert root.get("role") == "img" and edges[0].op in root.get("aria-label")


def test_unused_inputs_are_drawn():
    pairs = [("skip_connect", 1), ("sep_conv_3x3", 2)]
    edges = [GenotypeEdge(0, 2, "sep_conv_3x3"), GenotypeEdge(0, 2, "skip_connect")]
    edges += [GenotypeEdge(source, 3, op) for op, source in pairs if source != 1]
    genotype = Genotype("custom", {"normal": tuple(edges[::2])}, {"normal": (2, 3)})
    assert "k−1" in cell_svg(genotype, "normal")


def test_drawn_twice_is_the_same():
    assert cell_svg(DARTS_V1, "normal") == cell_svg(DARTS_V1, "normal")


def test_colours_for_light_and_dark_and_for_each_family():
    picture = cell_svg(DARTS_V2, "normal")
    assert "prefers-color-scheme:dark" in picture and 'fill="#ffffff"' in picture
    names = ["sep_conv_3x3", "dil_conv_5x5", "avg_pool_3x3", "skip_connect", "none", "nor_conv_3x3"]
    names.append("mbconv_5x5_e6")
    assert len({family_of(name).key for name in names}) == 7


def test_inline_pictures_carry_no_address():
    assert "http" not in cell_svg(DARTS_V2, "normal", inline=True)


HOSTILE = 'a"b<script>&\x1b[31m\u202e]-->\\'


class Untrusted:
    """A genotype-like object whose names went through no parser."""

    space = HOSTILE
    cells = {"cell": (GenotypeEdge(0, 1, HOSTILE),)}  # noqa: RUF012
    outputs = {"cell": (1,)}  # noqa: RUF012


def test_hostile_names_are_escaped_everywhere():
    picture = cell_svg(Untrusted(), "cell")
    ElementTree.fromstring(picture)
    for text in (picture, to_dot(Untrusted(), "cell"), to_mermaid(Untrusted(), "cell")):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<script>" not in picture
    assert r"a\"b<script>" in to_dot(Untrusted(), "cell")
    assert "<script>" not in to_mermaid(Untrusted(), "cell")
    assert '"b' not in to_mermaid(Untrusted(), "cell")


def test_dot_and_mermaid_name_every_edge():
    dot, mermaid = to_dot(DARTS_V2, "normal"), to_mermaid(DARTS_V2, "normal")
    assert dot.count("label=") == mermaid.count("-->|") == 8
    assert '"c_{k-2}" -> "0" [label="sep_conv_3x3"' in dot
    assert dot.count("{") == dot.count("}") and mermaid.startswith("flowchart LR\n")


def test_unknown_cell_is_refused():
    with pytest.raises(
        ValueError, match="cell_svg: table must be one of 'normal', 'reduce', got 'x'"
    ):
        cell_svg(DARTS_V2, "x")
