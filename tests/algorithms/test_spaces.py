"""Every kind of algorithm on every space of images: an epoch of digits, steps without a trace."""

import pytest
import torch

from pyfast_nas import search, spaces
from pyfast_nas.algorithms import DARTS, MSGDAS, RandomSearch
from pyfast_nas.data import load_data
from pyfast_nas.data.image_data import ImageData
from pyfast_nas.errors import ConfigError

SMALL = {"channels": 2, "cells": 2}
SPACES = {name: spaces.SPACES[name](**SMALL) for name in ("s1", "s2", "s3", "s4")}
# Three rows, of six, seven and six candidates.
SPACES["proxylessnas"] = spaces.ProxylessNAS(
    width_factor=0.25, widths=(32, 64), blocks=(2, 1), strides=(2, 1)
)
SEARCHES = {
    "darts": lambda: DARTS(),
    "msg-das": lambda: MSGDAS(paths=2, alpha_warmup=0, kd_warmup=0),
    "random": lambda: RandomSearch(samples=2, finalists=1, score_batches=1),
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_an_epoch_of_digits(space, algorithm, digits):
    result = search(
        space,
        digits,
        algorithm=SEARCHES[algorithm](),
        epochs=1,
        batch_size=256,
        compare=0,
        augment=False,
    )
    assert result.genotype.space == space.name
    space.check(result.genotype)
    assert result.trained and result.history[0]["train/loss"] > 0
    shapes = {table: (len(rows), max(map(len, rows))) for table, rows in space.candidates.items()}
    assert {table: tuple(rows.shape) for table, rows in result.alphas.items()} == shapes


def test_paths_are_limited_by_the_shortest_row(start):
    with pytest.raises(ConfigError, match="at most the candidates of every row, 2, got 3"):
        start(MSGDAS(paths=3), SPACES["s1"])
    start(MSGDAS(paths=3), SPACES["s3"])


@pytest.mark.parametrize("name", ["darts", "darts of second order", "msg-das"])
def test_noise_of_an_architecture_step_leaves_the_streams(
    name, start, snapshot, image_batch, monkeypatch
):
    algorithm = {
        "darts": lambda: DARTS(),
        "darts of second order": lambda: DARTS(hypergradient="finite_difference"),
        "msg-das": lambda: MSGDAS(alpha_warmup=0, kd_warmup=0, kd_in_alpha_step=True),
    }[name]()
    algorithm = start(algorithm, spaces.S4(**SMALL, num_classes=3, in_channels=1, image_size=8))
    state = torch.get_rng_state()
    algorithm.step(image_batch(0), image_batch(1))
    assert not torch.equal(torch.get_rng_state(), state), "the weight step draws"
    monkeypatch.setattr(algorithm, "_weight_step", lambda *_: {})
    before, alphas = snapshot(algorithm, alphas=False), algorithm.alphas
    algorithm.step(image_batch(2), image_batch(3))
    assert snapshot(algorithm, alphas=False) == before
    assert not torch.equal(algorithm.alphas["normal"], alphas["normal"])


def test_noise_is_seen_before_a_step_is_recorded(start, image_batch):
    """The host draws it: a recorded step would repeat one draw for ever."""
    algorithm = start(
        MSGDAS(alpha_warmup=0, kd_weight=0),
        spaces.S4(**SMALL, num_classes=3, in_channels=1, image_size=8),
    )
    assert algorithm.rehearse(image_batch(0)) == "the supernet draws random numbers"
