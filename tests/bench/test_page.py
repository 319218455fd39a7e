"""The page and the picture of the documentation: made from the result files, true to them."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import compare, picture, tables
from pyfast_nas.bench import Row, stamp, write
from pyfast_nas.bench.profile import NODES, OUTSIDE, REST, WATCHED
from pyfast_nas.bench.record import on_gpu, read
from pyfast_nas.bench.summary import by_case, table
from pyfast_nas.bench.targets import FOREIGN, SUPERNET, figures
from pyfast_nas.bench.timing import Timing

DOCS = Path(__file__).resolve().parents[2] / "docs"


def row(operator, case, mode, provider, milliseconds, **more):
    median = 1e3 * milliseconds if milliseconds else None
    timing = Timing(0.9 * median, median, 1.1 * median) if median else None
    common = {"shape": [16, 3, 32, 32], "dtype": "float32", "threads": 2}
    return Row(
        operator=operator, case=case, mode=mode, provider=provider, timing=timing, **common | more
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Result files with every kind of row."""
    mebibyte = 1 << 20
    rows = [
        row("supernet", SUPERNET, mode, name, time, images=16, kept_bytes=16 * kept * mebibyte,
            resident_bytes=kept * mebibyte, error=2e-6)
        for mode in ("forward", "both")
        for name, time, kept in (("eager", 2000, 120), ("channels-last", 1000, 120),
                                 ("fused", 400, 9))
    ]  # fmt: skip
    rows += [
        row("supernet", SUPERNET, "both", "compile-cell", None, note="not done after 600 s"),
        row("supernet", FOREIGN, "both", "eager", 90),
        row("supernet", FOREIGN, "both", "accelerate", 30),
        row("step", f"MSG-DAS, K = 2: {SUPERNET}", "step", "eager", 4000),
        row("step", f"MSG-DAS, K = 2: {SUPERNET}", "step", "fused", 400),
        row("edge", "[16, 16, 32, 32], stride 1", "both", "eager", 40, images=16, kept_bytes=480),
        row("edge", "[16, 16, 32, 32], stride 1", "both", "fused", 8, images=16, kept_bytes=32),
        row("mixed_sum", "8 x [64x16x32x32]", "both", "loop", 6, bytes_moved=9),
        row("mixed_sum", "8 x [64x16x32x32]", "both", "fused", 2, bytes_moved=9),
        row("profile", SUPERNET, "both", "fused nodes, forward", 40, bytes_moved=2_000_000,
            flops=8_000_000_000, depthwise_flops=0, product_share=0.7, copy_share=0.01),
        row("profile", SUPERNET, "both", "aten::add", 10),
        row("profile", SUPERNET, "both", "all, watched", 80),
    ]  # fmt: skip
    write(stamp(rows), tmp_path / "machine.json")
    return tmp_path


def test_page_and_picture_are_those_of_the_committed_results():
    # Run `python -m benchmarks.tables` after a measurement.
    assert (DOCS / "benchmarks.md").read_text() == tables.page()
    assert (DOCS / "benchmarks.svg").read_text() == picture.picture()
    if drawn := picture.paths_picture():
        assert (DOCS / "paths.svg").read_text() == drawn


README = {  # start of a line -> case and mode of its figures
    "DARTS supernet (C = 16, 8 cells), batch 16, forward + backward": (SUPERNET, "both"),
    "a search step: first-order DARTS": (f"first-order DARTS: {SUPERNET}", "step"),
    "a search step: MSG-DAS, two paths": (f"MSG-DAS, K = 2: {SUPERNET}", "step"),
    "NAS-Bench-201 supernet after": (FOREIGN, "both"),
    "`mixed_sum`, forward + backward": ("8 x [64x16x32x32]", "both"),
    "`gumbel_topk`, 2 of 16 candidates": ("65536x16_k2", "forward"),
}


@pytest.mark.parametrize("start", README)
def test_figures_of_the_readme_are_those_of_the_committed_results(start):
    case, mode = README[start]
    found = [
        row
        for row in read(DOCS.parent / "benchmarks/results/intel-xeon-processor.json")
        if (row["case"], row["mode"], row["threads"]) == (case, mode, 2) and row["timing"]
        if row["operator"] != "profile"  # parts of a pass
    ]
    medians = [row["timing"]["p50"] / 1e6 for row in found]
    (line,) = (one for one in (DOCS.parent / "README.md").read_text().splitlines() if start in one)
    _, ours, rivals, _ = (cell.strip() for cell in line.removeprefix("|").split("|"))
    own = min(medians)
    assert ours == _seconds(own)
    figures = re.findall(r"([\d.]+ m?s) \(([\d.]+) x\)", rivals)
    assert figures
    for time, ratio in figures:
        (median,) = {m for m in medians if _seconds(m) == time}
        assert float(ratio) == round(median / own, len(ratio.partition(".")[2])), (time, ratio)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.1f} ms"


