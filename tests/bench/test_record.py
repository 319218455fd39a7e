"""Result files: written, read back, extended, refused."""

import json

import pytest

from pyfast_nas.bench import Row, read, stamp, write
from pyfast_nas.bench.timing import Timing
from pyfast_nas.errors import DataError


def row(provider, median=1.0, case="c", **more):
    values = {"operator": "edge", "case": case, "mode": "both", "shape": [2, 4], "threads": 1}
    timing = Timing(median, median, median) if median else None
    return Row(**values | more, provider=provider, dtype="float32", timing=timing)


def test_rows_carry_what_they_were_measured_on(tmp_path):
    write(
        stamp([row("eager", kept_bytes=5), row("compile", None, note="too slow")]), tmp_path / "f"
    )
    first, second = read(tmp_path / "f")
    assert first["timing"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0} and first["kept_bytes"] == 5
    assert {"device", "torch", "pyfast_nas", "commit", "threads"} <= first.keys()
    assert second["timing"] is None and second["note"] == "too slow"
    assert "resident_bytes" not in first and "note" not in first


def test_a_case_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "results.json"
    write(stamp([row("eager"), row("compile"), row("eager", case="other")]), path)
    write(stamp([row("fused", 2.0), row("eager", 3.0)]), path)
    found = [(r["case"], r["provider"], r["timing"]["p50"]) for r in read(path)]
    # What was timed beside another session's eager does not stay.
    assert found == [("c", "fused", 2.0), ("c", "eager", 3.0), ("other", "eager", 1.0)]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "else", "rows": []}', '{"format": "x", "rows": [1]}']
)
def test_other_files_are_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text.replace('"x"', '"pyfast_nas.benchmarks"'))
    before = path.read_text()
    with pytest.raises(DataError, match=r"results\.json must"):
        write(stamp([row("eager")]), path)
    assert path.read_text() == before


def test_the_file_is_json_with_a_row_a_line(tmp_path):
    path = tmp_path / "results.json"
    write(stamp([row("a"), row("b")]), path)
    assert json.loads(path.read_text())["version"] == 1
    assert len(path.read_text().splitlines()) == 4
