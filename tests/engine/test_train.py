"""Training of a derived network, and its life without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyfast_nas.data import load_data, synthetic_images, toy_data
from pyfast_nas.data.loader import Normalize
from pyfast_nas.engine import train
from pyfast_nas.engine.train import evaluate
from pyfast_nas.errors import ConfigError, DivergenceError, GenotypeError, SearchSpaceError
from pyfast_nas.spaces import DARTS_V1, Toy

SMALL = {"channels": 2, "cells": 3, "epochs": 2, "batch_size": 32}


def images(**options):
    return synthetic_images(128, size=8, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "a"
    data = images()
    return train(DARTS_V1, data, **SMALL, output=folder, seed=1), folder, data


def test_it_learns():
    result = train(
        DARTS_V1, images(), channels=4, cells=3, epochs=8, batch_size=32, drop_path=0.0, cutout=0
    )
    assert result.accuracy > 0.9
    losses = [row["train/loss"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]


def test_result_says_what_the_network_does(trained):
    result, folder, data = trained
    assert json.loads((folder / "result.json").read_text()) == {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "parameters": result.parameters,
    }
    assert result.parameters == sum(p.numel() for p in result.module.parameters())
    assert not result.module.training
    with torch.no_grad():
        logits = result.module(Normalize(data)(data.test_x))
    assert float((logits.argmax(1) == data.test_y).double().mean()) == result.accuracy
    loss = torch.nn.functional.cross_entropy(logits, data.test_y)
    assert float(loss) == pytest.approx(result.loss, rel=1e-5)


def test_folder_holds_what_it_should(trained):
    result, folder, _ = trained
    names = {"config.json", "genotype.json", "network.pt2", "result.json", "weights.npz"}
    assert {path.name for path in folder.iterdir()} == names | {"metrics.jsonl", "timing.jsonl"}
    assert set(result.paths) == names and all(path.is_file() for path in result.paths.values())
    config = json.loads((folder / "config.json").read_text())
    assert config["train"]["channels"] == 2 and config["data"]["name"] == "synthetic"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert tuple(rows) == result.history


RELOAD = """
import sys
sys.modules["pyfast_nas"] = None  # importing it fails, wherever it may be installed
import torch, numpy
network = torch.export.load(sys.argv[1]).module()
batch = torch.from_numpy(numpy.load(sys.argv[2])["images"])
logits, one = (network(part).detach().numpy() for part in (batch, batch[:1]))
numpy.savez(sys.argv[3], logits=logits, one=one)
"""


@pytest.mark.promise("R4")
def test_reloads_without_this_package_to_the_last_digit(trained, tmp_path):
    result, folder, data = trained
    batch = Normalize(data)(data.test_x)
    np.savez(tmp_path / "images.npz", images=batch.numpy())
    network, given, answer = folder / "network.pt2", tmp_path / "images.npz", tmp_path / "out.npz"
    # -I keeps the working directory and PYTHONPATH out; -W shows that nothing deprecated is met.
    command = [sys.executable, "-I", "-c", RELOAD, str(network), str(given), str(answer)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=100)
    with torch.no_grad():
        want = result.module(batch).numpy()
    with np.load(answer) as got:
        np.testing.assert_array_equal(got["logits"], want)
        assert got["one"].shape == (1, 4)


@pytest.mark.promise("R4")
def test_weights_are_plain_arrays_with_buffers(trained):
    result, folder, data = trained
    from pyfast_nas.spaces import DARTS

    space = DARTS().with_data(3, 4, (8, 8))
    network = space.build(DARTS_V1, channels=2, cells=3).eval()
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network.load_state_dict(state)
    batch = Normalize(data)(data.test_x)
    assert torch.equal(network(batch), result.module(batch))


def test_same_seed_same_network():
    one, same, other = (train(DARTS_V1, images(), **SMALL, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(one.module.parameters(), same.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.history == same.history != other.history


def test_options_of_the_recipe_run_together(tmp_path):
    data = synthetic_images(64, size=32)
    recipe = {"auxiliary": 0.4, "drop_path": 0.2, "cutout": 8, "mixup": 0.2}
    options = {"channels": 2, "cells": 3, "epochs": 2, "batch_size": 32}
    result = train(DARTS_V1, data, **options, **recipe, output=tmp_path / "a")
    plain = train(DARTS_V1, data, **options, auxiliary=0.0, drop_path=0.0, cutout=0)
    assert result.parameters == plain.parameters, "the auxiliary classifier is not counted"
    assert result.history[0]["train/loss"] != plain.history[0]["train/loss"]
    with np.load(tmp_path / "a" / "weights.npz") as arrays:
        assert not any("auxiliary" in name for name in arrays.files)


def test_each_option_of_the_recipe_does_something():
    data = synthetic_images(32, size=32)
    base = {"auxiliary": 0.0, "drop_path": 0.0, "cutout": 0, "mixup": 0.0, "augment": False}
    options = {"channels": 2, "cells": 3, "epochs": 2, "batch_size": 32}
    plain = train(DARTS_V1, data, **options, **base).loss
    for change in (
        {"auxiliary": 0.4},
        {"drop_path": 0.5},
        {"cutout": 8},
        {"mixup": 1.0},
        {"augment": True},
        {"weight_decay": 0.1},
        {"learning_rate": 0.1},
        {"momentum": 0.0},
        {"gradient_clip": 0.1},
    ):
        assert train(DARTS_V1, data, **options, **(base | change)).loss != plain, change


def test_no_epoch_tests_the_initial_network():
    result = train(DARTS_V1, images(), **(SMALL | {"epochs": 0}))
    assert result.history == () and 0 <= result.accuracy <= 1


def test_genotype_may_be_a_file(trained):
    _, folder, _ = trained
    result = train(folder / "genotype.json", images(), **SMALL, seed=1)
    assert result.accuracy == trained[0].accuracy


def test_evaluation_counts_every_sample_once():
    data = load_data("digits")
    calls = []

    class Parrot(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) * 100.0

    x, y = data.train_x, data.train_y
    accuracy, loss = evaluate(Parrot(), x, y, Normalize(data), torch.device("cpu"))
    assert sum(calls) == len(x) and max(calls) <= 512
    assert accuracy == float((y == 0).double().mean())
    assert loss == pytest.approx(100 * (1 - accuracy))


def test_divergence_names_the_step():
    with pytest.raises(DivergenceError, match=r"train/loss must stay finite, got .* at step"):
        options = {"learning_rate": 1e30, "gradient_clip": 1e30, "log_interval": 1}
        train(Toy().optimum(), toy_data(640), epochs=50, batch_size=64, **options)


@pytest.mark.parametrize(
    ("genotype", "options", "error", "words"),
    [
        (DARTS_V1, {"epoch": 1}, ConfigError, "did you mean 'epochs'"),
        (DARTS_V1, {"batch_size": 129}, ConfigError, "batch_size must be at most 128"),
        (DARTS_V1, {"space": "toy"}, SearchSpaceError, "num_classes must be 2"),
        (Toy().optimum(), {"space": "darts"}, GenotypeError, "another space"),
    ],
)
def test_refusals_write_nothing(genotype, options, error, words, tmp_path):
    with pytest.raises(error, match=words):
        train(genotype, images(), **(SMALL | options), output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_existing_output_is_refused(trained):
    _, folder, _ = trained
    with pytest.raises(ConfigError, match="train: output must be new or empty"):
        train(DARTS_V1, images(), **SMALL, output=folder)
