"""Values and gradients of every operator, held to the float64 reference on the CPU."""

import itertools

import pytest
import torch

from pyfast_nas import _ext, ops
from pyfast_nas.ops import reference
from pyfast_nas.testing import LAYOUTS, TOLERANCE, arrange, relative_error
from tests.gpu.devices import on_each_device, on_each_device_reduced, over_grid
from tests.ops import gumbel_cases, node_cases, norm_cases, sum_cases, tf32_cases


@on_each_device_reduced
def test_kernels_serve_the_device(device):
    """Nothing below may compare the reference with itself."""
    if _ext.library().path is None:
        pytest.skip("nothing is compiled here: the reference serves")
    assert set(_ext.kernels_in_use(device).values()) == {"compiled"}


SUMS = [
    *itertools.product(sum_cases.COUNTS, sum_cases.SIZES, sum_cases.PAIRS),
    *itertools.product((63, 64, 65, 130), (257,), sum_cases.PAIRS),
    (8, (64, 16, 32, 32), sum_cases.PAIRS[1]),
]


def name_of_sum(case) -> str:
    count, size, pair = case
    return f"{count}x{size}-{sum_cases.name(pair)}"


@pytest.mark.promise("K1")
@over_grid("case", SUMS, 17, name_of_sum)
def test_mixed_sum(device, case):
    count, size, pair = case
    shape = size if isinstance(size, tuple) else (size,)
    sum_cases.check_against_float64(*sum_cases.make(shape, count, pair), device)


@pytest.mark.promise("K9")
@over_grid("layout", LAYOUTS, 2)
def test_layouts_of_mixed_sum(device, layout):
    for shape in ((2, 3, 5, 7), (4, 16, 8, 8), (33,)):
        xs, weights, grad = (_move(t, device) for t in sum_cases.make(shape, 3))
        moved, g = [arrange(x, layout) for x in xs], arrange(grad, layout)
        got = sum_cases.run(ops.mixed_sum, moved, weights, g)
        dense = [x.contiguous() for x in moved]
        want = sum_cases.run(ops.mixed_sum, dense, weights, g.contiguous())
        assert relative_error(got[1], want[1]) <= TOLERANCE[torch.float32]
        del got[1], want[1]
        assert all(map(torch.equal, got, want))


def _move(t, device):
    return [x.to(device) for x in t] if isinstance(t, list) else t.to(device)


NORM_SUMS = list(itertools.product(norm_cases.SHAPES, (2, 5, 9), norm_cases.PAIRS))


def name_of_norm_sum(case) -> str:
    shape, count, pair = case
    return f"{count}x{'x'.join(map(str, shape))}-{norm_cases.name(pair)}"


@pytest.mark.promise("K1")
@over_grid("case", NORM_SUMS, 29, name_of_norm_sum)
def test_norm_mixed_sum(device, case):
    shape, count, pair = case
    made = norm_cases.Case(shape, count, pair)
    norm_cases.check_against_float64(made, device=device)
    if len(shape) > 2:
        made.xs = [norm_cases.channels_last(x) for x in made.xs]
        norm_cases.check_against_float64(made, device=device)


@pytest.mark.promise("K1")
@over_grid("case", node_cases.CASES, 11)
def test_fused_node(device, case):
    node_cases.check_float64(case, device)
    node_cases.check_float32(case, device)


@pytest.mark.promise("K1")
@over_grid("case", node_cases.SELECTED, 4)
def test_candidates_that_flags_select(device, case):
    """In a node of all candidates: what a node of these alone computes, and zeros."""
    for which in ("some", "last"):
        flags = node_cases.flags_of(case, which)
        found = node_cases.selecting(case, flags, spoil=True, device=device)
        node_cases.check_close(found, node_cases.without_the_others(case, flags))


HALF_NODES = list(itertools.product(node_cases.CASES, (torch.bfloat16, torch.float16)))


def name_of_half_node(case) -> str:
    return f"{case[0]}-{norm_cases.name(case[1:])}"


@pytest.mark.promise("K1")
@over_grid("case", HALF_NODES, 11, name_of_half_node)
def test_fused_node_of_16_bit_maps(device, case):
    node_cases.check_half(*case, device)


@pytest.mark.promise("K1")
@over_grid("case", tf32_cases.MODELLED, 11)
def test_fused_node_on_tensor_cores(device, case):
    if not _ext.has_cuda_kernels(torch.device(device)):
        pytest.skip("the CPU's own kernels know no TF32")
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no tensor cores for TF32")
    tf32_cases.check_tf32(case, device)


@pytest.mark.promise("G5")
@over_grid("shape", gumbel_cases.SHAPES, 5)
def test_samples_are_those_of_the_cpu(device, shape):
    generator = torch.Generator().manual_seed(0)
    columns = shape[1]
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(shape, dtype=dtype, generator=generator)
        for k in sorted({1, 2, 5, columns} & set(range(1, columns + 1))):
            for relaxation in ("shared", "conditional", "subset"):
                if relaxation == "subset" and k > 5:
                    continue  # as many passes as ranks
                gumbel_cases.assert_samples_agree(logits, k, relaxation=relaxation, device=device)


@pytest.mark.promise("G2")
@on_each_device
def test_picks_of_many_rows_are_those_of_the_cpu(device):
    rows = 110_000 if device == "cuda" else 1_000
    logits = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))
    clear = gumbel_cases.assert_samples_agree(logits, 2, device=device)
    assert float((~clear).double().mean()) < 1e-2


@pytest.mark.promise("G5")
@on_each_device_reduced
def test_random_numbers_are_those_of_the_cpu_to_the_bit(device):
    for rows, columns, stream in ((1, 1, 0), (7, 33, 1), (300, 130, 2)):
        want = reference.philox_uniform(gumbel_cases.SEED, 0, rows, columns, stream)
        seed = gumbel_cases.SEED.to(device)
        got = ops.philox_uniform(seed, rows, columns, stream=stream)
        assert torch.equal(got.cpu(), want)


@pytest.mark.promise("G1")
@on_each_device
def test_noise_is_finite(device):
    rows = 100_000 if device == "cuda" else 100
    noise = ops.gumbel_noise(gumbel_cases.SEED.to(device), rows, 1000)
    assert bool(noise.isfinite().all()) and -2.83 < float(noise.min()) < float(noise.max()) < 16.65
