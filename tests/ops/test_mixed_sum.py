"""mixed_sum: values, gradients, layouts, dtypes, memory and repeatability."""

import itertools
import subprocess
import sys
import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pyfast_nas import ops
from pyfast_nas.ops import _library, reference
from pyfast_nas.testing import (
    DTYPES,
    LAYOUTS,
    TOLERANCE,
    arrange,
    nan_poison,
    relative_error,
)
from tests.ops.sum_cases import COUNTS, PAIRS, SIZES, check_against_float64, loop, make, name, run


@pytest.mark.promise("K1")
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_values_and_gradients(pair, instruction_set):
    for num_ops, size in itertools.product(COUNTS, SIZES):
        check_against_float64(*make((size,), num_ops, pair))


@pytest.mark.promise("K1")
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5), (4, 16, 8, 8), (2, 3, 2, 3, 7)], ids=str)
def test_shapes(shape, backend):
    check_against_float64(*make(shape, 8))


@pytest.mark.promise("K1")
@pytest.mark.parametrize("num_ops", [63, 64, 65, 130])
def test_more_candidates_than_one_launch_takes(num_ops, backend):
    check_against_float64(*make((257,), num_ops, (torch.bfloat16, torch.bfloat16)))


@pytest.mark.promise("K1")
@pytest.mark.parametrize("values", ["uniform", "one_hot", "zeros", "negative", "equal", "far"])
def test_special_weights_and_values(values, backend):
    xs, weights, grad = make((513,), 5, (torch.float64, torch.float64))
    one_hot = torch.eye(5, dtype=torch.float64)[3]
    special = {"uniform": torch.full((5,), 0.2).double(), "one_hot": one_hot}
    special |= {"zeros": weights * one_hot.logical_not(), "negative": -weights.abs()}
    weights = special.get(values, weights)
    if values == "equal":
        xs = [torch.full_like(x, 3.0) for x in xs]
    if values == "far":
        xs = [x.sign() * 1e30 for x in xs]
    check_against_float64(xs, weights, grad)


@pytest.mark.promise("K2")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_accumulated_in_float32(dtype, backend):
    # Sixty-four values that cancel to the last one: a running sum in 16 bits loses it.
    xs = [torch.full((100,), 64.0 * (-1) ** k, dtype=dtype) for k in range(62)]
    xs += [torch.full((100,), 96.0, dtype=dtype), torch.full((100,), 0.0625, dtype=dtype)]
    xs += [torch.full((100,), -96.0, dtype=dtype)]
    y = ops.mixed_sum(xs, torch.ones(65, dtype=dtype))
    assert y.dtype == dtype
    assert (y == 0.0625).all()
    assert loop(xs, torch.ones(65, dtype=dtype)).ne(0.0625).any() or dtype == torch.float16
    g = torch.tensor([1.0] * 3000, dtype=dtype)
    x = torch.full((3000,), 0.1, dtype=dtype)
    weights = torch.ones(1, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.mixed_sum([x], weights), weights, g)
    assert grad == x.double().sum().to(dtype)


@pytest.mark.promise("K2")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_value_is_read_and_rounded_as_torch_does(dtype, instruction_set):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    widened = ops.mixed_sum([every], torch.ones(1))
    torch.testing.assert_close(widened, every.float(), rtol=0, atol=0, equal_nan=True)
    other = every.flip(0).roll(777)
    for weight in (1.0, 0.37):
        weights = torch.tensor([weight, 1.0], dtype=dtype)
        got = ops.mixed_sum([every, other], weights)
        want = (weights[0].double() * every.double() + other.double()).float().to(dtype)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.promise("K9")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[1], PAIRS[5]], ids=name)
def test_layout_does_not_matter(layout, pair, backend):
    for shape in ((2, 3, 5, 7), (4, 16, 8, 8), (33,), (5, 6)):
        xs, weights, grad = make(shape, 3, pair)
        for where in ("all", "first", "last", "grad"):
            moved = [
                arrange(x, layout if where in ("all", ("first", "", "last")[k]) else "contiguous")
                for k, x in enumerate(xs)
            ]
            g = arrange(grad, layout if where in ("all", "grad") else "contiguous")
            got = run(ops.mixed_sum, moved, weights, g)
            want = run(ops.mixed_sum, [x.contiguous() for x in moved], weights, g.contiguous())
            assert torch.equal(got[0], want[0])
            assert relative_error(got[1], want[1]) <= TOLERANCE[weights.dtype]
            for one, other in zip(got[2:], want[2:], strict=True):
                assert torch.equal(one, other)


