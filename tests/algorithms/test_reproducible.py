"""One seed, one search: twice, in another process, continued from a state, on either backend."""

import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyfast_nas import _ext, spaces
from pyfast_nas.algorithms import DARTS, GDAS, MSGDAS, SNAS, UNAS, ProxylessNAS, RandomSearch

FORMS = {
    "darts": lambda: DARTS(),
    "gdas": lambda: GDAS(),
    "msg-das": lambda: MSGDAS(assignment="shuffle"),
    "msg-das joint": lambda: MSGDAS(mode="joint", relaxation="conditional", paths=3),
    "msg-das score": lambda: MSGDAS(relaxation="score", score_baseline=0.9),
    "proxylessnas": lambda: ProxylessNAS(alpha_interval=2, cost="parameters"),
    "proxylessnas rewards": lambda: ProxylessNAS(gradient="reinforce", samples=2),
    "unas": lambda: UNAS(
        cost="parameters", cost_weight=1e-4, gap="samplewise", softening=0.05, score_baseline=0.9
    ),
    "random": lambda: RandomSearch(samples=8),
    "snas": lambda: SNAS(resource_weight=1.5e-3, resource_cost="policy_gradient"),
}
SPACE = {
    "channels": 4,
    "cells": 2,
    "nodes": 1,
    "num_classes": 3,
    "in_channels": 1,
    "image_size": 8,
    "track_running_stats": True,
}


def batches(steps: int):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield tuple(
            (
                torch.randn(4, 1, 8, 8, generator=generator),
                torch.randint(3, (4,), generator=generator),
            )
            for _ in range(2)
        )


def prepared(name: str, space):
    algorithm = FORMS[name]()
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    algorithm.prepare(
        space.supernet(), space=space, epochs=5, steps_per_epoch=6, generator=generator
    )
    return algorithm


def search(name: str, steps: int = 30):
    algorithm = prepared(name, spaces.DARTS(**SPACE))
    for train, valid in batches(steps):
        algorithm.step(train, valid)
    return algorithm


def digest(algorithm) -> str:
    """One hash of alphas, weights, buffers and genotype."""
    text = hashlib.sha256()
    for name, tensor in sorted(algorithm.supernet.state_dict().items()):
        text.update(name.encode() + tensor.numpy().tobytes())
    text.update(algorithm.derive().to_json().encode())
    return text.hexdigest()


@functools.cache
def digest_of_whole_search(name: str) -> str:
    return digest(search(name))


@pytest.mark.promise("D5")
@pytest.mark.parametrize("name", FORMS)
def test_same_seed_same_search(name):
    assert digest(search(name)) == digest_of_whole_search(name)


@pytest.mark.promise("D5")
@pytest.mark.timeout(180)  # every form of every search, twice
def test_same_seed_same_search_in_another_process():
    here = {name: digest_of_whole_search(name) for name in FORMS}
    assert len(set(here.values())) == len(FORMS)
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('searches', sys.argv[1])\n"
        "searches = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(searches)\n"
        f"searches.torch.set_num_threads({torch.get_num_threads()})\n"
        "for name in searches.FORMS: print(name, searches.digest(searches.search(name)), sep=':')\n"
    )
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, __file__],
        check=True,
        capture_output=True,
        text=True,
        timeout=150,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert dict(line.split(":") for line in output.split("\n") if line) == here


@pytest.mark.parametrize("name", FORMS)
def test_another_seed_is_another_search(name):
    space = spaces.DARTS(**SPACE)
    digests = set()
    for seed in (7, 8):
        algorithm = prepared(name, space)
        if algorithm.generator is not None:
            algorithm.generator.manual_seed(seed)
        for train, valid in batches(6):
            algorithm.step(train, valid)
        digests.add(digest(algorithm))
    # DARTS draws nothing: its seed is that of the initial values alone.
    assert len(digests) == (1 if name == "darts" else 2)


@pytest.mark.parametrize("name", FORMS)
def test_a_search_continued_from_its_state_ends_the_same(name, tmp_path):
    space = spaces.DARTS(**SPACE)
    first = prepared(name, space)
    stream = batches(30)
    for _ in range(16):
        first.step(*next(stream))
    torch.save(
        {
            "supernet": first.supernet.state_dict(),
            "algorithm": first.state_dict(),
            "random": torch.get_rng_state(),
        },
        tmp_path / "state.pt",
    )
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = FORMS[name]()
    torch.manual_seed(99)
    second.prepare(
        space.supernet(),
        space=space,
        epochs=5,
        steps_per_epoch=6,
        generator=torch.Generator().manual_seed(99),
    )
    second.supernet.load_state_dict(saved["supernet"])
    second.load_state_dict(saved["algorithm"])
    torch.set_rng_state(saved["random"])
    for train, valid in stream:
        second.step(train, valid)
    assert digest(second) == digest_of_whole_search(name)


@pytest.mark.promise("D6")
@pytest.mark.parametrize("name", FORMS)
def test_kernels_and_reference_find_the_same_genotype(name):
    if "compiled" not in _ext.kernels_in_use("cpu").values():
        pytest.skip("no compiled kernels for the CPU in this installation")
    with _ext.use("require"):
        compiled = search(name)
    with _ext.use("reference"):
        reference = search(name)
    assert compiled.derive() == reference.derive()
    for table, alpha in compiled.alphas.items():
        torch.testing.assert_close(alpha, reference.alphas[table], rtol=0, atol=1e-4)
