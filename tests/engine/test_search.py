"""The search loop: files, repeatability, what it leaves alone, and how it fails."""

import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyfast_nas.algorithms import ALGORITHMS, DARTS
from pyfast_nas.data import load_data, synthetic_images, toy_data
from pyfast_nas.engine import SearchConfig, search
from pyfast_nas.errors import ConfigError, DataError, DivergenceError
from pyfast_nas.spaces import DARTS as DARTSSpace
from pyfast_nas.spaces import Genotype, Toy

REPEATED = ("genotype.json", "alphas.jsonl", "metrics.jsonl", "evaluation.json", "result.json")


class Recorder:
    """A display that keeps every event."""

    def __init__(self):
        self.events = []

    def update(self, event):
        self.events.append(dict(event))

    def of(self, phase, kind):
        return [e for e in self.events if (e["phase"], e["kind"]) == (phase, kind)]


class Scripted(DARTS):
    """DARTS whose metrics and alphas can be spoilt at a chosen step."""

    spoil = None

    def step(self, train, valid):
        metrics = super().step(train, valid)
        if self.spoil is not None:
            self.spoil(self, metrics)
        return metrics


def scripted(spoil):
    algorithm = Scripted()
    algorithm.spoil = spoil
    return algorithm


def run(output=None, **options):
    options = {"epochs": 2, "batch_size": 64, "log_interval": 3, "algorithm": "darts", **options}
    return search("toy", toy_data(1024), output=output, **options)


def lines(path):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run with comparison, looked at by several tests."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    recorder = Recorder()
    options = {"compare": 2, "compare_seeds": 2, "train_epochs": 1, "progress": recorder}
    return run(folder, **options), folder, recorder


