"""``pyfast-nas bench`` on tiny sizes: tables, JSON and result files, read back."""

import json
import re

import pytest
import torch

from pyfast_nas.bench import read, settings
from pyfast_nas.cli.main import main

TINY = ["bench", "--batch-size", "2", "--seconds", "0.001", "--rounds", "2"]
NETWORK = ["--channels", "2", "--cells", "1", "--blocks", "1", "--no-memory"]


@pytest.fixture(autouse=True)
def small_stages(monkeypatch):
    """Edges, nodes and cells of one small size in place of the three of CIFAR."""
    monkeypatch.setattr(settings, "STAGES", ((4, 8),))


def test_edges_as_a_table(capsys):
    assert main([*TINY, "--rivals", "eager"]) == 0
    captured = capsys.readouterr()
    for words in (
        r"threads, torch 2\.",
        r"kernels: .*mixed_sum",
        r"edge: \[2, 4, 8, 8\], stride 1",
        r"edge: \[2, 4, 8, 8\], stride 2",
        r"node: \[2, 4, 8, 8\], stride 2",
        r"forward +x ours +fwd \+ bwd +x ours +saved",
        r"eager +[\d.]+ [um]s +[\d.]+ +[\d.]+ [um]s",
        r"fused +[\d.]+ [um]s +1\.00 +[\d.]+ [um]s +1\.00",
    ):
        assert re.search(words, captured.out), words
    assert "checking against float64" in captured.err
    # No case has the size of a target, so none is claimed.
    assert "targets" not in captured.out


def test_rows_as_json_and_in_the_file_of_the_device(tmp_path, capsys):
    before = torch.get_num_threads()
    words = [*TINY, "--rivals", "eager", "--threads", "1", "--json", "--output", str(tmp_path)]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert torch.get_num_threads() == before and {row["threads"] for row in rows} == {1}
    assert {row["provider"] for row in rows} == {"eager", "fused", "fused-nchw"}
    assert all(row["timing"]["p20"] <= row["timing"]["p50"] <= row["timing"]["p80"] for row in rows)
    (path,) = tmp_path.glob("*.json")
    key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
    assert sorted(map(key, read(path))) == sorted(map(key, rows))


def test_supernets(capsys):
    assert main([*TINY, *NETWORK, "--what", "supernet", "--rivals", "eager", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = {"DARTS, C = 2, 1 cells, batch 2", "NAS-Bench-201, C = 2, N = 1, batch 2"}
    assert {row["case"] for row in rows} == names
    assert all("resident_bytes" not in row for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--what everything", 2, "--what must be one of .*supernet.*, got 'everything'"),
        ("--rivals jax", 2, "--rivals must be one of .*eager.*, got 'jax'"),
        ("--batch-size 0", 2, "--batch-size must be at least 1, got 0"),
        ("--device tpu", 2, "--device must be one of .*cuda.*, got 'tpu'"),
        ("--seconds 0", 2, "--seconds must be a finite number greater than 0"),
        ("--seconds nan", 2, "--seconds must be a finite number greater than 0"),
        ("--rounds 1", 2, "--rounds must be at least 2, got 1"),
        ("--threads 0", 2, "--threads must be at least 1"),
        ("--channels 3", 2, "--channels must be even, got 3"),
        ("--batchsize 3", 2, "did you mean '--batch-size'"),
        ("--output notes.json", 3, "notes.json must be a result file"),
    ],
)
def test_refusals_come_before_any_measurement(words, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text("not JSON")
    assert main(["bench", *words.split()]) == code
    captured = capsys.readouterr()
    assert re.search(message, captured.err.splitlines()[0]), captured.err
    assert not captured.out and "checking" not in captured.err
    assert (tmp_path / "notes.json").read_text() == "not JSON"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys):
    assert main([*TINY, "--device", "cuda"]) == 2
    line, *_ = capsys.readouterr().err.splitlines()
    assert line == "error: bench: --device must be cpu where torch sees no GPU, got cuda"


def test_a_wrong_result_ends_the_bench_in_one_line(capsys, monkeypatch):
    from pyfast_nas.bench import workload

    monkeypatch.setattr(workload, "relative_error", lambda got, want: 0.5)
    assert main([*TINY, "--rivals", "eager"]) == 1
    captured = capsys.readouterr()
    assert "must compute the outcome of [2, 4, 8, 8], stride 1" in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("error: ")
