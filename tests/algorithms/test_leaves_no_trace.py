"""An architecture step changes the architecture parameters and their optimizer, nothing else."""

import contextlib
import dataclasses

import pytest
import torch
from torch.nn.modules import module as torch_module

from pyfast_nas.algorithms import (
    DARTS,
    GDAS,
    IDARTS,
    MSGDAS,
    UNAS,
    ProxylessNAS,
    RandomSearch,
    gradient_search,
)

# The architecture moves in every step, and the rate of the weights in none.
AT_ONCE = {"alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0, "weight_lr_min": 0.025}
METHODS = {
    "darts": lambda: DARTS(),
    "darts finite difference": lambda: DARTS(hypergradient="finite_difference"),
    "darts unrolled": lambda: DARTS(hypergradient="unrolled"),
    "darts identity": lambda: DARTS(hypergradient="identity"),
    "idarts": lambda: IDARTS(inner_steps=1),
    "idarts by differences": lambda: IDARTS(inner_steps=1, hvp="finite_difference"),
    "gdas": lambda: GDAS(),
    "gdas variant a": lambda: GDAS(variant="A"),
    "msg-das": lambda: MSGDAS(alpha_warmup=0),
    "msg-das joint": lambda: MSGDAS(alpha_warmup=0, mode="joint", kd_warmup=0),
    "msg-das kd in both": lambda: MSGDAS(alpha_warmup=0, kd_warmup=0, kd_in_alpha_step=True),
    "msg-das score": lambda: MSGDAS(alpha_warmup=0, relaxation="score", score_baseline=0.9),
    "msg-das one path": lambda: MSGDAS(alpha_warmup=0, paths=1, assignment="shuffle"),
    "proxylessnas": lambda: ProxylessNAS(**AT_ONCE),
    "proxylessnas full": lambda: ProxylessNAS(gradient="full", **AT_ONCE),
    "proxylessnas two": lambda: ProxylessNAS(gradient="two", **AT_ONCE),
    "proxylessnas rewards": lambda: ProxylessNAS(gradient="reinforce", samples=3, **AT_ONCE),
    "unas": lambda: UNAS(),
    "unas samplewise": lambda: UNAS(gap="samplewise", softening=0.1),
    "unas score": lambda: UNAS(control_scale=0.0, score_baseline=0.9),
    "unas criterion": lambda: with_criterion(UNAS(surrogate_samples=20)),
}


def with_criterion(algorithm):
    algorithm.criterion = lambda genotype: len(genotype.to_json())
    return algorithm


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def only_architecture_steps(algorithm, monkeypatch):
    monkeypatch.setattr(algorithm, "_weight_step", lambda *_: {})


def only_weight_steps(algorithm, monkeypatch):
    monkeypatch.setattr(algorithm, "_architecture_step", lambda *_: {})


@pytest.mark.promise("S1")
def test_architecture_step_leaves_everything_else(method, start, snapshot, tiny_batch, monkeypatch):
    algorithm = start(method())
    algorithm.step(tiny_batch(0), tiny_batch(1))  # optimizer states and gradients exist
    only_architecture_steps(algorithm, monkeypatch)
    before, alphas = snapshot(algorithm, alphas=False), algorithm.alphas
    algorithm.step(tiny_batch(2), tiny_batch(3))
    assert snapshot(algorithm, alphas=False) == before
    assert not torch.equal(algorithm.alphas["cell"], alphas["cell"])


@pytest.mark.promise("S1")
def test_architecture_step_on_cells_leaves_everything_else(
    method, start, snapshot, small_darts, image_batch, monkeypatch
):
    # Of cells that keep every edge: a criterion prices no others.
    algorithm = start(method(), dataclasses.replace(small_darts, edges="all"))
    algorithm.step(image_batch(0), image_batch(1))
    only_architecture_steps(algorithm, monkeypatch)
    before = snapshot(algorithm, alphas=False)
    algorithm.step(image_batch(2), image_batch(3))
    assert snapshot(algorithm, alphas=False) == before


def test_the_check_sees_statistics_that_move(start, snapshot, tiny_batch, monkeypatch):
    algorithm = start(DARTS())
    only_architecture_steps(algorithm, monkeypatch)
    monkeypatch.setattr(gradient_search, "frozen_statistics", contextlib.nullcontext)
    before = snapshot(algorithm, alphas=False)
    algorithm.step(tiny_batch(0), tiny_batch(1))
    after = snapshot(algorithm, alphas=False)
    assert {key for key in after if after[key] != before[key]} == {"buffers"}


class Fault:
    """Raises at the n-th forward or backward call of any module."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.kind = (RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, ValueError)[at % 4]

    def count(self, *_):
        self.calls += 1
        if self.calls == self.at + 1:
            raise self.kind("planted")

    def after_forward(self, module, inputs, output):
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(self.count)

    def __enter__(self):
        self.handles = [
            torch_module.register_module_forward_pre_hook(self.count),
            torch_module.register_module_forward_hook(self.after_forward),
        ]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.promise("S2")
def test_an_exception_anywhere_in_the_architecture_step_leaves_everything(
    method, start, snapshot, tiny_batch, monkeypatch
):
    algorithm = start(method())
    algorithm.step(tiny_batch(0), tiny_batch(1))
    only_architecture_steps(algorithm, monkeypatch)
    before = snapshot(algorithm, alphas=True)
    at = 0
    while True:
        fault = Fault(at)
        with fault:
            try:
                algorithm.step(tiny_batch(2), tiny_batch(3))
            except fault.kind as error:
                assert "planted" in str(error)
            else:
                break
        assert snapshot(algorithm, alphas=True) == before, f"trace of a fault at call {at}"
        at += 1
    # At the least: supernet, stem, two layers of it, head, and backward through the head.
    assert at >= 6


def test_an_exception_in_the_weight_step_moves_no_weight(
    method, start, snapshot, tiny_batch, monkeypatch
):
    algorithm = start(method())
    algorithm.step(tiny_batch(0), tiny_batch(1))
    only_weight_steps(algorithm, monkeypatch)
    before = snapshot(algorithm, alphas=True)
    at, faults = 0, 0
    while True:
        fault = Fault(at)
        with fault, contextlib.suppress(fault.kind):
            algorithm.step(tiny_batch(2), tiny_batch(3))
        if fault.calls <= at:
            break
        after = snapshot(algorithm, alphas=True)
        for key in ("weights", "optimizer", "alphas", "alpha optimizer", "modes", "tracking"):
            assert after[key] == before[key], f"{key} moved by a fault at call {at}"
        at, faults = at + 5, faults + 1
    assert faults >= 2


@pytest.mark.promise("S3")
def test_no_parameter_is_in_both_optimizers(method, start):
    algorithm = start(method())
    sets = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (algorithm.weight_optimizer, algorithm.alpha_optimizer)
    ]
    assert not sets[0] & sets[1]
    assert sets[1] == {id(p) for p in algorithm.supernet.alphas.values()}
    assert sets[0] | sets[1] == {id(p) for p in algorithm.supernet.parameters()}


@pytest.mark.promise("S3")
def test_weight_step_moves_no_alpha(method, start, tiny_batch, monkeypatch, freeze):
    algorithm = start(method())
    only_weight_steps(algorithm, monkeypatch)

    def state():
        return freeze([dict(algorithm.alphas), algorithm.alpha_optimizer.state_dict()])

    before = state()
    for seed in range(3):
        algorithm.step(tiny_batch(seed), tiny_batch(seed + 9))
        assert all(p.grad is None for p in algorithm.supernet.arch_parameters())
    assert state() == before


@pytest.mark.promise("S3")
def test_random_search_moves_no_alpha(start, tiny_batch, freeze):
    algorithm = start(RandomSearch())
    before = freeze(dict(algorithm.alphas))
    for seed in range(3):
        algorithm.step(tiny_batch(seed), tiny_batch(seed + 9))
    algorithm.derive()
    assert freeze(dict(algorithm.alphas)) == before


@pytest.mark.promise("S4")
@pytest.mark.parametrize("name", [*METHODS, "random"])
def test_statistics_are_counted_once_per_weight_step(name, start, tiny_batch):
    algorithm = start(RandomSearch() if name == "random" else METHODS[name]())
    for step in range(1, 5):
        algorithm.step(tiny_batch(step), tiny_batch(step + 9))
        counts = {
            key: int(buffer)
            for key, buffer in algorithm.supernet.named_buffers()
            if key.endswith("num_batches_tracked")
        }
        assert counts.pop("stem.1.num_batches_tracked") == step
        assert all(count <= step for count in counts.values())
        if name == "darts":
            assert set(counts.values()) == {step}


@pytest.mark.promise("S4")
def test_statistics_never_see_validation_data(method, start, tiny_batch, freeze):
    """Validation inputs far off would show in every running mean."""
    runs = []
    for shift in (0.0, 1000.0):
        algorithm = start(method())
        inputs, labels = tiny_batch(1)
        algorithm.step(tiny_batch(0), (inputs + shift, labels))
        runs.append(freeze({k: b for k, b in algorithm.supernet.named_buffers() if "stem" in k}))
    assert runs[0] == runs[1]