class TestFiles:
    def test_folder_holds_what_it_should(self, finished):
        _, folder, _ = finished
        assert sorted(path.name for path in folder.iterdir()) == [
            "alphas.jsonl",
            "config.json",
            "evaluation.json",
            "genotype.json",
            "metrics.jsonl",
            "result.json",
            "timing.jsonl",
        ]

    @pytest.mark.promise("B5")
    def test_config(self, finished):
        _, folder, _ = finished
        config = json.loads((folder / "config.json").read_text())
        assert config["package"] == "pyfast_nas"
        assert config["algorithm"]["name"] == "darts" and "alpha_lr" in config["algorithm"]
        assert config["space"] == {"name": "toy"}
        assert config["data"]["name"] == "toy" and len(config["data"]["fingerprint"]) == 64
        data = load_data("toy")
        scaling = [config["data"][key] for key in ("scale", "mean", "std")]
        assert scaling == [data.scale, list(data.mean), list(data.std)]
        assert (config["data"]["train"], config["data"]["valid"]) == (512, 512)
        assert (config["data"]["test"], config["data"]["image"]) == (204, [8])
        assert config["search"]["epochs"] == 2 and config["search"]["compare"] == 2
        assert set(config["versions"]) == {"python", "torch", "pyfast_nas"}
        assert set(config["kernels"].values()) <= {"compiled", "reference"}
        assert {"mixed_sum", "gumbel_topk"} <= set(config["kernels"])

    def test_metrics(self, finished):
        result, folder, _ = finished
        rows = lines(folder / "metrics.jsonl")
        steps = [row for row in rows if row["kind"] == "step"]
        assert [row["step"] for row in steps] == [3, 6, 8, 9, 12, 15, 16]
        epochs = [row for row in rows if row["kind"] == "epoch"]
        assert [row["epoch"] for row in epochs] == [1, 2]
        wanted = {"train/loss", "train/accuracy", "valid/loss", "valid/accuracy"}
        assert wanted | {"entropy", "margin", "skip_count"} <= set(epochs[0])
        assert 0 <= epochs[0]["entropy"] <= 1 and epochs[0]["skip_count"] == {"cell": 0}
        assert tuple(epochs) == result.history
        # An epoch's mean is over its steps, not over its lines.
        of_first = [(row["train/loss"], n) for row, n in zip(steps, (3, 3, 2), strict=False)]
        mean = sum(loss * n for loss, n in of_first) / 8
        assert epochs[0]["train/loss"] == pytest.approx(mean, rel=1e-12)

    def test_alphas(self, finished):
        result, folder, _ = finished
        rows = lines(folder / "alphas.jsonl")
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        last = torch.tensor(rows[-1]["alphas"]["cell"])
        assert torch.equal(last, result.alphas["cell"])
        assert not torch.equal(torch.tensor(rows[0]["alphas"]["cell"]), last)

    def test_times_stand_in_one_file_only(self, finished):
        _, folder, _ = finished
        rows = lines(folder / "timing.jsonl")
        assert [row["kind"] for row in rows] == ["epoch", "epoch", "total", "total"]
        assert [row["phase"] for row in rows[2:]] == ["search", "evaluation"]
        for row in rows[:2]:
            assert row["seconds"] > 0 and row["memory_bytes"] > 10**7
            assert row["images_per_second"] == pytest.approx(128 * row["steps_per_second"])
        for name in REPEATED:
            assert "second" not in (folder / name).read_text()

    @pytest.mark.promise("R1")
    def test_result_holds_everything_about_the_result(self, finished):
        result, folder, _ = finished
        record = json.loads((folder / "result.json").read_text())
        assert Genotype.from_dict(record["genotype"]) == result.genotype
        assert record["epoch"] == 2 and "last epoch" in record["rule"] and record["trained"]
        rows = record["probabilities"]["cell"]
        assert len(rows) == 2 and all(abs(sum(row) - 1) < 1e-12 for row in rows)
        wanted = {"margin", "entropy", "skip_count", "warnings"}
        wanted |= {"algorithm", "space", "search", "versions", "kernels", "data"}
        assert wanted <= set(record)

    def test_genotype_reads_back(self, finished):
        result, folder, _ = finished
        assert Genotype.load(folder / "genotype.json") == result.genotype

    def test_evaluation(self, finished):
        result, folder, _ = finished
        record = json.loads((folder / "evaluation.json").read_text())
        assert record == result.evaluation
        assert [row["seed"] for row in record["searched"]] == [0, 1]
        assert [row["seed"] for row in record["random"]] == [0, 1]
        for row in record["searched"] + record["random"]:
            assert 0 <= row["accuracy"] <= 1 and row["parameters"] == 8
        for row in record["random"]:
            Toy().check(Genotype.from_dict(row["genotype"]))
        assert record["verdict"] in {"better", "worse", "tie"} and record["sentence"]

    def test_events(self, finished):
        result, folder, recorder = finished
        (start,) = recorder.of("search", "start")
        assert start["config"] == json.loads((folder / "config.json").read_text())
        assert (start["epochs"], start["steps_per_epoch"], start["parameters"]) == (2, 8, 16)
        steps = recorder.of("search", "step")
        assert [event["step"] for event in steps] == [3, 6, 8, 9, 12, 15, 16]
        assert steps[-1]["seconds_left"] == 0 < steps[0]["seconds_left"]
        assert all(event["steps"] == 16 for event in steps)
        epochs = recorder.of("search", "epoch")
        for event, row in zip(epochs, result.history, strict=True):
            assert row.items() <= event.items() and event["memory_bytes"] > 0
        networks = recorder.of("evaluation", "network")
        assert [event["group"] for event in networks] == ["searched"] * 2 + ["random"] * 2
        assert [event["index"] for event in networks] == [0, 1, 2, 3]
        assert recorder.of("evaluation", "step")
        (end,) = recorder.of("evaluation", "end")
        assert end["verdict"] == result.evaluation["verdict"]
        assert not recorder.of("train", "step"), "trainings of a comparison speak as one phase"

    def test_build_makes_the_plain_network(self, finished):
        result, _, _ = finished
        assert result.build()(torch.ones(2, 8)).shape == (2, 2)


