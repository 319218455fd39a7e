"""The plain supernets: ours, parameter for parameter and number for number; and the papers'."""

import pytest
import torch

from pyfast_nas import _ext, spaces
from pyfast_nas.bench.networks import DARTSCase, NASBench201Case, copy_values
from pyfast_nas.bench.plain_darts import PlainDARTS
from pyfast_nas.bench.plain_nas_bench_201 import PlainNASBench201
from pyfast_nas.testing import relative_error


def test_plain_darts_has_the_parameters_of_ours_in_their_order():
    plain, ours = PlainDARTS(), spaces.DARTS().supernet()
    shapes = [p.shape for p in plain.parameters()]
    assert shapes == [p.shape for p in ours.parameters()] and len(shapes) == 1401
    assert [p.shape for p in plain.arch_parameters()] == [p.shape for p in ours.arch_parameters()]
    assert not list(plain.buffers()) and not list(ours.buffers())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    # Three cells: both kinds, and one behind a reduction.
    "case",
    [DARTSCase(channels=4, cells=3), NASBench201Case(channels=4, blocks=1)],
    ids=["darts", "201"],
)
def test_plain_supernets_compute_what_ours_do_with_and_without_kernels(case, kernels):
    # In float64 no kink of a ReLU is close.
    plain, ours = case.plain().double(), case.ours().double()
    copy_values(plain, ours)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with _ext.use(kernels):
        results = []
        for model in (plain, ours):
            logits = model(images)
            results.append(
                [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]
            )
    for want, got in zip(*results, strict=True):
        # The gradient of a bias in front of a norm vanishes but for rounding.
        if want.detach().abs().max() > 1e-9:
            assert relative_error(got.detach(), want.detach()) < 1e-9
        else:
            assert got.detach().abs().max() < 1e-9


def test_nas_bench_201_has_the_sizes_of_the_paper():
    model = PlainNASBench201()
    # Per edge a 1x1 and a 3x3 convolution with biases; stem 3x3; residual blocks 3x3, 3x3 and 1x1.
    cells = sum(5 * 6 * (10 * width**2 + 2 * width) for width in (16, 32, 64))
    residual = sum(9 * c * 2 * c + 9 * (2 * c) ** 2 + c * 2 * c for c in (16, 32))
    norms = 2 * 16 + 2 * 2 * (32 + 64) + 2 * 64
    expected = 27 * 16 + cells + residual + norms + 64 * 10 + 10 + 6 * 5
    assert sum(p.numel() for p in model.parameters()) == expected == 1_692_826 + 30


@pytest.mark.parametrize("model", [PlainDARTS(2, 3), PlainNASBench201(2, 1)], ids=["darts", "201"])
def test_checkpoints_change_nothing_but_what_is_kept(model):
    images = torch.randn(2, 3, 8, 8)
    results = []
    for checkpointed in (False, True):
        model.checkpointed = checkpointed
        logits = model(images)
        results.append([logits, *torch.autograd.grad(logits.sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_provider_gets_the_same_values():
    case = DARTSCase(batch=2, channels=2, cells=1)
    eager, fused = (case.module(name) for name in ("eager", "fused"))
    assert all(
        torch.equal(a, b) for a, b in zip(eager.parameters(), fused.parameters(), strict=True)
    )
    again = NASBench201Case(batch=2, channels=2, blocks=1)
    first, second = (again.workload("eager").results()[0] for _ in range(2))
    assert torch.equal(first, second)


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="same shapes"):
        copy_values(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
