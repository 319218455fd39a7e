"""Options: every wrong value is named with its range, presets fill what is not said."""

import dataclasses
import math

import pytest
import torch

from pyfast_nas.algorithms import ALGORITHMS
from pyfast_nas.algorithms.options import option_table
from pyfast_nas.engine import PRESETS, SearchConfig, TrainConfig, preset, preset_algorithm
from pyfast_nas.engine.config import nearest, run_device
from pyfast_nas.errors import ConfigError

CONFIGS = (SearchConfig, TrainConfig)


def wrong_values():
    """One case for each numeric option and kind of wrong value, from the option table itself."""
    for config in CONFIGS:
        for option in option_table(config):
            if option.kind is bool:
                values = [0, "yes", None]
            elif option.kind is str:
                values = [5, True]
            else:
                values = ["3", True, math.nan, math.inf, -math.inf, -1, [1]]
                if option.kind is int:
                    values += [1.5]
            for value in values:
                yield pytest.param(
                    config, option, value, id=f"{config.__name__}.{option.name}={value}"
                )


@pytest.mark.parametrize(("config", "option", "value"), list(wrong_values()))
def test_wrong_values_are_named_with_what_is_allowed(config, option, value):
    with pytest.raises(ConfigError) as caught:
        config(**{option.name: value})
    message = str(caught.value)
    assert message.startswith(f"{config.__name__}: {option.name} must be {option}, got ")


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", None, True])
def test_seed_range(seed):
    for config in CONFIGS:
        with pytest.raises(ConfigError, match="seed must be an integer"):
            config(seed=seed)
        assert config(seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("config", "function", "name", "words"),
    [
        (SearchConfig, "search", "epoch", "unknown option 'epoch'; did you mean 'epochs'"),
        (SearchConfig, "search", "batchsize", "did you mean 'batch_size'"),
        (TrainConfig, "train", "lr", "unknown option 'lr'; known are augment, auxiliary"),
        (TrainConfig, "train", "\x1b[2J", "unknown option '.x1b"),
    ],
)
def test_unknown_options_name_the_nearest(config, function, name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config.from_options(None, {name: 1})
    assert str(caught.value).startswith(f"{function}: ")


def test_options_go_before_the_configuration():
    config = SearchConfig(epochs=3, seed=5)
    merged = SearchConfig.from_options(config, {"epochs": 4})
    assert (merged.epochs, merged.seed, config.epochs) == (4, 5, 3)
    with pytest.raises(ConfigError, match="config must be a SearchConfig, got TrainConfig"):
        SearchConfig.from_options(TrainConfig(), {})


def test_presets_fill_what_is_not_said():
    config = SearchConfig(epochs=3).resolved("digits")
    assert config.epochs == 3
    chosen = preset("digits")
    assert config.compare == chosen.compare and config.train_cells == chosen.train_cells
    assert preset("no such data set") == preset("cifar10")
    trained = TrainConfig().resolved("digits")
    assert (trained.channels, trained.epochs) == (chosen.train_channels, chosen.train_epochs)


def test_zero_is_not_taken_for_unsaid():
    assert SearchConfig(compare=0, epochs=0).resolved("digits").compare == 0
    assert TrainConfig(drop_path=0.0, auxiliary=0.0).resolved("cifar10").auxiliary == 0.0


def test_defaults_for_cifar_are_the_papers():
    search = SearchConfig().resolved("cifar10")
    assert (search.epochs, search.batch_size, search.valid_fraction) == (50, 64, 0.5)
    train = TrainConfig().resolved("cifar10")
    # Liu, Simonyan & Yang 2019, appendix A.1.1.
    assert (train.channels, train.cells, train.epochs, train.batch_size) == (36, 20, 600, 96)
    assert (train.learning_rate, train.momentum, train.weight_decay) == (0.025, 0.9, 3e-4)
    assert (train.gradient_clip, train.cutout) == (5, 16)
    assert (train.auxiliary, train.drop_path) == (0.4, 0.2)


@pytest.mark.parametrize("name", [*PRESETS, "cifar10"])
def test_every_preset_is_valid_and_complete(name):
    for config in CONFIGS:
        resolved = config().resolved(name)
        if name != "toy":
            unsaid = {
                f.name for f in dataclasses.fields(config) if getattr(resolved, f.name) is None
            }
            # No preset names a file.
            assert unsaid - {"table", "table_columns"} == {"output"}


def test_output_may_be_a_path(tmp_path):
    assert SearchConfig(output=tmp_path).output == str(tmp_path)


def test_device_names():
    assert run_device("cpu") == torch.device("cpu")
    assert run_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "", "cuda:99", "meta", "mps", "cpu cpu"):
        with pytest.raises(ConfigError, match="'auto' or one of 'cpu'"):
            run_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="must be 'auto' or one of 'cpu', got 'cuda'"):
        run_device("cuda")


def test_nearest_name():
    assert nearest("msgdas", ["darts", "msg-das"]) == "; did you mean 'msg-das'?"
    assert nearest("xyz", ["b", "a"]) == "; known are a, b"


def test_small_images_get_no_auxiliary_classifier_and_smaller_holes():
    small = TrainConfig().resolved("mine", (8, 16))
    assert (small.auxiliary, small.cutout, small.epochs) == (0.0, 4, 600)
    assert TrainConfig().resolved("mine", ()).cutout == 0
    assert TrainConfig().resolved("mine", (224, 224)).auxiliary == 0.4


def test_algorithm_by_name_has_the_rate_of_the_data_set():
    for name, kind in ALGORITHMS.items():
        assert type(preset_algorithm(name, "digits")) is kind
    assert preset_algorithm("darts", "digits").alpha_lr == preset("digits").alpha_lr
    # Liu, Simonyan & Yang 2019, appendix A.1.1.
    assert preset_algorithm("darts", "cifar10").alpha_lr == 3e-4
    with pytest.raises(ConfigError, match="unknown algorithm 'dart'; did you mean 'darts'"):
        preset_algorithm("dart", "digits")
