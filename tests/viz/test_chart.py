"""Charts: well-formed, with the values that were given, and honest about their scale."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

from pyfast_nas.viz.chart import Group, Line, axis_marks, dot_plot, line_chart
from pyfast_nas.viz.heat import MOST_COLUMNS, Scale, heat_map, heat_strip


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("text")]


def test_line_chart_shows_names_last_values_and_both_ends_of_the_axis():
    lines = [Line(name="train", points=[(1, 2.0), (25, 0.5)]), Line(name="valid", points=[])]
    shown = texts(line_chart(lines, title="loss"))
    assert {"train", "0.5", "1", "25", "epoch"} <= set(shown)
    assert "valid" not in shown


def test_axis_marks_of_a_flat_or_tiny_range_can_be_told_apart():
    for values in ([0.5, 0.5], [0.12345, 0.12347], [1e-9, 2e-9], [0.0, 0.0]):
        chart = line_chart([Line(name="a", points=list(enumerate(values)))], title="t")
        marks = re.findall(r'text-anchor="end">([^<]*)<', chart)
        assert len(marks) == len(set(marks)) >= 1


def test_counts_have_whole_marks_only():
    chart = line_chart(
        [Line(name="skips", points=[(1, 0), (2, 0)])], title="t", bottom=0, top=1, whole=True
    )
    assert re.findall(r'text-anchor="end">([^<]*)<', chart) == ["0", "1"]


def test_end_labels_do_not_stand_on_each_other():
    lines = [Line(name=f"l{i}", points=[(1, 1.0), (2, 1.0 + 1e-4 * i)], colour=i) for i in range(4)]
    root = ElementTree.fromstring(line_chart(lines, title="t"))
    heights = sorted(float(t.get("y")) for t in root.iter("text") if (t.text or "")[0] == "l")
    assert all(b - a >= 26.9 for a, b in itertools.pairwise(heights))


def test_dot_plot_has_a_dot_per_value_and_a_bar_only_where_there_is_a_spread():
    groups = [Group(name="searched", values=[0.9]), Group(name="random", values=[0.8, 0.9, 0.9])]
    plot = dot_plot(groups, title="t")
    assert plot.count('class="dot"') == 4
    assert plot.count('class="spread"') == 1 and "mean 86.7 %" in plot
    # Equal values stand beside each other, not on each other.
    dots = re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', plot)
    assert len(set(dots)) == 4


def test_scale_ends_at_the_extremes_on_both_sides():
    scale = Scale.of([[0.7, 0.1, 0.1, 0.1]])
    assert scale.level(0.7, 4) == "u8" and scale.level(0.1, 4) == "d8"
    assert scale.level(0.25, 4) == "h0" and scale.level(math.nan, 4) == "h0"
    assert Scale.of([]).level(0.25, 4) == "h0"
    assert Scale.of([[1.0, 0.0]]).level(0.0, 2) == "d8"


def test_heat_map_frames_what_is_kept_and_handles_rows_of_other_candidates():
    picture = heat_map(
        [[0.6, 0.4], [1.0]],
        row_names=["a", "b"],
        column_names=[["skip", "conv"], ["pool"]],
        chosen=[1, None],
        scale=Scale(1.0, 1.0),
        title="t",
    )
    ElementTree.fromstring(picture)
    assert picture.count('class="chosen"') == 1
    assert "a, conv: 0.4000" in picture and "b, pool: 1.0000" in picture


def test_strip_of_a_long_search_stays_small():
    epochs = list(range(5001))
    rows = [[math.sin(epoch) ** 2, math.cos(epoch) ** 2] for epoch in epochs]
    strip = heat_strip(epochs, rows, scale=Scale.of(rows), title="t")
    assert f'viewBox="0 0 {MOST_COLUMNS} 2"' in strip and len(strip) < 6000
    ElementTree.fromstring(strip)


def test_marks_of_the_narrowest_spans():
    for low, high in ((0.0, 5e-324), (1.0, 1.0 + 2**-52), (-5e-324, 0.0)):
        marks = axis_marks(low, high, False)
        assert marks[0] <= low and high <= marks[-1] and marks == sorted(set(marks))
