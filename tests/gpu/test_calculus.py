"""Derivatives of every operator by finite differences, and the registrations torch relies on."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pyfast_nas import ops
from pyfast_nas.ops.node_plan import Plan, params_of
from tests.gpu.devices import on_each_device, over_grid
from tests.gpu.problems import SMALL
from tests.ops.gumbel_cases import SEED
from tests.ops.node_cases import DIL3, SEP3, NodeCase, cast

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@pytest.mark.promise("K3")
@over_grid("problem", SMALL, 1)
def test_first_derivatives(device, problem):
    inputs = problem.inputs(device, torch.float64)
    assert gradcheck(problem.outcome, inputs, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.promise("K4")
@over_grid("problem", SMALL, 1)
def test_second_derivatives(device, problem):
    inputs = problem.inputs(device, torch.float64)
    assert gradgradcheck(problem.outcome, inputs, fast_mode=True)


@pytest.mark.promise("K5")
@on_each_device
def test_registration_of_mixed_sum(device):
    operators = torch.ops.pyfast_nas
    xs = [torch.randn(2, 3, 5, device=device, requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, device=device, requires_grad=True)
    opcheck(operators.mixed_sum.default, (xs, weights))
    gradient = torch.randn_like(xs[0])
    opcheck(operators.mixed_sum_backward.default, (gradient, xs, weights, [0, 2], True))


@pytest.mark.promise("K5")
@on_each_device
def test_registration_of_the_sampler(device):
    operators = torch.ops.pyfast_nas
    seed = SEED.to(device)
    for conditional in (False, True):
        logits = torch.randn(3, 5, device=device, requires_grad=True)
        opcheck(operators.gumbel_topk.default, (logits, 2, 0.7, seed, conditional, True, None))
        _, indices, keys = operators.gumbel_topk(logits, 2, 0.7, seed, conditional, True, None)
        arguments = (torch.randn(3, 2, device=device), keys.detach(), indices, 0.7, conditional)
        opcheck(operators.gumbel_topk_backward.default, arguments)
    keys = torch.randn(3, 5, device=device, requires_grad=True)
    indices = keys.detach().topk(2).indices
    opcheck(operators.subset_weights.default, (keys, indices, 0.7))
    arguments = (torch.randn(3, 2, device=device), keys.detach(), indices, 0.7)
    opcheck(operators.subset_weights_backward.default, arguments)
    opcheck(operators.philox_uniform.default, (seed, 3, 4, 6, 1))


@pytest.mark.promise("K5")
@on_each_device
def test_registration_of_norm_mixed_sum(device):
    operators = torch.ops.pyfast_nas
    xs = [torch.randn(3, 2, 4, device=device) for _ in range(2)]
    params = [torch.rand(2, device=device) for _ in range(2)]
    weights = torch.randn(2, device=device)
    _, statistics = ops.norm_mixed_sum(xs, weights, [ops.Norm(*params), None])
    plan = ([2, 0], [1e-5])  # an affine norm and none
    opcheck(operators.norm_mixed_sum.default, (xs, weights, params, [], *plan))
    backward = (torch.randn_like(xs[0]), xs, weights, params, statistics, *plan)
    opcheck(operators.norm_mixed_sum_backward.default, (*backward, [0, 1], True, [0, 1]))


@pytest.mark.promise("K5")
@on_each_device
def test_registration_of_a_fused_node(device):
    operators = torch.ops.pyfast_nas
    case = NodeCase((2, 2, 4, 4), (1,), "a", (SEP3, DIL3))
    last = {"memory_format": torch.channels_last}
    xs, weights, candidates, gradient = case.make(torch.float32)
    xs = [x.to(device).contiguous(**last).requires_grad_() for x in xs]
    weights, gradient = weights.to(device), gradient.to(device).contiguous(**last)
    candidates = cast(candidates, device)
    params = [t.detach().requires_grad_() for t in params_of(candidates)]
    plan = Plan.of(candidates, case.strides).arguments()
    opcheck(operators.fused_node.default, (xs, weights, params, None, *plan))
    _, statistics = operators.fused_node(xs, weights, params, None, *plan)
    xs, params = [x.detach() for x in xs], [t.detach() for t in params]
    wanted = [0], True, list(range(len(params)))
    backward = (gradient, xs, weights, params, statistics.detach(), *plan, *wanted)
    opcheck(operators.fused_node_backward.default, backward)
