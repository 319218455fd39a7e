"""Second-order steps: the numbers of the CPU, and nothing that the host would have to fetch."""

import contextlib

import pytest
import torch

from pyfast_nas import hypergradients as hg
from pyfast_nas.hypergradients import products
from pyfast_nas.hypergradients.problem import replayed_streams
from pyfast_nas.nn import frozen_statistics
from pyfast_nas.spaces import DARTS
from tests.gpu.devices import on_each_device

SPACE = DARTS(channels=4, cells=3, image_size=8, num_classes=3, track_running_stats=True)


@contextlib.contextmanager
def quiet(net, device):
    """As a search does: the layers of fused nodes stay what they are from pass to pass."""
    with replayed_streams(device), frozen_statistics(net):
        yield


def made(device, dtype):
    torch.manual_seed(0)
    net = SPACE.supernet().to(device, dtype)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.01, momentum=0.9, foreach=True)
    problem = hg.BilevelProblem.of_module(net, weight_optimizer=optimizer)
    problem.without_trace = lambda: quiet(net, problem.device)
    draw = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(2):
        images = torch.randn(4, 3, 8, 8, generator=draw, dtype=torch.float64)
        labels = torch.randint(3, (4,), generator=draw)
        batches.append((images.to(device, dtype), labels.to(device)))
    return problem, *batches


@pytest.mark.promise("H1")
@on_each_device
@pytest.mark.parametrize("name", ["finite_difference", "unrolled", "neumann"])
def test_gradients_are_those_of_the_cpu(device, name):
    estimator = hg.ESTIMATORS[name]
    # Kinks: a difference at the usual radius may cross another one for each last bit.
    options = {"radius": 1e-6} if name == "finite_difference" else {}
    here = estimator(*made(device, torch.float64), **options)
    there = estimator(*made("cpu", torch.float64), **options)
    for got, want in zip(here, there, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-7)


@on_each_device
def test_the_published_step_asks_for_nothing(device, never_waits, monkeypatch):
    problem, train, valid = made(device, torch.float32)
    hg.finite_difference(problem, train, valid)
    if device == "cpu":  # where a vector that is not finite is refused at once
        monkeypatch.setattr(products, "_require_finite", lambda kind, u: None)
    with never_waits():
        hg.finite_difference(problem, train, valid)
        hg.neumann(problem, train, valid, max_growth=None, hvp="finite_difference")
