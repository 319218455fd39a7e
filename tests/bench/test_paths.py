"""Steps against the number of sub-graphs: rows on a tiny supernet, memory, table and picture."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import picture, tables
from pyfast_nas.bench import Row, bench, child, paths, session, stamp, write
from pyfast_nas.bench.networks import DARTSCase
from pyfast_nas.bench.steps import MODES, PATHS, StepCase, path_search
from pyfast_nas.bench.summary import mebibytes
from pyfast_nas.bench.targets import SUPERNET
from pyfast_nas.bench.timing import Timing
from pyfast_nas.bench.workload import WrongResultError

ROWS = {"eager", "fused", *(path_search(mode, k) for mode in MODES for k in PATHS)}


def silent(line):
    """Say nothing."""


def test_rows_and_what_they_weigh(quick):
    case = StepCase(net=DARTSCase(batch=4, channels=2, cells=1))
    rows = paths.bench_paths(case, quick, silent, counts=(1, 2))
    found = {row.provider: row for row in rows}
    assert set(found) == {"eager", "fused", *(path_search(m, k) for m in MODES for k in (1, 2))}
    assert all(row.operator == "paths" and row.mode == "step" for row in rows)
    assert all(row.timing.p50 > 0 and row.images == 4 for row in rows)
    peaks = {name: row.peak_bytes for name, row in found.items()}
    one, two = (peaks[path_search("accumulate", k)] for k in (1, 2))
    assert 0 < two < 1.2 * one
    one, two = (peaks[path_search("joint", k)] for k in (1, 2))
    assert 1.3 * one < two < peaks["eager"]


def test_the_command_knows_them(quick, monkeypatch):
    seen = []
    monkeypatch.setattr(session, "bench_paths", lambda case, *_: seen.append(case.net) or [])
    assert list(bench("paths", quick)) == [[]]
    assert seen == [DARTSCase(batch=2, channels=2, cells=1)]


def test_a_step_that_moves_elsewhere_is_not_timed(quick, monkeypatch):
    monkeypatch.setattr(paths, "measure", lambda *_, **__: pytest.fail("the clock was started"))
    right = StepCase.stepper

    def wrong(self, provider, search="first-order DARTS", *rest, **named):
        if search == path_search("joint", 1):
            search = path_search("joint", 2)
        return right(self, provider, search, *rest, **named)

    monkeypatch.setattr(StepCase, "stepper", wrong)
    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    with pytest.raises(WrongResultError, match="joint, K = 1 must compute"):
        paths.bench_paths(case, quick, silent)


@pytest.mark.slow  # a fresh process imports torch
def test_resident_memory_of_a_first_step():
    net = DARTSCase(batch=8, channels=4, cells=1)
    assert child.resident_step_bytes(net, "fused", path_search("joint", 8)) > 1 << 20


@pytest.fixture
def folder(tmp_path):
    """A result file with every row, times and bytes made up: 100 K MiB joint, 100 accumulated."""
    sizes = {"eager": 1600, "fused": 900}
    sizes |= {path_search(m, k): 100 * (k if m == "joint" else 1) for m in MODES for k in PATHS}
    rows = [
        Row(
            operator="paths",
            case=SUPERNET,
            mode="step",
            provider=name,
            shape=[16, 3, 32, 32],
            dtype="float32",
            threads=2,
            timing=Timing(900.0, 1000.0 * size, 1100.0),
            peak_bytes=size << 20,
            resident_bytes=2 * size << 20,
        )
        for name, size in sizes.items()
    ]
    write(stamp(rows), tmp_path / "machine.json")
    return tmp_path


def test_table_and_picture(folder):
    page = tables.page(folder)
    assert "### paths" in page
    assert re.search(r"\| joint, K = 4 \| 400\.0 ms \| 0\.44 \| 400 \| 800 \|", page)
    assert re.search(r"\| accumulate, K = 8 \| 100\.0 ms \| 0\.11 \| 100 \| 200 \|", page)
    drawn = picture.paths_picture(folder)
    root = ElementTree.fromstring(drawn)
    texts = ["".join(text.itertext()) for text in root.findall(".//{*}text")]
    assert {
        "DARTS in PyTorch",
        "joint, K = 8",
        mebibytes(3200 << 20) + " MiB",
        "200 MiB",
    } <= set(texts)
    assert len(root.findall(".//{*}rect")) == 1 + 2 * len(ROWS)


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert picture.paths_picture(tmp_path) == ""
