"""What every algorithm promises its caller: protocol, refusals, alarms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas.algorithms import ALGORITHMS, DARTS, GDAS, MSGDAS, SearchAlgorithm
from pyfast_nas.errors import ConfigError, DivergenceError

NAMES = sorted(ALGORITHMS)


@pytest.fixture(params=NAMES)
def algorithm(request):
    return ALGORITHMS[request.param]()


def test_the_registry_names_what_it_holds():
    assert {name: cls.name for name, cls in ALGORITHMS.items()} == {name: name for name in NAMES}
    assert NAMES == ["darts", "gdas", "idarts", "msg-das", "proxylessnas", "random", "snas", "unas"]


def test_protocol(algorithm, start, tiny_batch):
    assert isinstance(algorithm, SearchAlgorithm)
    assert dict(algorithm.alphas) == {}
    start(algorithm)
    assert isinstance(algorithm, SearchAlgorithm)
    metrics = algorithm.step(tiny_batch(0), tiny_batch(1))
    assert {"train/loss", "train/accuracy"} <= metrics.keys()
    # iDARTS and ProxylessNAS begin with steps of the weights; the others have no use for it.
    if algorithm.name not in ("random", "idarts", "proxylessnas", "snas"):
        assert {"valid/loss", "valid/accuracy"} <= metrics.keys()
    for key, value in metrics.items():
        assert isinstance(value, float) or (value.dim() == 0 and not value.requires_grad), key
    assert algorithm.steps == 1
    assert algorithm.alphas["cell"].shape == (2, 3)
    probabilities = algorithm.probabilities()["cell"]
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert probabilities[1, 2] == 0, "a shorter row has no such candidate"
    assert algorithm.derive().space == "tiny"
    assert algorithm.alarms() == ()


def test_alphas_are_a_copy(algorithm, start):
    start(algorithm)
    algorithm.alphas["cell"].fill_(7.0)
    assert not (algorithm.alphas["cell"] == 7.0).any()


def test_epochs_follow_the_steps(algorithm, start, tiny_batch):
    start(algorithm, epochs=3, steps_per_epoch=2)
    epochs, rates = [], []
    for step in range(8):
        epochs.append(algorithm.epoch)
        algorithm.step(tiny_batch(step), tiny_batch(step + 9))
        rates.append(float(algorithm.weight_optimizer.param_groups[0]["lr"]))
    assert epochs == [0, 0, 1, 1, 2, 2, 2, 2]
    if algorithm.name == "proxylessnas":  # its rate follows the steps
        return
    low, high = algorithm.weight_lr_min, algorithm.weight_lr
    want = [low + (high - low) / 2 * (1 + math.cos(math.pi * e / 3)) for e in epochs]
    assert rates == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("method", ["step", "derive", "probabilities", "state_dict"])
def test_before_prepare_it_says_what_to_call(algorithm, method, tiny_batch):
    arguments = (tiny_batch(0), tiny_batch(1)) if method == "step" else ()
    with pytest.raises(RuntimeError, match=rf"\.{method}: call prepare\(supernet, space="):
        getattr(algorithm, method)(*arguments)


def test_derive_without_a_step_gives_a_start_genotype(algorithm, start):
    assert start(algorithm, epochs=0, steps_per_epoch=1).derive().space == "tiny"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"epochs": -1}, "prepare: epochs must be an integer at least 0, got -1"),
        ({"epochs": True}, "prepare: epochs must be an integer at least 0, got True"),
        ({"steps_per_epoch": 0}, "prepare: steps_per_epoch must be an integer at least 1, got 0"),
        ({"steps_per_epoch": 2.0}, "steps_per_epoch must be an integer at least 1, got 2.0"),
    ],
)
def test_lengths_are_checked(algorithm, run, message, start):
    with pytest.raises(ConfigError, match=message):
        start(algorithm, **run)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), r"shape \[\], got \[6\]"),
        (lambda out, y: 1.0, r"a tensor of shape \[\], got float"),
        (lambda out, y: F.cross_entropy(out, y).detach(), "does not require grad"),
    ],
)
def test_losses_that_cannot_be_minimised_are_refused(algorithm, loss, message, start, tiny_batch):
    start(algorithm)
    algorithm.loss = loss
    with pytest.raises(ValueError, match=message):
        algorithm.step(tiny_batch(0), tiny_batch(1))


def test_a_state_of_another_algorithm_is_refused(start):
    state = start(DARTS()).state_dict()
    with pytest.raises(ConfigError, match="state must be of 'msg-das', got 'darts'"):
        start(MSGDAS()).load_state_dict(state)


def test_prepare_again_starts_afresh(algorithm, start, tiny_batch):
    start(algorithm)
    algorithm.step(tiny_batch(0), tiny_batch(1))
    start(algorithm)
    assert algorithm.steps == 0
    assert not algorithm.weight_optimizer.state


@pytest.mark.promise("S9")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_genotype_from_alphas_that_are_not_finite(value, start):
    for algorithm in (DARTS(), GDAS(), MSGDAS()):
        start(algorithm)
        with torch.no_grad():
            algorithm.supernet.alphas["cell"][1, 0] = value
        with pytest.raises(DivergenceError, match=r"alphas\['cell'\] .* at row 1, candidate 0"):
            algorithm.derive()


@pytest.mark.parametrize("method", [GDAS, MSGDAS])
def test_the_sampler_names_a_search_that_diverged(method, start, tiny_batch):
    algorithm = start(method())
    with torch.no_grad():
        algorithm.supernet.alphas["cell"][0, 1] = math.nan
    with pytest.raises(DivergenceError, match=r"step: alphas.*got nan at row 0, candidate 1"):
        algorithm.step(tiny_batch(0), tiny_batch(1))


@pytest.mark.promise("S9")
@pytest.mark.parametrize("method", [DARTS, GDAS, lambda: MSGDAS(alpha_warmup=0)])
def test_a_detached_mixed_operation_raises_the_alarm(method, start, tiny_batch, monkeypatch):
    algorithm = method()
    start(algorithm)
    mix = algorithm.supernet.mix

    def detached(x, gates):
        return mix(x, {t: type(g)(g.weights.detach(), g.active) for t, g in gates.items()})

    monkeypatch.setattr(algorithm.supernet, "mix", detached)
    for step in range(50):
        assert algorithm.alarms() == () or step == 0 or "did not move" in algorithm.alarms()[0]
        algorithm.step(tiny_batch(step), tiny_batch(step + 99))
    assert any("exactly zero in the last 50 steps" in sentence for sentence in algorithm.alarms())
    monkeypatch.setattr(algorithm.supernet, "mix", mix)
    algorithm.step(tiny_batch(0), tiny_batch(1))
    assert not any("exactly zero" in sentence for sentence in algorithm.alarms())


@pytest.mark.promise("S9")
def test_alphas_that_never_left_their_start_raise_the_alarm(start, tiny_batch):
    algorithm = start(DARTS())
    algorithm.alpha_optimizer.param_groups[0]["lr"] = 0.0
    assert algorithm.alarms() == ()
    algorithm.step(tiny_batch(0), tiny_batch(1))
    assert algorithm.alarms() == (
        "the architecture parameters did not move in 1 architecture steps",
    )


@pytest.mark.promise("S9")
def test_a_search_that_ends_in_its_warm_up_raises_the_alarm(start, tiny_batch):
    algorithm = start(MSGDAS(alpha_warmup=1.0), epochs=1, steps_per_epoch=2)
    algorithm.step(tiny_batch(0), tiny_batch(1))
    assert algorithm.alarms() == ()
    algorithm.step(tiny_batch(0), tiny_batch(1))
    (sentence,) = algorithm.alarms()
    assert sentence.startswith("no architecture step was made in 2 steps: search for longer")


def test_darts_is_the_printed_algorithm(start, small_darts, image_batch, freeze):
    """Three steps against algorithm 1 written with nothing but torch."""
    algorithm = start(DARTS(), small_darts, epochs=1, steps_per_epoch=3)
    supernet = copy.deepcopy(algorithm.supernet)
    sgd = torch.optim.SGD(
        supernet.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=True
    )
    adam = torch.optim.Adam(
        supernet.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=True
    )
    for step in range(3):
        train, valid = image_batch(step), image_batch(step + 9)
        algorithm.step(train, valid)

        adam.zero_grad()
        frozen = {n: b.clone() for n, b in supernet.named_buffers()}
        F.cross_entropy(supernet(valid[0]), valid[1]).backward()
        adam.step()
        for name, buffer in supernet.named_buffers():
            buffer.copy_(frozen[name])
        sgd.zero_grad()
        F.cross_entropy(supernet(train[0]), train[1]).backward()
        torch.nn.utils.clip_grad_norm_(supernet.weight_parameters(), 5.0, foreach=True)
        sgd.step()
        assert freeze(algorithm.supernet.state_dict()) == freeze(supernet.state_dict())


def test_clipping_is_of_the_weights_alone(start, tiny_batch, monkeypatch):
    algorithm = start(DARTS(gradient_clip=1e-3))
    algorithm.step(tiny_batch(0), tiny_batch(1))
    norm = torch.stack([p.grad.norm() for p in algorithm.weights if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_ragged_rows_never_train_their_padding(start, tiny_batch):
    for algorithm in (
        DARTS(),
        GDAS(),
        GDAS(variant="A"),
        MSGDAS(alpha_warmup=0),
        MSGDAS(alpha_warmup=0, relaxation="score"),
    ):
        start(algorithm)
        for step in range(5):
            algorithm.step(tiny_batch(step), tiny_batch(step + 9))
        assert algorithm.alphas["cell"][1, 2] == 0
        assert algorithm.alphas["cell"].isfinite().all()


def test_labels_that_are_no_classes_have_no_accuracy(start):
    algorithm = start(DARTS())
    algorithm.loss = F.mse_loss
    batch = torch.randn(6, 4), torch.randn(6, 3)
    metrics = algorithm.step(batch, batch)
    assert "train/loss" in metrics
    assert "train/accuracy" not in metrics