@pytest.mark.promise("K9")
def test_strided_weights(backend):
    xs, _, grad = make((65,), 4)
    weights = torch.arange(12.0).view(4, 3)[:, 1]
    assert torch.equal(ops.mixed_sum(xs, weights), ops.mixed_sum(xs, weights.contiguous()))
    got = run(ops.mixed_sum, xs, weights, grad)
    want = run(ops.mixed_sum, xs, weights.clone(), grad)
    assert all(map(torch.equal, got, want))


@pytest.mark.promise("K10")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_follows_the_first_candidate(layout, backend):
    xs, weights, _ = make((2, 3, 5, 7), 3)
    xs[0] = arrange(xs[0], layout)
    y = ops.mixed_sum(xs, weights)
    if layout in ("contiguous", "transposed", "channels_last", "offset_1"):
        assert y.stride() == torch.empty_like(xs[0]).stride()
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in xs]
        fake = torch.ops.pyfast_nas.mixed_sum(fakes, mode.from_tensor(weights))
    real = torch.ops.pyfast_nas.mixed_sum(xs, weights)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.promise("K11")
@pytest.mark.parametrize(
    "shape", [(0,), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (), (1,)], ids=str
)
def test_empty_and_tiny(shape, backend):
    xs, weights, grad = make(shape, 3)
    y, grad_weights, *grad_xs = run(ops.mixed_sum, xs, weights, grad)
    assert y.shape == shape
    assert all(grad_x.shape == shape for grad_x in grad_xs)
    assert grad_weights.shape == (3,)
    if y.numel() == 0:
        assert (grad_weights == 0).all()
    else:
        check_against_float64(xs, weights, grad)


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pair", [PAIRS[1], PAIRS[4], PAIRS[3]], ids=name)
def test_nan_and_infinity_appear_where_plain_torch_puts_them(value, pair, backend):
    for size, place in itertools.product((5, 70, 300), (0, -1, 2)):
        xs, weights, grad = make((size,), 9, pair)
        xs[4][place] = value
        for zeroed in (None, 4):
            if zeroed is not None:
                weights[zeroed] = 0.0
            for spoil in (False, True):
                if spoil:
                    grad[place] = value
                got = run(ops.mixed_sum, xs, weights, grad)
                want = run(loop, [x.to(grad.dtype) for x in xs], weights, grad)
                for one, other in zip(got, want, strict=True):
                    assert torch.equal(one.isnan(), other.isnan())
                    assert torch.equal(one.isposinf(), other.isposinf())
                    assert torch.equal(one.isneginf(), other.isneginf())


@pytest.mark.promise("K14")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_smallest_and_largest_values(dtype, backend):
    info = torch.finfo(dtype)
    for size in (3, 65):
        values = torch.tensor([info.smallest_normal / 2, info.max, -info.max, -0.0], dtype=dtype)
        for value in values:
            x = value.repeat(size)
            y = ops.mixed_sum([x, torch.zeros_like(x)], torch.ones(2, dtype=dtype))
            assert torch.equal(y, x)
        minus = torch.full((size,), -0.0, dtype=dtype)
        assert torch.signbit(ops.mixed_sum([minus] * 9, torch.ones(9, dtype=dtype))).all()
    halves = torch.full((2,), 0.5, dtype=dtype)
    largest = torch.full((40,), info.max, dtype=dtype)
    assert torch.equal(ops.mixed_sum([largest, largest], halves), largest)


@pytest.mark.promise("K15")
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=name)
def test_dtype_pairs(dtypes, backend):
    xs, weights, grad = make((9,), 2, dtypes)
    if dtypes in PAIRS:
        results = run(ops.mixed_sum, xs, weights, grad)
        wanted = [torch.promote_types(*dtypes), dtypes[1], dtypes[0], dtypes[0]]
        assert [result.dtype for result in results] == wanted
    else:
        with pytest.raises(TypeError, match=f"{dtypes[0]}.*got {dtypes[1]}"):
            ops.mixed_sum(xs, weights)


