"""Every algorithm finds the known optimum of the toy space."""

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.algorithms import DARTS, GDAS, MSGDAS, SNAS, UNAS, ProxylessNAS, RandomSearch

# The toy problem's own optimizers: no momentum, no decay, quick alphas.
TOY = {
    "weight_lr": 0.1,
    "weight_lr_min": 0.1,
    "weight_momentum": 0.0,
    "weight_decay": 0.0,
    "alpha_lr": 0.05,
    "alpha_decay": 0.0,
}
# Without Nesterov's momentum there is none, and the architecture moves in every step.
AT_ONCE = {"weight_nesterov": False, "alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0}


def run(algorithm, toy_batch, seed, steps, epochs):
    space = spaces.Toy()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    supernet = space.supernet()
    with torch.no_grad():
        supernet.alphas["cell"].zero_()
    algorithm.prepare(
        supernet,
        space=space,
        epochs=epochs,
        steps_per_epoch=steps // epochs,
        generator=generator,
    )
    for _ in range(steps):
        algorithm.step(toy_batch(generator=generator), toy_batch(generator=generator))
    return algorithm


@pytest.mark.parametrize(
    ("paths", "relaxation", "assignment", "seed"),
    [
        (1, "shared", "rank", 0),
        (2, "shared", "shuffle", 1),
        (2, "conditional", "rank", 2),
        (3, "conditional", "shuffle", 3),
        (4, "shared", "rank", 4),
        (2, "subset", "shuffle", 0),
    ],
)
def test_msg_das_is_sure_of_the_informative_candidate(
    paths, relaxation, assignment, seed, toy_batch, steps=200
):
    algorithm = MSGDAS(
        paths=paths,
        relaxation=relaxation,
        assignment=assignment,
        alpha_warmup=0,
        kd_weight=0,
        drop_rate=0,
        **TOY,
    )
    run(algorithm, toy_batch, seed, steps, epochs=steps)
    assert algorithm.probabilities()["cell"][:, 0].min() > 0.95
    assert algorithm.derive() == spaces.Toy().optimum()


@pytest.mark.long
@pytest.mark.parametrize("assignment", ["rank", "shuffle"])
@pytest.mark.parametrize("relaxation", ["shared", "conditional", "subset"])
@pytest.mark.parametrize("paths", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_msg_das_in_all_forms(paths, relaxation, assignment, seed, toy_batch):
    test_msg_das_is_sure_of_the_informative_candidate(
        paths, relaxation, assignment, seed, toy_batch, steps=500
    )


@pytest.mark.parametrize("seed", range(5))
def test_gdas_is_sure_of_the_informative_candidate(seed, toy_batch, steps=200):
    algorithm = run(GDAS(weight_nesterov=False, **TOY), toy_batch, seed, steps, epochs=steps)
    assert algorithm.probabilities()["cell"][:, 0].min() > 0.95
    assert algorithm.derive() == spaces.Toy().optimum()


@pytest.mark.parametrize(("form", "seed"), [("full_v2", 0), ("full", 1), ("two", 2)])
def test_proxylessnas_is_sure_of_the_informative_candidate(form, seed, toy_batch, steps=300):
    # A step of pairs moves two of four candidates, and moves them back together.
    rate = {"alpha_lr": 0.1} if form == "two" else {}
    algorithm = ProxylessNAS(gradient=form, **AT_ONCE, **(TOY | rate))
    run(algorithm, toy_batch, seed, steps, epochs=steps)
    assert algorithm.probabilities()["cell"][:, 0].min() > 0.95
    assert algorithm.derive() == spaces.Toy().optimum()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_gdas_in_full_length(seed, toy_batch):
    test_gdas_is_sure_of_the_informative_candidate(seed, toy_batch, steps=500)


@pytest.mark.long
@pytest.mark.parametrize("form", ["full", "full_v2", "two"])
@pytest.mark.parametrize("seed", range(5))
def test_proxylessnas_in_all_forms(form, seed, toy_batch):
    test_proxylessnas_is_sure_of_the_informative_candidate(form, seed, toy_batch, steps=500)


QUICK = TOY | {"alpha_lr": 0.1}
FINDERS = {
    "darts": lambda: DARTS(**QUICK),
    "gdas": lambda: GDAS(tau_max=1.0, tau_min=0.5, weight_nesterov=False, **QUICK),
    "msg-das": lambda: MSGDAS(tau_max=1.0, tau_min=0.5, **QUICK),
    "msg-das score": lambda: MSGDAS(relaxation="score", score_baseline=0.9, **QUICK),
    "snas": lambda: SNAS(tau_min=0.5, **QUICK),
    "proxylessnas rewards": lambda: ProxylessNAS(
        gradient="reinforce", samples=4, **AT_ONCE, **QUICK
    ),
    "unas": lambda: UNAS(weight_lr=0.02, weight_lr_min=0.01, alpha_lr=0.1, alpha_warmup=0.1),
    "random": lambda: RandomSearch(
        weight_lr=0.1, weight_lr_min=0.1, weight_momentum=0.0, weight_decay=0.0, samples=40
    ),
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("darts", 40),
        ("gdas", 40),
        ("msg-das", 40),
        ("random", 40),
        ("snas", 40),
        ("unas", 40),
        # The score function is unbiased and noisy: it takes longer.
        pytest.param("msg-das score", 100, marks=pytest.mark.long),
        pytest.param("proxylessnas rewards", 100, marks=pytest.mark.long),
    ],
)
def test_optimum_for_nine_of_ten_seeds(name, steps, toy_batch):
    found = 0
    for seed in range(10):
        algorithm = run(FINDERS[name](), toy_batch, seed, steps, epochs=10)
        found += algorithm.derive() == spaces.Toy().optimum()
    assert found >= 9
