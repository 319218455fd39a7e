"""Bar charts: true to scale, readable on both grounds, safe with any text."""

import xml.etree.ElementTree as ElementTree

from pyfast_nas.viz.bars import FULL, Bar, Panel, bar_chart


def rects(svg, kind):
    root = ElementTree.fromstring(svg)
    return [rect for rect in root.findall(".//{*}rect") if rect.get("class") == kind]


def test_bars_are_true_to_scale_within_their_panel():
    plain = [Bar(name="x", value=4.0, label="4"), Bar(name="y", value=1.0, label="1")]
    strong = [Bar(name="z", value=0.5, label="0.5", strong=True)]
    panels = [Panel(title="a", bars=plain), Panel(title="b", bars=strong)]
    svg = bar_chart(panels, title="t")
    assert [float(r.get("width")) for r in rects(svg, "plain")] == [FULL, FULL / 4]
    assert [float(r.get("width")) for r in rects(svg, "strong")] == [FULL]


def test_names_and_values_stand_beside_their_bars_and_inside_the_picture():
    bars = [Bar(name=f"bar {i}", value=float(i), label=f"{i} s") for i in range(4)]
    root = ElementTree.fromstring(bar_chart([Panel(title="p", bars=bars)], title="t"))
    heights = {t.text: float(t.get("y")) for t in root.findall(".//{*}text")}
    for i in range(4):
        assert heights[f"bar {i}"] == heights[f"{i} s"]
    assert len({heights[f"bar {i}"] for i in range(4)}) == 4
    assert max(heights.values()) < float(root.get("height"))


def test_panels_without_bars_are_left_out_and_zero_is_drawn():
    empty = Panel(title="nothing", bars=[])
    zero = Panel(title="zero", bars=[Bar(name="z", value=0.0, label="0")])
    svg = bar_chart([empty, zero], title="t")
    assert "nothing" not in svg and len(rects(svg, "plain")) == 1
    ElementTree.fromstring(bar_chart([], title="t"))


def test_text_cannot_leave_its_element():
    name = '</text><script>"&'
    svg = bar_chart([Panel(title=name, bars=[Bar(name=name, value=1.0, label=name)])], title=name)
    root = ElementTree.fromstring(svg)
    assert [t.text for t in root.findall(".//{*}text")] == [name] * 3
    assert root.get("aria-label") == name and not root.findall(".//{*}script")
