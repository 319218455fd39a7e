"""fused_node: values, first derivatives, statistics, layouts, determinism, memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pyfast_nas import _ext, ops
from pyfast_nas.ops import Candidate, Norm, reference_edges
from pyfast_nas.ops.node_plan import params_of
from pyfast_nas.testing import TOLERANCE, nan_poison, relative_error
from tests.ops.node_cases import (
    CASES,
    DIL3,
    FULL,
    REDUCE,
    SEP3,
    NodeCase,
    cast,
    check_float32,
    check_float64,
    check_half,
    run,
    truth_of,
    with_gradients,
    with_params,
)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_equals_the_reference(case, instruction_set):
    check_float64(case)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_at_most_twice_as_wrong_as_eager(case, instruction_set):
    check_float32(case)


HALVES = [torch.bfloat16, torch.float16]


def ask_for_kernels(dtype: torch.dtype) -> None:
    if not ops.serves_fused_node(torch.ones(1, 1, 1, 1, dtype=dtype)):
        pytest.skip("no kernel of this library takes 16-bit maps")


@pytest.fixture(params=HALVES, ids=["bfloat16", "float16"])
def half(request, kernels) -> torch.dtype:
    """Ask for kernels that take 16-bit maps."""
    ask_for_kernels(request.param)
    return request.param


@pytest.mark.promise("K1")
@pytest.mark.promise("K2")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_16_bit_maps_are_at_most_twice_as_wrong_as_eager(case, half):
    check_half(case, half)


@pytest.mark.promise("K15")
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
def test_16_bit_parameters_are_brought_to_float32_and_their_gradients_back(dtype, backend):
    case = NodeCase((2, 6, 8, 8), (2,), "ag", (REDUCE, SEP3, FULL[0]))
    xs, weights, candidates, gradient = case.make(dtype)
    got = with_gradients(ops.fused_node, xs, weights, candidates, gradient, case.strides)
    wide = weights.float(), cast(candidates, torch.float32)
    want = with_gradients(ops.fused_node, xs, *wide, gradient, case.strides)
    assert {t.dtype for t in got[2:]} == {got[0].dtype} == {dtype}
    for place, (one, other) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(one, other if place == 1 else other.to(dtype))


@pytest.mark.promise("K4")
def test_second_derivatives_of_16_bit_maps(half):
    """By plain operations in float32, under autocast too."""
    case = NodeCase((2, 3, 4, 4), (1,), "ag", (DIL3,))
    xs, weights, candidates, _ = case.make(half, torch.float32)

    def curved(cast_to):
        x = xs[0].detach().to(cast_to).requires_grad_()
        w = weights.detach().to(torch.promote_types(cast_to, torch.float32)).requires_grad_()
        here = cast(candidates, w.dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = ops.fused_node([x], w, here, (1,))
            first = torch.autograd.grad(y.double().square().sum(), (x, w), create_graph=True)
            return torch.autograd.grad(sum(g.double().square().sum() for g in first), (x, w))

    for got, want in zip(curved(half), curved(torch.float64), strict=True):
        assert relative_error(got, want) <= TOLERANCE[half]


@pytest.mark.promise("K15")
def test_dtypes_that_do_not_fit_are_refused(backend):
    x = torch.ones(2, 3, 4, 4)
    skip = [Candidate("skip", 0)]
    with pytest.raises(TypeError, match=r"weights must have dtype torch\.float32 like xs"):
        ops.fused_node([x], torch.ones(1, dtype=torch.bfloat16), skip, (1,))
    with pytest.raises(TypeError, match=r"like xs\[0\], or torch\.float32, got torch\.float16"):
        ops.fused_node([x.bfloat16()], torch.ones(1, dtype=torch.float16), skip, (1,))
    with pytest.raises(TypeError, match=r"xs\[1\] must have dtype torch\.bfloat16 like xs\[0\]"):
        ops.fused_node([x.bfloat16(), x], torch.ones(1), skip, (1, 1))
    with pytest.raises(TypeError, match=r"xs must have dtype float64, .* got torch\.int64"):
        ops.fused_node([x.long()], torch.ones(1), skip, (1,))


@pytest.mark.parametrize(
    "case", [NodeCase((4, 16, 16, 16)), NodeCase((2, 16, 8, 8), (2,))], ids=str
)
def test_large_mean_small_deviation(case, kernels):
    """Inputs with mean 1000 and deviation 1: nothing of the variance is lost."""
    case = NodeCase(case.shape, case.strides, mean=1e3)
    truth = truth_of(case)
    plain = run(case, function=reference_edges.fused_node)
    for got, eager, want in zip(run(case), plain, truth, strict=True):
        assert relative_error(got, want) <= 2 * relative_error(eager, want) + 1e-5


def test_a_product_whose_terms_cancel(kernels):
    """Channels nearly equal, rows that sum to zero: a variance out of almost nothing."""
    case = NodeCase((4, 16, 8, 8), windows=(((0, 1),), SEP3), pools=False)
    xs, weights, candidates, gradient = case.make(torch.float64)
    xs = [x.abs() * 1e-3 + x[:, :1].abs() for x in xs]
    matrices = [c.stages[0].matrix - c.stages[0].matrix.mean(1, keepdim=True) for c in candidates]
    candidates = [
        c._replace(stages=(c.stages[0]._replace(taps=None, matrix=m), *c.stages[1:]))
        for c, m in zip(candidates, matrices, strict=True)
    ]
    wide = [xs, weights, candidates, gradient, case.strides]
    narrow = [[x.float() for x in xs], weights.float(), cast(candidates, torch.float32)]
    narrow += [gradient.float(), case.strides]
    truth = with_gradients(reference_edges.fused_node, *wide)
    plain = with_gradients(reference_edges.fused_node, *narrow)
    for got, eager, want in zip(with_gradients(ops.fused_node, *narrow), plain, truth, strict=True):
        assert relative_error(got, want) <= 2 * relative_error(eager, want) + 1e-5


@pytest.mark.promise("K9")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded", "offset"])
def test_layouts_of_inputs_and_gradient(layout, dtype, kernels):
    ask_for_kernels(dtype)
    case = NodeCase((3, 6, 5, 4))
    xs, weights, candidates, gradient = case.make(dtype)

    def lay(t):
        if layout == "transposed":
            return t.transpose(2, 3).contiguous().transpose(2, 3)
        if layout == "sliced":
            return torch.stack([t, t], -1).flatten(-2)[..., ::2]
        if layout == "expanded":
            return t[:1].expand_as(t)
        if layout == "offset":
            flat = torch.cat([t.new_zeros(1), t.flatten()])
            return flat[1:].view_as(t)
        return t.contiguous()

    laid = [lay(x) for x in xs]
    dense = [x.contiguous(memory_format=torch.channels_last) for x in laid]
    weights2 = torch.stack([weights, weights], 1)[:, 0]
    got = with_gradients(ops.fused_node, laid, weights2, candidates, lay(gradient), case.strides)
    want = with_gradients(
        ops.fused_node, dense, weights, candidates, lay(gradient).clone(), case.strides
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.promise("D1")
@pytest.mark.parametrize(
    "case", [NodeCase((6, 8, 7, 6), (1, 1)), NodeCase((9, 16, 16, 16), (2,), "a")], ids=str
)
def test_bits_do_not_depend_on_threads_or_repeats(case, kernels):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            results.append(run(case))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.promise("M4")
@pytest.mark.parametrize(
    "case", [NodeCase((3, 5, 7, 6)), NodeCase((2, 16, 9, 9), (2,), "a")], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_depends_on_what_memory_held(case, dtype, kernels):
    ask_for_kernels(dtype)
    want = run(case, dtype)
    torch.ops.pyfast_nas.node_scratch(0xFF)
    with nan_poison():
        got = run(case, dtype)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.promise("K7")
@pytest.mark.parametrize("needed", ["weights", "inputs", "one input", "parameters", "one", "norms"])
def test_only_what_is_needed_is_computed(needed, kernels):
    case = NodeCase((2, 6, 5, 5), (1, 1), "a")
    xs, weights, candidates, gradient = case.make(torch.float64)
    full = with_gradients(ops.fused_node, xs, weights, candidates, gradient, case.strides)
    params = [t.detach() for t in params_of(candidates)]
    tensors = [weights, *xs, *params]
    wanted = {
        "weights": [0],
        "inputs": [1, 2],
        "one input": [2],
        "parameters": list(range(3, len(tensors))),
        "one": [len(tensors) - 1],
        "norms": [i for i, t in enumerate(tensors) if t.dim() == 1 and i > 2],
    }[needed]
    leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(t.clone() for t in tensors)]
    y, _ = ops.fused_node(leaves[1:3], leaves[0], with_params(candidates, leaves[3:]), (1, 1))
    found = torch.autograd.grad(y, [leaves[i] for i in wanted], gradient)
    for i, value in zip(wanted, found, strict=True):
        assert torch.equal(value, full[2 + i])


def test_backward_keeps_inputs_and_statistics(kernels):
    xs, weights, candidates, _ = NodeCase((4, 16, 16, 16), (1, 1)).make()
    xs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in xs]
    params = {p.data_ptr() for p in params_of(candidates)}
    kept = {}

    def pack(t):
        if t.data_ptr() not in params:
            kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ops.fused_node(xs, weights, candidates, (1, 1))
    of_inputs = sum(x.untyped_storage().nbytes() for x in xs)
    assert of_inputs <= sum(kept.values()) <= 1.05 * of_inputs


@pytest.mark.promise("K8")
def test_inputs_stay_as_they_are(kernels):
    case = NodeCase((2, 6, 5, 5))
    xs, weights, candidates, gradient = case.make()
    before = [t.clone() for t in (weights, *xs, *params_of(candidates))]
    with_gradients(ops.fused_node, xs, weights, candidates, gradient, case.strides)
    after = (weights, *xs, *params_of(candidates))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    x = xs[0].contiguous(memory_format=torch.channels_last).requires_grad_() * 1
    y, _ = ops.fused_node([x], weights, candidates, (1,))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 3, 2), (1, 4, 4, 4)])
def test_nan_and_infinity_go_where_the_reference_has_them(value, place, kernels):
    case = NodeCase((2, 5, 5, 5), norm="g")
    xs, weights, candidates, gradient = case.make()
    xs[0][place] = value
    got = with_gradients(ops.fused_node, xs, weights, candidates, gradient, (1,))
    want = with_gradients(reference_edges.fused_node, xs, weights, candidates, gradient, (1,))
    for one, other in zip(got[:3], want[:3], strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


def test_ties_of_a_pool_go_to_the_first(kernels):
    x = torch.zeros(1, 3, 5, 5).requires_grad_()
    candidates = [Candidate("max_pool", 0)]
    for stride in (1, 2):
        y, _ = ops.fused_node([x], torch.ones(1), candidates, (stride,))
        plain = torch.nn.functional.max_pool2d(x, 3, stride, 1)
        gradient = torch.arange(y.numel(), dtype=torch.float32).view_as(y)
        assert torch.equal(
            torch.autograd.grad(y, x, gradient)[0], torch.autograd.grad(plain, x, gradient)[0]
        )


def test_candidates_of_one_kind_twice(backend):
    """Two maximum pools, three means, two skips and more terms than fit into one pass."""
    candidates = [Candidate("max_pool", 0), Candidate("max_pool", 0, norm=Norm())]
    candidates += [Candidate("avg_pool", 0)] * 3 + [Candidate("skip", 0)] * 5
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    weights = torch.rand(10, dtype=torch.float64)
    gradient = torch.randn_like(x)
    got = with_gradients(ops.fused_node, [x], weights, candidates, gradient, (1,))
    want = with_gradients(reference_edges.fused_node, [x], weights, candidates, gradient, (1,))
    for one, other in zip(got, want, strict=True):
        assert relative_error(one, other) <= TOLERANCE[torch.float64]


def test_an_edge_without_candidates_gives_zero_gradient(kernels):
    xs = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    y, _ = ops.fused_node(xs, torch.ones(1), [Candidate("skip", 1)], (1, 1))
    assert torch.equal(y, xs[1])
    first, second = torch.autograd.grad(y.sum(), xs)
    assert torch.equal(first, torch.zeros_like(first)) and torch.equal(
        second, torch.ones_like(second)
    )


@pytest.mark.untwinned("the CUDA kernels keep no scratch between calls")
def test_scratch_is_reported_and_freed(kernels):
    run(NodeCase((2, 16, 8, 8)))
    assert torch.ops.pyfast_nas.node_scratch(-1) > 0
    assert torch.ops.pyfast_nas.node_scratch(-2) == 0
    want = run(NodeCase((2, 16, 8, 8)))
    assert all(map(torch.equal, want, run(NodeCase((2, 16, 8, 8)))))


def test_two_threads_at_once(kernels):
    """Calls from two Python threads do not share scratch."""
    cases = [NodeCase((2, 16, 8, 8)), NodeCase((3, 5, 7, 6), (2,), "a")]
    want = [run(case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            got = list(pool.map(run, cases))
            for one, other in zip(got, want, strict=True):
                assert all(map(torch.equal, one, other))


def test_empty_batch_falls_to_plain_operations(kernels):
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    y, _ = ops.fused_node(
        [x], torch.ones(2), [Candidate("skip", 0), Candidate("avg_pool", 0)], (1,)
    )
    assert y.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_statistics_are_mean_and_biased_variance(backend):
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    _, statistics = ops.fused_node(
        [x], torch.ones(1, dtype=torch.float64), [Candidate("avg_pool", 0, norm=Norm())], (1,)
    )
    pooled = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    var, mean = torch.var_mean(pooled, (0, 2, 3), correction=0)
    assert statistics.dtype == torch.float64 and not statistics.requires_grad
    torch.testing.assert_close(statistics[0], torch.stack([mean, var]))


def test_dtypes_of_a_search_run_through_the_kernel(kernels):
    x = torch.randn(2, 3, 4, 4)
    assert ops.serves_fused_node(x) and ops.serves_fused_node(x.double())
    halves = _ext.has_cuda_kernels(x.device)  # the CPU's own take none
    assert all(ops.serves_fused_node(x.to(dtype)) == halves for dtype in HALVES)
    assert not ops.serves_fused_node(x[0])
    candidates = cast(NodeCase((2, 3, 4, 4)).make()[2], torch.float64)
    with pytest.raises(TypeError, match=r"must have dtype torch\.float32 like xs"):
        ops.fused_node([x], torch.ones(len(candidates)), candidates, (1,))
