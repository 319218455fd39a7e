import inspect
import json
import math

import numpy as np
import pytest

from pyfast_nas.algorithms import ALGORITHMS, DARTS, MSGDAS, option_table
from pyfast_nas.errors import ConfigError

ALL = [
    pytest.param(algorithm, option, id=f"{name}-{option.name}")
    for name, algorithm in ALGORITHMS.items()
    for option in option_table(algorithm)
]
NUMERIC = [case for case in ALL if case.values[1].kind in (int, float)]


def just_outside(option):
    """The values that violate the range by the least."""
    limits = option.range
    step = 1 if option.kind is int else 1e-9
    if limits.at_least is not None:
        yield option.kind(limits.at_least - step)
    if limits.above is not None:
        yield option.kind(limits.above)
    if limits.at_most is not None:
        yield option.kind(limits.at_most + step)
    if limits.below is not None:
        yield option.kind(limits.below)
    if limits.odd:
        yield 4


@pytest.mark.parametrize(("algorithm", "option"), NUMERIC)
@pytest.mark.parametrize("bad", ["3", math.nan, math.inf, -math.inf, True, [], 1j, 10**400])
def test_a_number_of_the_wrong_kind_is_refused(algorithm, option, bad):
    if option.kind is int and bad == 10**400:
        bad = 1.5  # an integer of any size is an integer
    with pytest.raises(ConfigError) as error:
        algorithm(**{option.name: bad})
    message = str(error.value)
    assert f"{algorithm.__name__}: {option.name} must be {option}" in message
    assert message.endswith(f"got {bad!r}"[:204])


@pytest.mark.parametrize(("algorithm", "option"), NUMERIC)
def test_a_number_out_of_range_is_refused(algorithm, option):
    assert option.range is not None, "every number has a range"
    for bad in just_outside(option):
        value = (bad,) * option.count if option.count else bad
        with pytest.raises(ConfigError, match=f"{option.name} must be "):
            algorithm(**{option.name: value})


@pytest.mark.parametrize(("algorithm", "option"), ALL)
def test_none_is_refused_unless_it_means_something(algorithm, option):
    if option.optional:
        assert getattr(algorithm(**{option.name: None}), option.name) is None
    else:
        with pytest.raises(ConfigError, match=f"{option.name} must be .*, got None"):
            algorithm(**{option.name: None})


@pytest.mark.parametrize(("algorithm", "option"), ALL)
def test_every_option_has_help_under_it(algorithm, option):
    owner = next(c for c in algorithm.__mro__ if option.name in inspect.get_annotations(c))
    lines = inspect.getsource(owner).splitlines()
    place = next(k for k, line in enumerate(lines) if line.startswith(f"    {option.name}: "))
    assert lines[place + 1].strip().startswith('"""')


@pytest.mark.parametrize("name", ALGORITHMS)
def test_configuration_is_json_and_makes_the_same_algorithm(name):
    config = ALGORITHMS[name]().to_config()
    assert config["name"] == name
    restored = json.loads(json.dumps(config, allow_nan=False))
    again = ALGORITHMS[restored.pop("name")](**restored)
    assert again.to_config() == config


def test_numbers_become_plain_python_numbers():
    algorithm = MSGDAS(paths=np.int64(3), tau_max=5)
    assert type(algorithm.paths) is int
    assert type(algorithm.tau_max) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_min": 11.0}, "tau_min must be at most tau_max=10, got 11"),
        ({"score_baseline": 0.5}, "score_baseline must be 0.0 with relaxation='shared'"),
        ({"tau_max": 5.0, "relaxation": "score"}, "tau_max must be 10.0 with relaxation='score'"),
        ({"tau_min": 0.5, "relaxation": "score"}, "tau_min must be 0.1 with relaxation='score'"),
        ({"kd_temperature": 2.0, "kd_weight": 0}, "kd_temperature must be 1.0 with kd_weight=0"),
        ({"kd_warmup": 0.0, "kd_weight": 0}, "kd_warmup must be 0.1 with kd_weight=0"),
        ({"kd_in_alpha_step": True, "kd_weight": 0}, "kd_in_alpha_step must be False with kd_w"),
        ({"drop_schedule": "exp", "drop_rate": 0}, "drop_schedule must be 'linear' with drop_r"),
        ({"drop_block": 5, "drop_rate": 0}, "drop_block must be None with drop_rate=0"),
        ({"mode": "both"}, "mode must be one of 'accumulate', 'joint', got 'both'"),
        ({"weight_lr": 1e-4}, "weight_lr_min must be at most weight_lr=0.0001, got 0.001"),
        (
            {"weight_nesterov": True, "weight_momentum": 0},
            "weight_momentum must be greater than 0 with weight_nesterov, got 0",
        ),
        ({"drop_block": 4}, "drop_block must be an odd integer at least 1 or None, got 4"),
        ({"kd_in_alpha_step": 1}, "kd_in_alpha_step must be true or false, got 1"),
    ],
)
def test_options_that_do_not_fit_together(options, message):
    with pytest.raises(ConfigError, match=message):
        MSGDAS(**options)


def test_defaults_are_the_published_ones():
    darts = DARTS()
    assert (darts.weight_lr, darts.weight_lr_min, darts.weight_momentum) == (0.025, 0.001, 0.9)
    assert (darts.weight_decay, darts.gradient_clip) == (3e-4, 5.0)
    assert (darts.alpha_lr, darts.alpha_betas, darts.alpha_decay) == (3e-4, (0.5, 0.999), 1e-3)
