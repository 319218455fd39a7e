"""fused_node and fused_cell where flags on the device say which candidates run."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap
from torch.library import opcheck

from pyfast_nas import ops
from pyfast_nas.ops import Candidate, Node, reference_edges
from pyfast_nas.ops.node_plan import Plan, params_of
from pyfast_nas.testing import nan_poison
from tests.ops.node_cases import (
    DIL3,
    SELECTED,
    SEP3,
    NodeCase,
    check_close,
    flags_of,
    selecting,
    with_gradients,
    with_params,
    without_the_others,
)

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

SMALL = NodeCase((2, 2, 4, 4), (1,), "a", (SEP3, DIL3))


@pytest.mark.parametrize("which", ["some", "first edge", "last", "all"])
@pytest.mark.parametrize("case", SELECTED, ids=str)
def test_the_others_might_as_well_not_be_there(case, which, backend):
    flags = flags_of(case, which)
    want = without_the_others(case, flags)
    for spoil in (False, True):
        check_close(selecting(case, flags, spoil=spoil), want)


@pytest.mark.parametrize("case", SELECTED, ids=str)
def test_a_node_in_which_nothing_runs_is_zero(case, backend):
    y, _, *found = selecting(case, flags_of(case, "none"), spoil=True)
    assert not any(t.any() for t in (y, *found))


@pytest.mark.promise("M4")
@pytest.mark.parametrize("case", SELECTED[:6], ids=str)
def test_everything_is_written(case, kernels):
    flags = flags_of(case, "some")
    want = selecting(case, flags)
    with nan_poison():
        got = selecting(case, flags)
    assert all(map(torch.equal, got, want))


def test_all_flags_are_no_flags(kernels):
    xs, weights, candidates, gradient = SELECTED[4].make(torch.float64)
    plain = with_gradients(ops.fused_node, xs, weights, candidates, gradient, SELECTED[4].strides)
    assert all(map(torch.equal, selecting(SELECTED[4], flags_of(SELECTED[4], "all")), plain))


def test_flags_of_any_stride(kernels):
    flags = flags_of(SELECTED[0], "some")
    spread = torch.stack([flags, ~flags], 1)[:, 0]
    want = selecting(SELECTED[0], flags)
    assert all(map(torch.equal, selecting(SELECTED[0], spread), want))


def problem(function=ops.fused_node):
    xs, weights, candidates, _ = SMALL.make(torch.float64)
    flags = flags_of(SMALL, "some")

    def call(weights, x, *params):
        return function([x], weights, with_params(candidates, params), (1,), flags)[0]

    return call, [t.requires_grad_() for t in (weights, *xs, *params_of(candidates))]


@pytest.mark.promise("K3")
def test_derivatives_of_every_order(kernels):
    call, tensors = problem()
    assert gradcheck(call, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.promise("K18")
def test_transforms(kernels):
    found = []
    for function in (ops.fused_node, reference_edges.fused_node):
        call, tensors = problem(function)
        weights, x, *params = (t.detach() for t in tensors)
        many = torch.stack([x, 2 * x, -x])
        batched = vmap(lambda x, c=call, w=weights, p=params: c(w, x, *p))(many)
        tangent = jvp(lambda w, c=call, x=x, p=params: c(w, x, *p), (weights,), (weights.cos(),))
        found.append([batched, *tangent])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.promise("K5")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_registration(requires_grad, backend):
    xs, weights, candidates, gradient = SMALL.make(torch.float32)
    flags, last = flags_of(SMALL, "some"), torch.channels_last
    xs = [x.contiguous(memory_format=last).requires_grad_(requires_grad) for x in xs]
    params = [t.requires_grad_(requires_grad) for t in params_of(candidates)]
    plan = Plan.of(candidates, SMALL.strides).arguments()
    forward = torch.ops.pyfast_nas.fused_node.default
    opcheck(forward, (xs, weights, params, None, *plan, flags))
    _, statistics = forward(xs, weights, params, None, *plan, flags)
    backward = (
        gradient.contiguous(memory_format=last),
        [x.detach() for x in xs],
        weights,
        [p.detach() for p in params],
        *(statistics.detach(), *plan, [0], True, list(range(len(params))), flags),
    )
    opcheck(torch.ops.pyfast_nas.fused_node_backward.default, backward)


@pytest.mark.promise("K17")
def test_compiles_as_one_graph(kernels):
    call, tensors = problem()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    got, want = compiled(*tensors), call(*tensors)
    torch.testing.assert_close(got, want)
    for one, other in zip(
        torch.autograd.grad(got.sum(), tensors),
        torch.autograd.grad(want.sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (torch.ones(1, dtype=torch.bool), ValueError, r"selected must have shape \[2\]"),
        (torch.ones(2), TypeError, r"selected must have dtype torch\.bool"),
        (torch.ones(2, dtype=torch.bool, device="meta"), RuntimeError, "selected must be on cpu"),
    ],
)
def test_refusals(flags, error, message):
    with pytest.raises(error, match=message):
        ops.fused_node(
            [torch.ones(1, 2, 3, 3)], torch.ones(2), [Candidate("skip", 0)] * 2, (1,), flags
        )


@pytest.mark.parametrize("again", [False, True])
def test_a_cell_hands_the_flags_to_its_nodes(again, backend):
    case = NodeCase((2, 4, 5, 6), (1,), "a")
    (x,), weights, candidates, _ = case.make(torch.float64)
    flags = flags_of(case, "some")
    found = []
    for of_cell in (True, False):
        leaves = [t.detach().requires_grad_() for t in (x, weights, *params_of(candidates))]
        parts = with_params(candidates, leaves[2:])
        if of_cell:
            nodes = [
                Node((place,), (1,), parts, leaves[1], again and place == 0, chosen)
                for place, chosen in enumerate((flags, ~flags, flags))
            ]
            y, statistics = ops.fused_cell(leaves[:1], nodes, 2)
        else:
            states, statistics = [leaves[0]], []
            for chosen in (flags, ~flags, flags):
                y, of_norms = ops.fused_node([states[-1]], leaves[1], parts, (1,), chosen)
                states.append(y)
                statistics.append(of_norms)
            y = torch.cat(states[2:], 1)
        gradient = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        first = torch.autograd.grad(y, leaves, gradient, create_graph=True)
        loss = sum((g * g.detach()).sum() for g in first)
        found.append([y, *statistics, *first, *torch.autograd.grad(loss, leaves[1:])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
