"""A search that diverges says so on every device, and the one after it is not refused for it."""

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.algorithms import StepGraph
from pyfast_nas.errors import DivergenceError
from tests.gpu.devices import GPU, over_grid
from tests.gpu.test_recorded_steps import SEARCHES, batches, prepared

DRAWING = tuple(name for name in SEARCHES if name not in ("DARTS", "SNAS"))
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])


def diverge(algorithm):
    with torch.no_grad():
        algorithm.supernet.alphas["normal"][0, 1] = torch.nan


def search_again(device, search):
    """Begin another search in the same process, to which nothing has happened."""
    algorithm = prepared(device, search)
    for train, valid in batches(device, 2):
        metrics = algorithm.step(train, valid)
        assert all(torch.as_tensor(value).isfinite() for value in metrics.values())
    algorithm.derive()


@over_grid("search", DRAWING, 2)
def test_a_plain_step_says_that_the_search_has_diverged(device, search):
    algorithm = prepared(device, search)
    ((train, valid), *others) = batches(device, 3)
    algorithm.step(train, valid)
    diverge(algorithm)
    for pair in others:  # as often as it is asked
        with pytest.raises(DivergenceError, match=r"step: alphas\['normal'\] must be finite"):
            algorithm.step(*pair)
    search_again(device, search)


@over_grid("search", DRAWING, 2)
def test_recorded_steps_go_on_until_somebody_looks(device, search):
    """No index of -1 ends the process; what made the logits NaN is in the metrics by then."""
    algorithm = prepared(device, search, steps_per_epoch=10)
    graph = StepGraph(algorithm)
    # In the last of three epochs, where all that a step ever does has been recorded.
    pairs = batches(device, 27 if device == "cuda" else 3)
    for train, valid in pairs[:-2]:
        graph.step(train, valid)
    diverge(algorithm)
    if device == "cuda":
        assert not graph.reason
        for train, valid in pairs[-2:]:
            graph.step(train, valid)
        torch.cuda.synchronize()
    else:  # where nothing is recorded
        with pytest.raises(DivergenceError):
            graph.step(*pairs[-1])
    with pytest.raises(DivergenceError, match="derive: alphas"):
        algorithm.derive()
    search_again(device, search)


@on_gpu
def test_a_refusal_ends_the_next_call_unless_it_is_forgotten(device, kernels):
    seed = torch.tensor([0, 1], device=device)

    def sample(value):
        logits = torch.full((3, 4), value, device=device)
        return ops.gumbel_topk(logits, 2, tau=1.0, seed=seed)

    ops.forget_refusals(device)  # of other tests
    weights, indices = sample(torch.nan)
    assert (indices == -1).all() and not weights.any()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="an earlier call on CUDA"):
        sample(0.0)
    sample(torch.nan)
    assert ops.forget_refusals(device) and not ops.forget_refusals(device)
    assert (sample(0.0)[1] >= 0).all()