@pytest.mark.promise("D5")
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_one_seed_one_result_to_the_byte(name, tmp_path):
    options = {"algorithm": name, "compare": 1, "compare_seeds": 1, "train_epochs": 1}
    torch.manual_seed(1)
    run(tmp_path / "a", **options)
    torch.manual_seed(2)
    run(tmp_path / "b", **options)
    run(tmp_path / "c", **options, seed=1)
    for file in REPEATED:
        one = (tmp_path / "a" / file).read_text().replace('/a"', '/x"')
        assert (tmp_path / "b" / file).read_text().replace('/b"', '/x"') == one, file
    alphas = [(tmp_path / run / "alphas.jsonl").read_text() for run in "ac"]
    assert alphas[0] != alphas[1], "another seed, another search"


CHILD = """
import sys
from pyfast_nas.data import synthetic_images
from pyfast_nas.engine import search
from pyfast_nas.spaces import DARTS
for algorithm in ("darts", "msg-das"):
    search(
        DARTS(channels=2, cells=2, nodes=2), synthetic_images(64, size=8), algorithm=algorithm,
        epochs=2, batch_size=8, log_interval=2, seed=3, device="cpu",
        output=f"{sys.argv[1]}-{algorithm}", compare=1, compare_seeds=1, train_epochs=1,
        train_channels=2, train_cells=2, train_batch_size=16,
    )
"""


@pytest.mark.promise("D5")
def test_two_processes_agree_to_the_byte(tmp_path):
    for folder in ("a", "b"):
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / folder)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=55)
    for name in ("darts", "msg-das"):
        for file in REPEATED[:-1]:
            one, two = (tmp_path / f"{folder}-{name}" / file for folder in ("a", "b"))
            assert one.read_bytes() == two.read_bytes(), (name, file)


def test_global_state_is_left_as_it_was():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    def state():
        numpy = np.random.get_state()[1].tolist()
        flags = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
        return random.getstate(), numpy, torch.get_rng_state().tolist(), flags

    before = state()
    run(compare=1, train_epochs=1)
    assert state() == before
    with pytest.raises(ZeroDivisionError):
        run(algorithm=scripted(lambda *_: 1 / 0))
    assert state() == before


def test_every_algorithm_moves_or_keeps_its_alphas_and_derives():
    for name in ALGORITHMS:
        result = run(algorithm=name)
        Toy().check(result.genotype)
        assert result.trained and result.warnings == ()


def test_no_epoch_gives_the_start_genotype_marked_untrained(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "pyfast_nas"):
        result = run(tmp_path / "a", epochs=0)
    assert not result.trained and result.history == ()
    assert "initial alphas" in result.warnings[0] and "initial alphas" in caplog.text
    record = json.loads((tmp_path / "a" / "result.json").read_text())
    assert record["trained"] is False and record["epoch"] == 0
    (row,) = lines(tmp_path / "a" / "alphas.jsonl")
    assert torch.equal(torch.tensor(row["alphas"]["cell"]), result.alphas["cell"])


@pytest.mark.promise("P4")
def test_divergence_stops_at_the_logging_interval_and_names_the_step(tmp_path):
    def spoil(algorithm, metrics):
        if algorithm.steps == 4:
            metrics["train/loss"] = torch.tensor(float("nan"))

    recorder = Recorder()
    with pytest.raises(DivergenceError, match="train/loss must stay finite, got nan at step 4"):
        run(tmp_path / "a", algorithm=scripted(spoil), progress=recorder)
    assert [event["step"] for event in recorder.of("search", "step")] == [3]
    assert not (tmp_path / "a" / "genotype.json").exists(), "never a genotype from NaN"
    assert [row["step"] for row in lines(tmp_path / "a" / "metrics.jsonl")] == [3]


@pytest.mark.promise("P4")
def test_alphas_that_diverge_are_caught_with_finite_losses():
    def spoil(algorithm, metrics):
        with torch.no_grad():
            algorithm.supernet.alphas["cell"][1, 2] = float("nan")
        for key in metrics:
            metrics[key] = torch.tensor(1.0)

    with pytest.raises((DivergenceError, ValueError), match=r"row 1|NaN|finite"):
        run(algorithm=scripted(spoil))