def test_page_shows_ratios_memory_and_who_did_not_finish(folder):
    page = tables.page(folder)
    for line in (
        r"\| eager \| 2\.00 s \| 5\.00 \| 2\.00 s \| 5\.00 \| 120 \| 120 \| 2e-06 \|",
        r"\| fused \| .* \| 1\.00 \| 9 \| 9 \| 2e-06 \|",
        r"\| compile-cell \| .*not done after 600 s \|",
        r"\| \[16, 16, 32, 32\], stride 1 .* 40\.0 ms \| 8\.00 ms \| 5\.00 \|",
        r"\| 8 x \[64x16x32x32\] .* 6\.00 ms \| 2\.00 ms \| 3\.00 \|",
        r"\| fused nodes, forward \| 40\.0 ms \| 50\.0 % \| 8\.00 \|.*\| 70\.0 % .* arithmetic \|",
        r"\| aten::add \| 10\.0 ms \| 12\.5 % \|  \|",
    ):
        assert re.search(line, page), line
    # Every line of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_what_the_page_says_of_the_profile_is_what_was_measured():
    for rows in map(tables.read, tables.FOLDER.glob("results/*.json")):
        if on_gpu(rows):
            continue  # nothing is said of it
        profiles = {
            case: {row["provider"]: row for row in rows}
            for (operator, case, *_), rows in by_case(rows).items()
            if operator == "profile"
        }
        nodes = {case: [found[name] for name in NODES] for case, found in profiles.items()}
        for case, (forward, backward) in nodes.items():
            found, median = profiles[case], lambda row: row["timing"]["p50"]
            assert median(backward) > median(forward)
            assert median(forward) + median(backward) > median(found[WATCHED]) / 2
            for node in (forward, backward):
                assert node["product_share"] > node["copy_share"] < 0.25
            others = [r for name, r in found.items() if "::" in name or name == REST]
            assert median(found[OUTSIDE]) > max(map(median, others))
        if {SUPERNET, FOREIGN} <= nodes.keys():
            for ours, others in zip(nodes[SUPERNET], nodes[FOREIGN], strict=True):
                assert ours["depthwise_flops"] > others["depthwise_flops"] == 0
                assert ours["product_share"] < others["product_share"]


def test_targets_are_told_as_they_are(folder):
    lines = {line[0]: line[1:] for line in figures(tables.read(folder / "machine.json"))}
    against_eager = lines["DARTS supernet, forward + backward, against eager NCHW"]
    assert against_eager == ["5.00 x", "5 x", "10 x", "met"]
    assert lines["against eager channels-last"][::3] == ["2.50 x", "missed"]
    assert lines["against the best torch.compile setting that runs"][::3] == ["", "not measured"]
    assert lines["saved for backward, an image"][::3] == ["9.00 MiB", "missed"]
    assert lines["MSG-DAS step, K = 2, against the eager DARTS step"][::3] == ["10.00 x", "met"]


def test_a_gpu_has_marks_and_cases_of_its_own(folder):
    assert "## What waits for a GPU" in tables.page(folder)
    larger = SUPERNET.replace("batch 16", "batch 64")
    times = {"eager": 30, "channels-last": 20, "fused": 5}
    made = [
        row("supernet", larger, "both", name, time, images=64, launches=100 * time, threads=1)
        for name, time in times.items()
    ]
    records = [record | {"device": "A GPU", "driver": "580.1"} for record in stamp(made)]
    lines = {line[0]: line[1:] for line in figures(records)}
    against_eager = lines["DARTS supernet, forward + backward, against eager NCHW"]
    assert against_eager == ["6.00 x", "5 x", "12 x", "met"]
    assert lines["against eager channels-last"] == ["4.00 x", "4 x", "8 x", "met"]
    write(records, folder / "a-gpu.json")
    page = tables.page(folder)
    assert "## A GPU" in page and "What waits for a GPU" not in page
    assert re.search(r"\| fused \| 5\.00 ms \| 1\.00 \| 500 \|", page)
    assert re.search(r"torch .*, driver 580\.1, commit", page)
    assert page.count("They are bound by arithmetic") == 1


def test_picture_has_a_bar_for_everything_timed(folder):
    drawn = picture.picture(folder)
    root = ElementTree.fromstring(drawn)
    texts = ["".join(text.itertext()) for text in root.findall(".//{*}text")]
    assert "2.00 s  (5.0 x)" in texts and "120 MiB  (13.3 x)" in texts and "9 MiB" in texts
    assert texts.count("pyfast_nas") == 4 and "pyfast_nas.accelerate" in texts
    assert len(root.findall(".//{*}rect")) == 1 + 3 + 3 + 2 + 2 + 2
    assert (
        "prefers-color-scheme:dark" in drawn and "http" not in drawn.replace("www.w3.org", "")[40:]
    )


def test_table_puts_ours_last_and_the_unfinished_first(folder):
    rows = [r for r in tables.read(folder / "machine.json") if r["operator"] == "supernet"]
    rows = [r for r in rows if r["case"] == SUPERNET]
    assert [line[0] for line in table(rows)[1]] == [
        "compile-cell",
        "eager",
        "channels-last",
        "fused",
    ]


def test_compare_tells_noise_from_change(folder, tmp_path):
    faster = tmp_path / "faster.json"
    case = "8 x [64x16x32x32]"
    times = {"loop": 6.5, "fused": 1.0}
    rows = [row("mixed_sum", case, "both", *at, bytes_moved=9) for at in times.items()]
    write(stamp(rows), faster)
    lines = compare.compare(folder / "machine.json", faster).splitlines()
    assert any("| loop |" in line and line.endswith("noise |") for line in lines)
    assert any("| fused |" in line and "2.00 | faster |" in line for line in lines)
    assert lines[-1].endswith("rows are in one file only.")
