"""The picture of accuracy against cost, and what a broken record of it says."""

import itertools
import json
import random
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pyfast_nas.costs import pareto_front
from pyfast_nas.errors import DataError
from pyfast_nas.viz.pareto import HEIGHT, RIGHT, WIDTH, front_lines, judged, pareto_svg
from pyfast_nas.viz.report import write_report
from pyfast_nas.viz.run_folder import RunFolder


def record(count=12, unit="parameters", scale=20_000.0, **changes):
    draws = random.Random(count)
    rows = [
        {
            "hash": f"{place:016x}",
            "genotype": {},
            "source": "final" if place == 0 else "epoch" if place < 3 else "sample",
            "epochs": [3, 4, 6] if place == 0 else [place] if place < 3 else [],
            "accuracy": draws.randrange(100) / 100,
            "cost": scale * (1 + draws.random()),
        }
        for place in range(count)
    ]
    kept = pareto_front([row["cost"] for row in rows], [row["accuracy"] for row in rows])
    for row, on_front in zip(rows, kept, strict=True):
        row["on_front"] = on_front
    rows.sort(key=lambda row: (row["cost"], -row["accuracy"]))
    return {"unit": unit, "images": 1024, "architectures": rows} | changes


def parts(picture, kind):
    return [e for e in ElementTree.fromstring(picture).iter() if e.get("class") == kind]


def words(picture):
    return [
        e.text for e in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_every_architecture_is_drawn_inside_the_axes_with_its_numbers():
    content = record()
    picture = pareto_svg(content)
    titles = re.findall(r"<title>([^<]*)</title>", picture)
    assert len(titles) == 12
    row = content["architectures"][0]
    assert any(
        title.startswith(row["hash"])
        and f"{100 * row['accuracy']:.2f} %" in title
        and f"{row['cost']:,.0f} parameters" in title
        for title in titles
    )
    for circle in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.get("cx")) < WIDTH and 0 < float(circle.get("cy")) < HEIGHT
    # What was found is drawn last, and in a form of its own.
    assert picture.rindex("<path") > picture.rindex("<circle")
    assert {"found", "derived in an epoch", "drawn", "Pareto front"} <= set(words(picture))


def test_the_front_goes_up_in_steps_through_its_architectures():
    content = record(30)
    steps = parts(pareto_svg(content), "steps")[-1].get("d")
    start, corners, end = re.fullmatch(
        r"M([\d.]+ [\d.]+)((?:H[\d.]+V[\d.]+)*)H([\d.]+)", steps
    ).groups()
    places = [tuple(map(float, start.split()))]
    places += [tuple(map(float, p)) for p in re.findall(r"H([\d.]+)V([\d.]+)", corners)]
    front = [row for row in content["architectures"] if row["on_front"]]
    assert len(places) == len(front) and float(end) == RIGHT
    for (x, y), (further, higher) in itertools.pairwise(places):
        assert further > x and higher < y
    # Distances on the paper are those of the costs.
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(places)]
    costs = [b["cost"] - a["cost"] for a, b in itertools.pairwise(front)]
    assert all(
        gap / gaps[0] == pytest.approx(cost / costs[0], rel=0.05)
        for gap, cost in zip(gaps, costs, strict=True)
    )


@pytest.mark.parametrize(
    ("scale", "unit", "axis", "largest"),
    [
        (2.5, "ms", "cost (ms)", 5),
        (400.0, "parameters", "cost (parameters)", 800),
        (20_000.0, "parameters", "cost (thousands of parameters)", 40),
        (3e6, "multiply-adds", "cost (millions of multiply-adds)", 6),
        (4e9, "multiply-adds", "cost (billions of multiply-adds)", 8),
    ],
)
def test_the_cost_axis_says_what_it_counts_in(scale, unit, axis, largest):
    content = record(20, unit=unit, scale=scale)
    shown = words(pareto_svg(content))
    assert axis in shown
    marks = [float(text) for text in shown if re.fullmatch(r"[\d.]+", text)]
    assert 0.6 * largest < max(marks) <= 1.3 * largest and len(marks) == len(set(marks)) > 2


@pytest.mark.parametrize("count", [1, 2])
def test_few_and_equal_architectures_can_be_drawn(count):
    content = record(count)
    for row in content["architectures"]:
        row |= {"accuracy": 0.5, "cost": 0.0, "on_front": True}
    assert "n/a" not in pareto_svg(content) and len(front_lines(content)) == count