@pytest.mark.promise("S9")
def test_dead_search_warns_once_and_marks_the_result(tmp_path, caplog):
    class Detached(Scripted):
        def _update_alphas(self, gradients):
            return super()._update_alphas([torch.zeros_like(gradient) for gradient in gradients])

    with caplog.at_level(logging.WARNING, "pyfast_nas"):
        result = run(tmp_path / "a", algorithm=Detached(alpha_decay=0.0), epochs=8)
    assert any("did not move" in sentence for sentence in result.warnings)
    assert any("exactly zero" in sentence for sentence in result.warnings)
    assert len(caplog.records) == 2, "each is logged once, though its numbers grow"
    assert any("in 64 architecture steps" in sentence for sentence in result.warnings)
    record = json.loads((tmp_path / "a" / "result.json").read_text())
    assert record["warnings"] == list(result.warnings)
    assert lines(tmp_path / "a" / "metrics.jsonl")[-1]["warnings"]


def collapse(algorithm, metrics):
    names = algorithm.space.operations
    with torch.no_grad():
        for alphas in algorithm.supernet.alphas.values():
            alphas[:, names.index("skip_connect")] = 5.0


@pytest.mark.promise("S10")
@pytest.mark.parametrize("stop", [False, True])
def test_collapse_warns_and_may_stop(stop, tmp_path):
    result = search(
        DARTSSpace(channels=2, cells=1, nodes=2),
        synthetic_images(32, size=8),
        algorithm=scripted(collapse),
        epochs=3,
        batch_size=16,
        compare=0,
        stop_on_collapse=stop,
        output=tmp_path / "a",
    )
    assert any("'normal' cell has collapsed: 4 of its 4" in text for text in result.warnings)
    assert len(result.history) == (1 if stop else 3)
    assert result.history[0]["skip_count"] == {"normal": 4, "reduce": 4}
    assert any("stopped in epoch 1 of 3" in text for text in result.warnings) == stop


@pytest.mark.promise("P7")
@pytest.mark.parametrize("where", ["start", "step", "epoch"])
def test_what_a_display_raises_reaches_the_caller(where):
    class Broken:
        def update(self, event):
            if event["kind"] == where:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(progress=Broken())


@pytest.mark.promise("P7")
def test_what_the_loss_raises_reaches_the_caller():
    def loss(outputs, labels):
        raise FloatingPointError("mine")

    with pytest.raises(FloatingPointError, match="mine"):
        run(loss=loss)


@pytest.mark.promise("P8")
def test_full_log_device_neither_ends_nor_alters_a_search(tmp_path, caplog):
    class Fill:
        def update(self, event):
            if event["kind"] == "start":
                for name in ("metrics.jsonl", "timing.jsonl", "alphas.jsonl"):
                    (tmp_path / "full" / name).unlink(missing_ok=True)
                    (tmp_path / "full" / name).symlink_to("/dev/full")

    plain = run(tmp_path / "plain")
    with caplog.at_level(logging.WARNING, "pyfast_nas"):
        full = run(tmp_path / "full", progress=Fill())
    assert torch.equal(full.alphas["cell"], plain.alphas["cell"])
    assert full.history == plain.history
    assert len(caplog.records) == 3, "one warning a file"


