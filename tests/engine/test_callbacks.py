"""Callbacks at the end of an epoch: they look, add numbers, end a search or send it back."""

import json

import pytest
import torch

from pyfast_nas.algorithms import DARTS
from pyfast_nas.cli.main import main
from pyfast_nas.data import toy_data
from pyfast_nas.engine import search
from pyfast_nas.engine.callbacks import GoBack, Stop
from pyfast_nas.spaces import Genotype
from pyfast_nas.viz.report import render_report
from pyfast_nas.viz.run_folder import RunFolder


def run(callback, **options):
    options = {"epochs": 4, "batch_size": 128, "log_interval": 3, **options}
    return search(
        "toy", toy_data(512), algorithm=DARTS(alpha_lr=0.1), callbacks=[callback], **options
    )


def test_it_sees_every_epoch_and_its_numbers_are_written(tmp_path):
    seen = []

    def look(end):
        seen.append((end.epoch, end.algorithm.steps, end.valid[0].shape[0]))
        end.row["mine"] = 2.0 * end.epoch

    result = run(look, output=tmp_path / "run")
    assert seen == [(1, 2, 128), (2, 4, 128), (3, 6, 128), (4, 8, 128)]
    assert [row["mine"] for row in result.history] == [2.0, 4.0, 6.0, 8.0]
    assert RunFolder.read(tmp_path / "run").series("mine")[-1] == (4, 8.0)


def test_looking_changes_nothing():
    plain, watched = run(lambda end: None), run(lambda end: None)
    assert all(torch.equal(plain.alphas[t], watched.alphas[t]) for t in plain.alphas)


def test_stop_returns_the_architecture_of_an_earlier_epoch(tmp_path):
    seen = {}

    def look(end):
        seen[end.epoch] = {t: a.clone() for t, a in end.algorithm.alphas.items()}
        return Stop(epoch=1, reason="enough") if end.epoch == 3 else None

    result = run(look, output=tmp_path / "run")
    assert result.epoch == 1 and len(result.history) == 3 and "enough" in result.warnings
    assert all(torch.equal(result.alphas[t], seen[1][t]) for t in result.alphas)
    assert not all(torch.equal(result.alphas[t], seen[3][t]) for t in result.alphas)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["epoch"] == 1 and "epoch 1 of 3" in record["rule"]


def test_the_initial_architecture_can_be_returned():
    first = run(lambda end: None, epochs=0)
    result = run(lambda end: Stop(epoch=0, reason="no good"))
    assert result.epoch == 0
    assert all(torch.equal(result.alphas[t], first.alphas[t]) for t in result.alphas)


def test_a_search_that_goes_back_writes_those_epochs_again(tmp_path):
    back = iter([2])
    epochs = []

    def look(end):
        epochs.append(end.epoch)
        return GoBack(epoch=next(back), reason="again") if epochs == [1, 2, 3] else None

    result = run(look, output=tmp_path / "run")
    assert epochs == [1, 2, 3, 3, 4]
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4] and "again" in result.warnings
    written = (tmp_path / "run" / "alphas.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in written] == [0, 1, 2, 3, 3, 4]
    folder = RunFolder.read(tmp_path / "run")
    assert [line["epoch"] for line in folder.epochs] == [1, 2, 3, 4]
    assert [line["epoch"] for line in folder.alphas] == [0, 1, 2, 3, 4]
    assert [line["epoch"] for line in folder.timing] == [1, 2, 3, 4]
    assert [line["step"] for line in folder.steps] == sorted({s["step"] for s in folder.steps})


def test_the_first_to_speak_decides():
    callbacks = [lambda end: Stop(epoch=1, reason="one"), lambda end: Stop(epoch=0, reason="two")]
    result = search("toy", toy_data(512), epochs=2, batch_size=128, callbacks=callbacks)
    assert result.epoch == 1 and set(result.warnings) >= {"one", "two"}


def test_what_a_callback_raises_reaches_the_caller():
    def look(end):
        raise RuntimeError("of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        run(look)


def test_what_reads_the_folder_sees_the_epoch_that_was_chosen(tmp_path, capsys):
    """Not the last one: in the numbers, in the frames around them, in what is derived again."""
    folder = tmp_path / "run"
    result = run(
        lambda end: Stop(epoch=1, reason="enough") if end.epoch == 3 else None,
        output=folder,
    )
    files = RunFolder.read(folder)
    assert result.epoch == files.epoch == 1
    epoch, rows = files.final_probabilities("cell")
    want = torch.softmax(result.alphas["cell"].double(), 1)
    assert epoch == 1
    torch.testing.assert_close(torch.tensor(rows, dtype=torch.float64), want)
    assert files.in_the_end("entropy") == result.history[0]["entropy"]
    assert result.history[0]["entropy"] != result.history[-1]["entropy"]
    assert main(["derive", str(folder), "--json"]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == result.genotype
    assert "cell, epoch 1</figcaption>" in render_report(files)