def test_the_table_holds_the_front_and_what_was_found():
    content = record(30)
    for row in content["architectures"]:
        row["test"] = 93.25
    lines = front_lines(content)
    front = [row for row in content["architectures"] if row["on_front"]]
    assert len(lines) == len(front) + (not any(row["source"] == "final" for row in front))
    (found,) = [line for line in lines if line[-1].startswith("found")]
    assert found[-1] == "found, 3 of the epochs 3 to 6, not on the front"
    assert found[2] == "93.25 in the table" and found[3] == "0" * 16
    assert judged(content).startswith(f"{len(front)} of 30 architectures on the front; ")
    assert "on 1,024 validation images" in judged(content)


def test_text_cannot_leave_its_element(runs):
    nasty = "</text></title><script>\x1b[31m"
    content = record(unit=nasty)
    content["architectures"][0]["hash"] = nasty
    root = ElementTree.fromstring(pareto_svg(content))
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    folder = runs.make()
    (folder / "pareto.json").write_text(json.dumps(content))
    page = write_report(folder).read_text()
    assert "<script" not in page and "\x1b" not in page


def test_the_page_has_the_section_and_the_folder_the_picture(runs):
    folder = runs.make()
    page = write_report(folder).read_text()
    assert "Accuracy against cost" not in page and not (folder / "pareto.svg").exists()
    content = record()
    (folder / "pareto.json").write_text(json.dumps(content))
    page = write_report(folder).read_text()
    assert "Accuracy against cost" in page and judged(content) in page
    for line in front_lines(content):
        assert "".join(f"<td>{cell}</td>" for cell in line) in page
    assert pareto_svg(content, inline=True) in page
    assert (folder / "pareto.svg").read_text() == pareto_svg(content)


def test_what_was_measured_stands_beside_the_unit():
    content = record(unit="ms", scale=2.5, about="batch of 24, cpu, 32x32x3")
    assert "cost (ms, batch of 24, cpu, 32x32x3)" in words(pareto_svg(content))
    assert judged(content).endswith("; cost of: batch of 24, cpu, 32x32x3")


@pytest.mark.parametrize("costs", [(0.0, 5e-324), (1.0, 1.0 + 2**-52), (-9e29, 9e29)])
def test_costs_of_any_size_and_distance_can_be_drawn(costs):
    content = record(2)
    for row, cost in zip(content["architectures"], costs, strict=True):
        row["cost"] = cost
    ElementTree.fromstring(pareto_svg(content))


def broken(change):
    content = record()
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must be dict, got list"),
        (broken(lambda c: c.pop("unit")), "must have unit"),
        (broken(lambda c: c.pop("architectures")), "must have architectures"),
        (broken(lambda c: c["architectures"].clear()), "one final architecture, got 0"),
        (broken(lambda c: c["architectures"][4].pop("cost")), "architectures must have cost"),
        (
            broken(lambda c: c["architectures"][4].update(source="moon")),
            "source must be one of final, epoch, sample, got 'moon'",
        ),
        (
            broken(lambda c: c["architectures"][4].update(accuracy=None)),
            "accuracy must be int or float, got NoneType",
        ),
        (
            broken(lambda c: c["architectures"][4].update(on_front=1)),
            "on_front must be bool, got int",
        ),
        (
            broken(lambda c: c["architectures"][4].update(cost=10**400)),
            "cost must be a number of reasonable size, got 1329 bits",
        ),
        (
            broken(lambda c: c["architectures"][4].update(cost=-1e30)),
            r"cost must be a number of reasonable size, got -1e\+30",
        ),
        (
            broken(lambda c: c["architectures"][4].update(accuracy=1.5)),
            "accuracy must be from 0 to 1, got 1.5",
        ),
        (broken(lambda c: c.update(images=-1)), "images must be at least 1, got -1"),
        (
            broken(lambda c: [row.update(on_front=False) for row in c["architectures"]]),
            "must have an architecture on the front, got none",
        ),
        (
            broken(lambda c: c["architectures"][4].update(test=93.0)),
            "must all have test or none, got 1 of 12",
        ),
        (
            broken(lambda c: c["architectures"][4].update(cost=float("nan"))),
            "must be JSON: NaN is no number",
        ),
    ],
)
def test_a_broken_file_is_one_clear_error(runs, text, message):
    folder = runs.make()
    (folder / "pareto.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        RunFolder.read(folder)
    assert "pareto.json" in str(caught.value) and "\n" not in str(caught.value)