class TestRefusals:
    """Nothing is started and nothing written when an argument is wrong."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"epoch": 3}, "unknown option 'epoch'; did you mean 'epochs'"),
            ({"epochs": -1}, "epochs must be an integer at least 0"),
            ({"algorithm": "dart"}, "unknown algorithm 'dart'; did you mean 'darts'"),
            ({"algorithm": 3}, "algorithm must be a search algorithm"),
            ({"device": "tpu"}, "device must be 'auto' or one of"),
            ({"batch_size": 513}, "batch_size must be between 1 and 512"),
            (
                {"curvature_action": "stop"},
                "curvature_action must be 'watch' with curvature_interval=0, where nothing reads",
            ),
            (
                {"curvature_action": "go_back", "curvature_interval": 1}
                | {"algorithm": DARTS(weight_decay=0.0)},
                "weight_decay must be greater than 0 with curvature_action='go_back'",
            ),
            ({"compare": 0, "train_epochs": 7}, "train_epochs must be .* with compare=0, where"),
            ({"compare": 0, "compare_seeds": 2}, "compare_seeds must be 3 with compare=0, where"),
        ],
    )
    def test_options(self, options, words, tmp_path):
        with pytest.raises(ConfigError, match=words):
            run(tmp_path / "a", **options)
        assert not (tmp_path / "a").exists()

    def test_space(self):
        with pytest.raises(ConfigError, match="unknown space 'toi'; did you mean 'toy'"):
            search("toi", "toy")
        with pytest.raises(ConfigError, match="space must be a search space or one of darts, nas"):
            search(5, "toy")

    def test_data(self):
        with pytest.raises(ConfigError, match="source must be"):
            search("toy", "nothing")
        with pytest.raises(DataError, match="No such directory"):
            search("darts", "cifar10:/nowhere")

    def test_existing_output_is_left_alone_unless_told(self, tmp_path):
        run(tmp_path / "a")
        before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
        with pytest.raises(ConfigError, match=r"--output.*--overwrite"):
            run(tmp_path / "a", seed=1)
        assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
        run(tmp_path / "a", seed=1, overwrite=True)
        assert (tmp_path / "a" / "alphas.jsonl").read_bytes() != before["alphas.jsonl"]
        assert len(lines(tmp_path / "a" / "alphas.jsonl")) == 3

    def test_report_needs_files(self):
        with pytest.raises(ConfigError, match="output must be given"):
            run(epochs=0).report()


def test_space_by_name_suits_the_data_and_one_in_hand_is_kept():
    result = search("darts", "digits", epochs=0, compare=0)
    assert (result.space.in_channels, result.space.image_size) == (1, (8, 8))
    assert result.space.channels < 16
    result = search(DARTSSpace(channels=2, cells=1), "digits", epochs=0, compare=0)
    assert (result.space.channels, result.space.cells, result.space.num_classes) == (2, 1, 10)


@pytest.mark.promise("B5")
def test_notes_and_kernels_are_logged_and_kept(caplog):
    x, y = synthetic_images(64, size=8).train_x, synthetic_images(64, size=8).train_y
    space = DARTSSpace(channels=2, cells=1, nodes=1)
    with caplog.at_level(logging.INFO, "pyfast_nas"):
        result = search(space, (x, y), epochs=0, batch_size=4, compare=0)
    assert "kept for testing" in result.record["data"]["notes"][0]
    assert "kept for testing" in caplog.text and "'mixed_sum': '" in caplog.text


@pytest.mark.parametrize("name", ["darts", "msg-das"])
def test_real_images_move_the_alphas(real_data, name, tmp_path):
    result = search(
        DARTSSpace(channels=2, cells=1, nodes=1),
        f"cifar10:{real_data / 'cifar-10-batches-bin'}",
        algorithm=name,
        epochs=1,
        batch_size=50,
        valid_fraction=0.9,  # two steps: enough to move, quick to run
        compare=0,
        output=tmp_path / "a",
    )
    assert result.record["data"]["notes"][0] == "1 of 5 training batches: 1000 of 50000 images"
    start, end = (row["alphas"] for row in lines(tmp_path / "a" / "alphas.jsonl"))
    for table in start:
        moved = torch.tensor(end[table]) - torch.tensor(start[table])
        # Adam's first steps move every logit by about its rate, 3e-4.
        assert 1e-4 < float(moved.abs().max()) < 1e-2
    assert result.warnings == ()


def test_configuration_object_and_options_together():
    config = SearchConfig(epochs=1, batch_size=32, seed=4)
    result = search("toy", load_data("toy"), config=config, seed=5)
    assert (result.config.epochs, result.config.batch_size, result.config.seed) == (1, 32, 5)
    assert config.seed == 4


def test_double_precision_default_works():
    torch.set_default_dtype(torch.float64)
    try:
        result = run(compare=1, compare_seeds=1, train_epochs=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.alphas["cell"].dtype == torch.float64


def test_the_toy_optimum_is_found():
    # The rates of the published toy: five hundred steps at a large alpha rate.
    algorithm = DARTS(alpha_lr=0.05, weight_lr=0.1)
    result = run(algorithm=algorithm, epochs=40)
    assert result.genotype == Toy().optimum()
