"""norm_mixed_sum: values, gradients, statistics, layouts, dtypes, memory and repeatability."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pyfast_nas import _ext, ops
from pyfast_nas.ops import Norm, _library, reference_norm
from pyfast_nas.testing import (
    LAYOUTS,
    TOLERANCE,
    accumulation_dtype,
    arrange,
    nan_poison,
    relative_error,
)
from tests.ops.norm_cases import (
    KINDS,
    PAIRS,
    SHAPES,
    Case,
    channels_last,
    check_against_float64,
    eager,
    fused,
    name,
    params_of,
    run,
)

# 70 are more than one launch on CUDA takes.
COUNTS = (1, 2, 5, 8, 9, 33, 70)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_values_and_gradients(pair, instruction_set):
    for shape, num_ops in itertools.product(SHAPES, (2, 5, 9)):
        case = Case(shape, num_ops, pair)
        check_against_float64(case)
        if len(shape) > 2:
            case.xs = [channels_last(x) for x in case.xs]
            check_against_float64(case)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("num_ops", COUNTS)
@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="-".join)
def test_counts_and_kinds(num_ops, kinds, backend):
    check_against_float64(Case((3, 4, 5, 7), num_ops, kinds=kinds))


@pytest.mark.promise("K1")
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (3, 24, 57, 57), (5, 1500, 3, 3), (4099, 64)])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_many_pieces(shape, last, kernels):
    case = Case(shape, 2)
    if last:
        case.xs = [channels_last(x) for x in case.xs]
    check_against_float64(case)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("values", ["equal", "zeros", "far", "tiny", "one_far"])
def test_special_values(values, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    case = Case((4, 3, 6, 6), 3, (dtype, dtype), kinds=("affine", "plain", "none"))
    if values == "equal":
        case.xs = [torch.full_like(x, 3.0) for x in case.xs]
    if values == "zeros":
        case.weights[1] = 0.0
        case.norms[0].gamma[1] = 0.0
    if values == "far":  # squares overflow float32
        case.xs = [*(x.sign() * 1e30 for x in case.xs[:2]), case.xs[2]]
    if values == "tiny":  # denormals, far below epsilon
        case.xs = [x * 1e-39 for x in case.xs]
    if values == "one_far":
        case.xs[0][0, 1, 0, 0] = 1e4
    got, want = run(fused, case), run(eager, case.to(torch.float64))
    for one, truth in zip(got, want, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.promise("K1")
@pytest.mark.parametrize("shape", [(64, 16, 16, 16), (500, 20)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_mean_of_a_thousand_deviations(shape, last, instruction_set):
    case = Case(shape, 3, kinds=("affine", "plain"), mean=1e3, deviation=1)
    if last:
        case.xs = [channels_last(x) for x in case.xs]
    got, want = run(fused, case), run(eager, case.to(torch.float64))
    assert (got[1] - want[1]).abs().amax() < 1e-5
    for one, truth in zip(got, want, strict=True):
        assert relative_error(one, truth) < 2e-6
    check_against_float64(case)


@pytest.mark.promise("K9")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[1], PAIRS[5]], ids=name)
def test_layout_does_not_matter(layout, pair, backend):
    for shape in ((2, 3, 5, 7), (4, 16, 8, 8), (5, 6, 20), (33, 4)):
        if layout == "expanded" and len(shape) == 2:
            continue  # each channel would hold one value only
        for where in ("all", "first", "last", "grad"):
            case = Case(shape, 5, pair)
            moved = {"all": range(5), "first": [0], "last": [4], "grad": []}[where]
            for k in moved:
                case.xs[k] = arrange(case.xs[k], layout)
            if where in ("all", "grad"):
                case.grad = arrange(case.grad, layout)
            got = run(fused, case)
            case.xs = [x.contiguous() for x in case.xs]
            case.grad = case.grad.contiguous()
            want = run(fused, case)
            dtypes = [one.dtype for one in got]
            dtypes[1] = accumulation_dtype(pair[0])  # what the statistics are made of
            for one, other, dtype in zip(got, want, dtypes, strict=True):
                assert relative_error(one, other) <= TOLERANCE[dtype]


@pytest.mark.promise("K9")
def test_strided_vectors(backend):
    case = Case((4, 3, 5), 2, kinds=("given_affine", "affine"))
    want = run(fused, case)
    case.weights = torch.stack([case.weights] * 3, 1)[:, 1]
    case.norms = [
        Norm(*(None if t is None else torch.stack([t] * 2, 1)[:, 0] for t in norm[:4]), norm.eps)
        for norm in case.norms
    ]
    assert all(map(torch.equal, run(fused, case), want))


@pytest.mark.promise("K10")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_follows_the_first_candidate(layout, kernels):
    case = Case((2, 3, 5, 7), 3)
    case.xs[0] = arrange(case.xs[0], layout)
    results = run(fused, case)
    assert results[0].stride() == torch.empty_like(case.xs[0]).stride()
    assert all(g.stride() == results[0].stride() for g in results[3:6])
    arguments = (params_of(case.norms), [], [2, 1, 0], [1e-5, 1e-5])
    real = torch.ops.pyfast_nas.norm_mixed_sum(case.xs, case.weights, *arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) for x in case.xs]
        fake = torch.ops.pyfast_nas.norm_mixed_sum(
            fakes, mode.from_tensor(case.weights), *arguments
        )
    for one, other in zip(fake, real, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.promise("K11")
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_empty(shape, backend):
    case = Case(shape, 5)
    y, statistics, *gradients = run(fused, case)
    assert y.shape == shape and statistics.shape == (4, 2, shape[1])
    for leaf, gradient in zip(case.leaves(), gradients, strict=True):
        assert leaf.shape == gradient.shape
        assert (gradient == 0).all()


@pytest.mark.promise("K11")
def test_one_value_needs_given_statistics(backend):
    check_against_float64(Case((1, 3), 3, kinds=("given", "none", "given_affine")))
    with pytest.raises(ValueError) as caught:
        nn.BatchNorm1d(3)(torch.ones(1, 3))
    with pytest.raises(ValueError, match="norm_mixed_sum: norms") as ours:
        ops.norm_mixed_sum([torch.ones(1, 3)], torch.ones(1), [Norm()])
    assert str(caught.value) in str(ours.value)


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[4], PAIRS[3]], ids=name)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_nan_and_infinity_appear_where_the_fallback_puts_them(value, pair, last, kernels):
    for shape, k, place in itertools.product([(3, 4, 5, 5), (9, 7)], range(5), (0, -1, 17)):
        case = Case(shape, 5, pair)
        case.xs[k].view(-1)[place] = value
        if last:
            case.xs = [channels_last(x) for x in case.xs]
        got, want = run(fused, case), run(reference_norm.norm_mixed_sum, case)
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(one.isposinf(), other.isposinf())
            assert torch.equal(one.isneginf(), other.isneginf())


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_gradient_spoils_its_channel_only(value, kernels):
    case = Case((3, 4, 5, 5), 5)
    case.grad[1, 2, 0, 3] = value
    got, want = run(fused, case), run(reference_norm.norm_mixed_sum, case)
    for one, other in zip(got, want, strict=True):
        # Where infinities of both signs meet, the order of the sums decides between them and NaN.
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.promise("K15")
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_dtypes_of_results(pair, backend):
    y, statistics, *gradients = run(fused, case := Case((4, 3, 5), 3, pair))
    assert y.dtype == torch.promote_types(*pair) and statistics.dtype == torch.float64
    assert [g.dtype for g in gradients] == [leaf.dtype for leaf in case.leaves()]


@pytest.mark.promise("K15")
def test_autocast_brings_candidates_to_the_widest(backend):
    case = Case((4, 3, 5), 2, kinds=("affine",))
    mixed = [case.xs[0].bfloat16(), case.xs[1]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ops.norm_mixed_sum(mixed, case.weights, case.norms)
    want, _ = ops.norm_mixed_sum([x.float() for x in mixed], case.weights, case.norms)
    assert torch.equal(y, want)


@pytest.mark.promise("K7")
def test_every_subset_of_inputs_and_nothing_beyond_it(monkeypatch, kernels):
    asked = []
    real = _library.call_norm_mixed_sum_backward

    def spy(*arguments):
        asked.append(tuple(map(list, (arguments[7], [arguments[8]], arguments[9]))))
        return real(*arguments)

    monkeypatch.setattr(_library, "call_norm_mixed_sum_backward", spy)
    case = Case((3, 4, 17), 3, kinds=("affine", "none", "given_affine"))
    full = run(fused, case)[2:]
    for needs in itertools.product((False, True), repeat=8):
        leaves = [
            t.clone().requires_grad_(need) for t, need in zip(case.leaves(), needs, strict=True)
        ]
        norms = [case.norms[0]._replace(gamma=leaves[4], beta=leaves[5]), None]
        norms.append(case.norms[2]._replace(gamma=leaves[6], beta=leaves[7]))
        y, statistics = ops.norm_mixed_sum(leaves[1:4], leaves[0], norms)
        assert not statistics.requires_grad
        asked.clear()
        if not any(needs):
            assert not y.requires_grad
            continue
        y.backward(case.grad)
        for leaf, need, want in zip(leaves, needs, full, strict=True):
            assert (leaf.grad is None) == (not need)
            assert not need or torch.equal(leaf.grad, want)
        wanted = [k for k in range(3) if needs[1 + k]], [i for i in range(4) if needs[4 + i]]
        assert asked == [(wanted[0], [needs[0]], wanted[1])]


@pytest.mark.promise("K8")
def test_inputs_stay_and_changed_ones_are_noticed(backend):
    case = Case((3, 4, 5, 5), 5)
    tensors = [*case.leaves(), case.grad, *case.norms[3][2:4]]
    before = [(t.clone(), t._version) for t in tensors]
    run(fused, case)
    assert all(
        torch.equal(t, c) and t._version == v for t, (c, v) in zip(tensors, before, strict=True)
    )
    if backend == "reference":
        return  # it keeps distances from the mean rather than the candidates
    leaf = case.weights.clone().requires_grad_()
    y, _ = ops.norm_mixed_sum(case.xs, leaf, case.norms)
    case.xs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.promise("K1")
def test_aliases(backend):
    case = Case((3, 4, 5, 5), 3, (torch.float64,) * 2)
    x = case.xs[0].requires_grad_()
    results = []
    for function in (fused, eager):
        y, _ = function([x, x, x.relu()], case.weights, case.norms)
        results.append([y, *torch.autograd.grad(y, x, case.grad)])
    torch.testing.assert_close(*results)


@pytest.mark.promise("D1")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_threads_change_no_bit(last, kernels):
    case = Case((40, 20, 23, 23), 5)
    if last:
        case.xs = [channels_last(x) for x in case.xs]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 1):
            torch.set_num_threads(count)
            results += [run(fused, case) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.promise("M4")
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_every_element_is_written(pair, instruction_set):
    for shape, last in itertools.product([(2, 1), (63, 5), (2, 3, 5, 7), (3, 700, 3)], (0, 1)):
        case = Case(shape, 9, pair)
        case.xs = [channels_last(x) for x in case.xs] if last else case.xs
        with nan_poison():
            results = run(fused, case)
        assert not any(result.isnan().any() for result in results)


@pytest.mark.promise("M4")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("columns", [32, 31])
def test_large_gradients_are_written_whole(columns, last, instruction_set):
    # From 8 MiB of gradients on they are stored past the caches, by another loop.
    case = Case((48, 16, 32, columns), 3, kinds=("affine", "none", "given"))
    if last:
        case.xs = [channels_last(x) for x in case.xs]
    with nan_poison():
        results = run(fused, case)
    want = run(eager, case)
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(results, want, strict=True))


@pytest.mark.promise("K21")
def test_two_threads_get_the_results_of_one(kernels):
    cases = [Case((20, 8, 12, 12), 4, seed=seed) for seed in range(2)]
    want = [run(fused, case) for case in cases]
    wrong = []

    def work(index):
        for _ in range(30):
            if not all(map(torch.equal, run(fused, cases[index]), want[index])):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.promise("K23")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_memory_is_the_output_and_what_backward_keeps_is_the_input(last, kernels):
    case = Case((16, 16, 32, 32), 8)
    case.xs = [channels_last(x) if last else x for x in case.xs]
    leaf = case.weights.requires_grad_()
    grad = torch.empty_like(case.xs[0]).copy_(case.grad)

    def peak(call) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            call()
        held = most = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    one = case.xs[0].nbytes
    assert peak(lambda: ops.norm_mixed_sum(case.xs, leaf.detach(), case.norms)) < 1.1 * one
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y, _ = ops.norm_mixed_sum(case.xs, leaf, case.norms)
    assert peak(lambda: torch.autograd.grad(y, leaf, grad)) < 0.1 * one
    small = sum(t.nbytes for t in saved) - sum(x.nbytes for x in case.xs)
    assert 0 < small < 0.02 * one


@pytest.mark.promise("K1")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_make_the_running_ones_of_torch(momentum, backend):
    theirs = nn.BatchNorm2d(4, momentum=momentum, affine=False)
    mean, var = torch.zeros(4), torch.ones(4)
    for step in range(1, 4):
        x = torch.randn(5, 4, 3, 3) * step + step
        theirs(x)
        count = x.numel() // 4
        _, statistics = ops.norm_mixed_sum([x], torch.ones(1), [Norm()])
        batch_mean, batch_var = statistics[0].float()
        share = momentum if momentum is not None else 1 / step
        mean = mean.lerp(batch_mean, share)
        var = var.lerp(batch_var * count / (count - 1), share)
        torch.testing.assert_close(mean, theirs.running_mean)
        torch.testing.assert_close(var, theirs.running_var)


def test_inference_and_no_grad(backend):
    case = Case((3, 4, 5), 5)
    want = reference_norm.norm_mixed_sum(case.xs, case.weights, case.norms)
    leaf = case.weights.clone().requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = ops.norm_mixed_sum(case.xs, leaf, case.norms)
        assert not got[0].requires_grad
        torch.testing.assert_close(got, want)


def test_it_is_named_where_it_has_kernels():
    for device in ("cpu", "cuda"):
        assert "norm_mixed_sum" in _ext.kernels_in_use(device)