@pytest.mark.promise("K15")
def test_autocast_brings_candidates_to_the_widest(backend):
    xs, weights, _ = make((2, 3), 2)
    mixed = [xs[0].bfloat16(), xs[1]]
    with pytest.raises(TypeError, match=r"xs\[1\].*torch.bfloat16 like xs\[0\], got torch.float32"):
        ops.mixed_sum(mixed, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.mixed_sum(mixed, weights)
        assert torch.cat(mixed).dtype == y.dtype == torch.float32
        assert torch.equal(y, ops.mixed_sum([x.float() for x in mixed], weights))
        halves = ops.mixed_sum([x.bfloat16() for x in xs], weights)
        assert halves.dtype == torch.float32
        leaf = mixed[0].requires_grad_()
        (grad,) = torch.autograd.grad(ops.mixed_sum([leaf, xs[1]], weights).sum(), leaf)
        assert grad.dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"weights must have dtype torch.float32 like xs\[0\]"):
            ops.mixed_sum(mixed, weights.bfloat16())


@pytest.mark.promise("K7")
def test_every_subset_of_inputs_and_nothing_beyond_it(monkeypatch, kernels):
    asked = []
    real = _library.call_mixed_sum_backward

    def spy(grad, xs, weights, wanted, wants_weights):
        asked.append((list(wanted), wants_weights))
        return real(grad, xs, weights, wanted, wants_weights)

    monkeypatch.setattr(_library, "call_mixed_sum_backward", spy)
    xs, weights, grad = make((33,), 3)
    full = run(ops.mixed_sum, xs, weights, grad)[1:]
    for needs in itertools.product((False, True), repeat=4):
        tensors = [
            t.clone().requires_grad_(need) for t, need in zip([weights, *xs], needs, strict=True)
        ]
        y = ops.mixed_sum(tensors[1:], tensors[0])
        asked.clear()
        if not any(needs):
            assert not y.requires_grad
            continue
        y.backward(grad)
        for tensor, need, want in zip(tensors, needs, full, strict=True):
            assert (tensor.grad is None) == (not need)
            assert not need or torch.equal(tensor.grad, want)
        assert asked == [([k for k in range(3) if needs[k + 1]], needs[0])]


@pytest.mark.promise("K8")
def test_inputs_stay_and_changed_ones_are_noticed(backend):
    xs, weights, grad = make((40,), 3)
    tensors = [*xs, weights, grad]
    before = [(t.clone(), t._version) for t in tensors]
    run(ops.mixed_sum, xs, weights, grad)
    assert all(
        torch.equal(t, c) and t._version == v for t, (c, v) in zip(tensors, before, strict=True)
    )
    leaf = weights.clone().requires_grad_()
    y = ops.mixed_sum(xs, leaf)
    xs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.promise("K1")
def test_aliases(backend):
    xs, weights, grad = make((6, 7), 3)
    x = xs[0].requires_grad_()
    y = ops.mixed_sum([x, x, x], weights)
    (shared,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(y, weights.sum() * x)
    torch.testing.assert_close(shared, weights.sum() * grad)
    base = torch.arange(8.0)
    check_against_float64([base[:7], base[1:], base[:7]], weights, grad[0])
    vector = torch.randn(3, requires_grad=True)
    y = ops.mixed_sum([vector, vector, vector], vector)
    (grad,) = torch.autograd.grad(y.sum(), vector)  # y.sum() is the square of vector.sum()
    torch.testing.assert_close(grad, 2 * vector.detach().sum().expand(3))


@pytest.mark.promise("D1")
def test_threads_change_no_bit(kernels):
    xs, weights, grad = make((300_001,), 5)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 1):
            torch.set_num_threads(count)
            results += [run(ops.mixed_sum, xs, weights, grad) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


FINGERPRINT = """
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
xs = [torch.randn(9001, generator=generator, requires_grad=True) for _ in range(3)]
w = torch.randn(3, generator=generator, requires_grad=True)
y = ops.mixed_sum(xs, w)
results = [y, *torch.autograd.grad(y.square().sum(), [w, *xs])]
fingerprint = [t.detach().view(torch.int32).long().sum().item() for t in results]
"""


@pytest.mark.unsanitized("the other process chooses its own instruction set")
@pytest.mark.promise("D1")
def test_another_process_computes_the_same_bits(kernels):
    threads, here = torch.get_num_threads(), {"torch": torch, "ops": ops}
    exec(FINGERPRINT, here)
    torch.set_num_threads(threads)
    code = f"import torch\nfrom pyfast_nas import ops\n{FINGERPRINT}\nprint(fingerprint)"
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here["fingerprint"])


