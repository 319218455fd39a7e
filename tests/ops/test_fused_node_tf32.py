"""Products of fused nodes on tensor cores: factors rounded to TF32, sums in float32."""

from collections.abc import Iterator

import pytest
import torch

from pyfast_nas import _ext, ops
from pyfast_nas.ops import Candidate, Norm, Stage, reference_edges
from pyfast_nas.ops.node_plan import params_of
from pyfast_nas.testing import full_float32, relative_error
from tests.ops.node_cases import (
    DIL3,
    FULL,
    REDUCE,
    SEP3,
    NodeCase,
    cast,
    run,
    with_gradients,
)
from tests.ops.tf32_cases import MODELLED, check_tf32, tf32

# Half a unit in the last place of 1 with ten bits behind the point.
UNIT = 2.0**-11


@pytest.fixture(autouse=True)
def tensor_cores(precision, kernels) -> Iterator[None]:
    """Switch TF32 on behind the fixture that switches it off."""
    if not _ext.has_cuda_kernels(torch.device("cpu")):
        pytest.skip("the CPU's own kernels know no TF32")
    with tf32():
        yield


@pytest.mark.promise("K1")
@pytest.mark.parametrize("case", MODELLED, ids=str)
def test_products_are_those_of_rounded_factors(case):
    check_tf32(case)


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 33, 6, 6), (3, 70, 5, 9)], ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_error_is_that_of_rounding_two_factors(shape, size):
    """One convolution between fixed norms: a sum of products, each with two roundings."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape, generator=generator, dtype=torch.float64).float()
    matrix = torch.randn(40, channels, size, size, generator=generator)
    norm = Norm(mean=torch.zeros(40), var=torch.ones(40), eps=0.0)
    candidates = [Candidate("conv", 0, (Stage(None, matrix, norm),))]
    gradient = torch.randn(shape[0], 40, *shape[2:], generator=generator)
    got = with_gradients(ops.fused_node, [x], torch.ones(1), candidates, gradient, (1,))

    def wide(change):
        changed = cast(candidates, torch.float64)
        stage = changed[0].stages[0]
        changed = [Candidate("conv", 0, (stage._replace(matrix=change(stage.matrix)),))]
        tensors = [change(x.double())], torch.ones(1).double(), changed, change(gradient.double())
        return with_gradients(reference_edges.fused_node, *tensors, (1,))

    truth, scales = wide(lambda t: t), wide(torch.abs)
    assert relative_error(got[0], truth[0]) > UNIT / 10
    for place in (0, 3, 4):  # the sum, the gradients of the input and of the matrix
        bound = (2 * UNIT + 2.0**-20) * scales[place].amax()
        assert (got[place].double() - truth[place]).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [(3, 5), (16, 16), (24, 32), (40, 70), (130, 64)], ids=str)
@pytest.mark.parametrize("kind", ["pointwise", "full", "reduction"])
def test_small_integers_are_exact(dtype, channels, kind):
    """Ten bits hold them: a number that stands in a wrong place of a fragment shows."""
    c_in, c_out = channels
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randint(-3, 4, size, generator=generator).float()

    norm = Norm(mean=torch.zeros(c_out), var=torch.ones(c_out), eps=0.0)
    matrix, stride = draw(c_out, c_in, 1, 1), 1
    stage = Stage(None, matrix, norm)
    if kind == "full":
        stage = Stage(None, draw(c_out, c_in, 3, 3), norm)
    if kind == "reduction":
        rows = (c_out + 1) // 2
        stage, stride = Stage(None, matrix[:rows], norm, shifted=matrix[rows:]), 2
    x = draw(2, c_in, 10, 6).to(dtype)
    size = [side // stride for side in (10, 6)]
    arguments = [[x], torch.ones(1), [Candidate("conv", 0, (stage,))]]
    gradient = draw(2, c_out, *size).to(dtype)
    got = with_gradients(ops.fused_node, *arguments, gradient, (stride,))
    with full_float32():
        want = with_gradients(ops.fused_node, *arguments, gradient, (stride,))
    assert all(map(torch.equal, got, want)) and bool(want[0].any())


def test_backward_keeps_to_the_switch_of_its_forward():
    case = NodeCase((2, 16, 8, 8), (1,), "a", (DIL3, FULL[0]))
    xs, weights, candidates, gradient = case.make()
    want = with_gradients(ops.fused_node, xs, weights, candidates, gradient, (1,))
    x = xs[0].clone().requires_grad_()
    y, _ = ops.fused_node([x], weights, candidates, (1,))
    with full_float32():
        (found,) = torch.autograd.grad(y, x, gradient)
    assert torch.equal(found, want[3])
    with full_float32():
        other, _ = ops.fused_node([x], weights, candidates, (1,))
    assert not torch.equal(other, y)


def test_a_cell_follows_the_switch_from_call_to_call():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 4, 4, generator=generator, requires_grad=True)
    stage = Stage(None, torch.randn(8, 8, 1, 1, generator=generator), Norm())
    node = ops.Node((0,), (1,), [Candidate("conv", 0, (stage,))], torch.ones(1))
    cell = ops.FusedCell([x], [node], 1)

    def call():
        y, _ = cell([x], [torch.ones(1)])
        return [y, *torch.autograd.grad(y.square().sum(), x)]

    rounded_first = call()
    with full_float32():
        exact = call()
    assert all(map(torch.equal, call(), rounded_first))
    assert not torch.equal(exact[0], rounded_first[0])
    node_by_node, _ = ops.fused_node([x], torch.ones(1), node.candidates, (1,))
    assert torch.equal(node_by_node, rounded_first[0])


def test_float64_is_not_rounded():
    case = NodeCase((2, 6, 8, 8), (2,), "a", (REDUCE, SEP3, FULL[0]))
    got = run(case, torch.float64)
    with full_float32():
        assert all(map(torch.equal, got, run(case, torch.float64)))


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay(value):
    case = NodeCase((2, 5, 5, 5), norm="g")
    xs, weights, candidates, gradient = case.make()
    xs[0][1, 2, 3, 2] = value
    next(params_of(candidates)).view(-1)[1] = value
    got = with_gradients(ops.fused_node, xs, weights, candidates, gradient, (1,))
    with full_float32():
        want = with_gradients(ops.fused_node, xs, weights, candidates, gradient, (1,))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