@pytest.mark.promise("M4")
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_every_element_is_written(pair, instruction_set):
    for shape in ((1,), (63,), (2, 3, 5, 7), (4099,)):
        with nan_poison():
            results = run(ops.mixed_sum, *make(shape, 9, pair))
        assert not any(result.isnan().any() for result in results)


@pytest.mark.promise("M4")
def test_large_gradients_are_written_whole(instruction_set):
    # From 8 MiB of gradients on they are stored past the caches, by another loop.
    xs, weights, grad = make((700_003,), 3)
    with nan_poison():
        large = run(ops.mixed_sum, xs, weights, grad)
    small = run(ops.mixed_sum, [x[:5000] for x in xs], weights, grad[:5000])
    for one, other in zip(large[2:], small[2:], strict=True):
        assert torch.equal(one[:5000], other)
    want = run(loop, xs, weights, grad)
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(large, want, strict=True))


@pytest.mark.promise("K21")
def test_two_threads_get_the_results_of_one(kernels):
    cases = [make((20_011,), 4, seed=seed) for seed in range(2)]
    want = [run(ops.mixed_sum, *case) for case in cases]
    wrong = []

    def work(index):
        for _ in range(50):
            got = run(ops.mixed_sum, *cases[index])
            if not all(map(torch.equal, got, want[index])):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class CallsInWorker(torch.utils.data.Dataset):
    """Element i: sums of i and i, and a pick out of four."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = ops.mixed_sum([torch.full((50_000,), float(index))] * 2, torch.ones(2))
        logits = torch.full((5_000, 4), -1e4).index_fill_(1, torch.tensor(index), 1e4)
        return y, ops.gumbel_topk(logits, 1, tau=1.0, seed=torch.tensor([1, index]))[1]


@pytest.mark.unsanitized("of processes, which take long to start there")
@pytest.mark.promise("K22")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_dataloader_workers_may_call_operators(start, kernels):
    ops.mixed_sum(*make((50_000,), 2)[:2])  # threads of this process have run before the fork
    loader = torch.utils.data.DataLoader(
        CallsInWorker(), batch_size=None, num_workers=1, timeout=30, multiprocessing_context=start
    )
    for index, (y, picks) in enumerate(loader):
        assert (y == 2 * index).all() and (picks == index).all()
    assert index == 3


FORK = """
import os, torch
from pyfast_nas import ops
torch.set_num_threads(1)
xs = [torch.ones(200_000)] * 3
want = ops.mixed_sum(xs, torch.ones(3))
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.mixed_sum(xs, torch.ones(3)), want) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.unsanitized("of processes, which take long to start there")
@pytest.mark.promise("K22")
def test_a_bare_fork_with_one_thread_does_not_hang(kernels):
    assert subprocess.run([sys.executable, "-c", FORK], timeout=30, check=False).returncode == 0


@pytest.mark.promise("K23")
def test_memory_is_the_output_and_nothing_of_the_size_of_all_candidates(kernels):
    xs, weights, grad = make((100_000,), 8)
    leaf = weights.requires_grad_()

    def peak(call) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            call()
        held = most = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    one = xs[0].nbytes
    assert peak(lambda: ops.mixed_sum(xs, weights.detach())) < 1.1 * one
    y = ops.mixed_sum(xs, leaf)
    assert peak(lambda: torch.autograd.grad(y, leaf, grad)) < 0.1 * one
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.mixed_sum(xs, leaf)
    assert sum(t.nbytes for t in saved) == sum(t.nbytes for t in [*xs, leaf])


def test_inference_and_no_grad(backend):
    xs, weights, _ = make((10,), 3)
    want = reference.mixed_sum(xs, weights)
    leaf = weights.clone().requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = ops.mixed_sum(xs, leaf)
        assert not y.requires_grad
        torch.testing.assert_close(y, want)
