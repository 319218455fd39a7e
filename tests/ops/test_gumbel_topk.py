"""The sampler's values: golden picks and weights, ties, masks, layouts, dtypes, repeatability."""

import contextlib
import io
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast_nas import _ext, ops
from pyfast_nas.ops import reference
from tests.ops.gumbel_cases import SEED, SHAPES, WEIGHT_ATOL, assert_samples_agree

GOLDEN_LOGITS = [
    [0.0] * 8,
    [1, 0.5, 0.25, 0, -0.25, -0.5, -0.75, -1],
    [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8],
    [2.0, 0, 0, 0, 0, 0, 0, 0],
]
GOLDEN_PICKS = [[4, 3, 5, 6], [3, 5, 0, 2], [3, 1, 5, 0], [6, 5, 2, 1]]

# Golden vector of the two relaxations: logits, noise, gate gradients at tau 0.5.
LOGITS = [[1, 0.5, 0, -0.5, -1]]
NOISE = [[0.2, -0.1, 0.9, 0.4, 1.3]]
GATE_GRADIENTS = [[0.7 / 3, -0.3 / 3, 0.5 / 3]]
RELAXATIONS = {
    "shared": (
        [[0.502441711, 0.275745857, 0.101441232]],
        [[0.127383693, 0.012192827, -0.113920919, -0.007953891, -0.017701710]],
    ),
    "conditional": (
        [[0.502441711, 0.554198098, 0.457328884]],
        [[0.116663884, 0.081538952, -0.114067416, -0.026084127, -0.058051293]],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_golden_picks(backend, dtype):
    logits = torch.tensor(GOLDEN_LOGITS, dtype=dtype)
    seed = torch.tensor([2024, 3])
    weights, indices = ops.gumbel_topk(logits, 4, tau=1.0, seed=seed)
    assert indices.tolist() == GOLDEN_PICKS
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_golden_relaxations(backend, relaxation, dtype, atol):
    want_weights, want_grad = RELAXATIONS[relaxation]
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    noise = torch.tensor(NOISE, dtype=dtype)
    weights, indices = ops.gumbel_topk(
        logits, 3, tau=0.5, seed=torch.tensor([0, 0]), relaxation=relaxation, noise=noise
    )
    assert indices.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(
        weights.detach(), torch.tensor(want_weights, dtype=dtype), rtol=0, atol=atol
    )
    weights.backward(torch.tensor(GATE_GRADIENTS, dtype=dtype))
    torch.testing.assert_close(logits.grad, torch.tensor(want_grad, dtype=dtype), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_shape_and_k_agrees_with_the_reference(instruction_set, dtype):
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        logits = torch.randn(rows, columns, dtype=dtype, generator=generator)
        for k in sorted({1, 2, 3, 4, 5, columns} & set(range(1, columns + 1))):
            for relaxation in RELAXATIONS:
                assert_samples_agree(logits, k, relaxation=relaxation)


@pytest.mark.promise("G2")
def test_picks_agree_wherever_keys_are_apart(instruction_set):
    """On more than 10^5 rows; the rest, reported by its bound, is fewer than one row in 10^4."""
    logits = torch.randn(110_000, 8, generator=torch.Generator().manual_seed(1))
    clear = assert_samples_agree(logits, 2)
    assert float((~clear).float().mean()) < 1e-4


@pytest.mark.parametrize(("columns", "k"), [(65536, 3), (3000, 65), (777, 777), (4097, 64)])
def test_long_rows_and_many_ranks(instruction_set, columns, k):
    logits = torch.randn(2, columns, generator=torch.Generator().manual_seed(2))
    for relaxation in RELAXATIONS:
        _, indices = ops.gumbel_topk(logits, k, tau=1.0, seed=SEED, relaxation=relaxation)
        assert all(len(set(row)) == k for row in indices.tolist())
        if k < 100:
            assert_samples_agree(logits, k, relaxation=relaxation)
        keys = logits + ops.gumbel_noise(SEED, 2, columns)
        want = keys.sort(dim=1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(indices, want)


def test_backward_agrees_with_the_reference(instruction_set):
    generator = torch.Generator().manual_seed(3)
    for rows, columns in SHAPES[1::2]:
        for k in sorted({1, 2, min(5, columns), columns} & set(range(1, columns + 1))):
            for relaxation in RELAXATIONS:
                logits = torch.randn(rows, columns, generator=generator, requires_grad=True)
                weights, indices = ops.gumbel_topk(
                    logits, k, tau=0.7, seed=SEED, relaxation=relaxation
                )
                grad = torch.randn(weights.shape, generator=generator)
                weights.backward(grad)
                keys = logits.detach() + ops.gumbel_noise(SEED, rows, columns)
                want = reference.gumbel_topk_backward(
                    grad.double(), keys.double(), indices, 0.7, relaxation == "conditional"
                )
                # Terms of size |grad| / tau are added up, up to k of them.
                bound = 2e-6 * k * float(grad.abs().max())
                assert float((logits.grad - want).abs().max()) <= bound


@pytest.mark.promise("G3")
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_picks_are_distinct_and_never_masked(data):
    columns = data.draw(st.sampled_from([1, 2, 5, 8, 33, 70, 130]))
    k = data.draw(st.integers(1, min(columns, 9)))
    unmasked = data.draw(st.lists(st.integers(0, columns - 1), min_size=k, unique=True))
    value = st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4, 5e-324])
    row = [-float("inf")] * columns
    for column in unmasked:
        row[column] = data.draw(value)
    logits = torch.tensor([row] * 3)
    noise = data.draw(st.sampled_from([None, torch.zeros(3, columns)]))
    for mode in (
        {"reference", "auto"}
        if _ext.kernels_in_use()["gumbel_topk"] == "compiled"
        else {"reference"}
    ):
        with _ext.use(mode):
            for relaxation in RELAXATIONS:
                weights, indices = ops.gumbel_topk(
                    logits, k, tau=0.5, seed=SEED, relaxation=relaxation, noise=noise
                )
                for picks in indices.tolist():
                    assert len(set(picks)) == k
                    assert set(picks) <= set(unmasked)
                assert bool(weights.isfinite().all())
                if noise is not None:
                    order = sorted(unmasked, key=lambda column: (-float(logits[0, column]), column))
                    assert indices[0].tolist() == order[:k]


def test_ties_go_to_the_lower_index(backend):
    for columns in (6, 64, 65, 300):
        for dtype in (torch.float32, torch.float64):
            logits = torch.zeros(20, columns, dtype=dtype)
            logits[:, 3] = 1.0
            noise = torch.zeros_like(logits)
            for k in (1, 2, 5):
                _, indices = ops.gumbel_topk(logits, k, tau=1.0, seed=SEED, noise=noise)
                assert indices.tolist() == [[3, 0, 1, 2, 4][:k]] * 20


def test_one_pick_is_the_first_of_many(backend):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(4))
    one = ops.gumbel_topk(logits, 1, tau=0.3, seed=SEED)
    many = ops.gumbel_topk(logits, 5, tau=0.3, seed=SEED)
    assert torch.equal(one[1], many[1][:, :1])
    torch.testing.assert_close(one[0], many[0][:, :1], rtol=0, atol=WEIGHT_ATOL[torch.float32])


@pytest.mark.untwinned("a thread of a GPU adds a short row up in another order than a warp")
def test_the_weight_of_one_pick_is_the_first_of_many_to_the_bit(backend):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(4))
    one = ops.gumbel_topk(logits, 1, tau=0.3, seed=SEED)
    many = ops.gumbel_topk(logits, 5, tau=0.3, seed=SEED)
    assert torch.equal(one[0], many[0][:, :1])


def test_weights_are_part_of_a_softmax(backend):
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(5))
    shared, _ = ops.gumbel_topk(logits, 7, tau=1.3, seed=SEED)
    torch.testing.assert_close(shared.sum(1), torch.ones(40), rtol=0, atol=1e-6)
    conditional, _ = ops.gumbel_topk(logits, 7, tau=1.3, seed=SEED, relaxation="conditional")
    torch.testing.assert_close(conditional[:, -1], torch.ones(40), rtol=0, atol=0)
    torch.testing.assert_close(conditional[:, 0], shared[:, 0], rtol=1e-6, atol=0)


@pytest.mark.promise("G7")
@pytest.mark.promise("K14")
@pytest.mark.parametrize("tau", [1e-300, 1e-45, 1e-38, 1e-3, 1e3, 1e38, 1e300])
def test_extreme_temperatures_and_logits_stay_finite(backend, tau):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[1e4, -1e4, 0, -torch.inf, 3e38, 1e-45]], dtype=dtype).repeat(3, 1)
        logits.requires_grad_()
        for relaxation in RELAXATIONS:
            weights, indices = ops.gumbel_topk(logits, 5, tau=tau, seed=SEED, relaxation=relaxation)
            assert bool(weights.isfinite().all())
            assert 3 not in indices
            (grad,) = torch.autograd.grad(weights.sum(), logits)
            assert bool(grad.isfinite().all())
            assert float(grad[:, 3].abs().max()) == 0


def test_the_likely_candidate_nearly_always_wins(backend):
    rows = 200_000
    logits = torch.tensor([50.0, 0, 0, 0]).expand(rows, 4)
    _, indices = ops.gumbel_topk(logits, 2, tau=1.0, seed=SEED)
    assert int((indices[:, 0] != 0).sum()) <= 3


@pytest.mark.promise("K9")
def test_layout_does_not_matter(backend):
    base = torch.randn(40, 24, generator=torch.Generator().manual_seed(6))
    views = {
        "transposed": base.t(),
        "stepped": base[::2, 1::3],
        "offset": base.flatten()[3:803].view(100, 8),
        "expanded": base[:1].expand(30, 24),
        "long": base.flatten()[1:].as_strided((6, 150), (3, 5)),
    }
    for view in views.values():
        strided = ops.gumbel_topk(view, 3, tau=1.0, seed=SEED)
        packed = ops.gumbel_topk(view.contiguous(), 3, tau=1.0, seed=SEED)
        assert all(torch.equal(a, b) for a, b in zip(strided, packed, strict=True))
    spread = torch.stack([SEED, SEED], dim=1)[:, 0]
    assert torch.equal(
        ops.gumbel_topk(base, 2, tau=1.0, seed=spread)[1],
        ops.gumbel_topk(base, 2, tau=1.0, seed=SEED)[1],
    )


@pytest.mark.promise("K2")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_widened_first(backend, dtype):
    for columns in (9, 200):
        half = torch.randn(20, columns, generator=torch.Generator().manual_seed(7)).to(dtype)
        half.requires_grad_()
        wide = half.detach().float().requires_grad_()
        results = [ops.gumbel_topk(x, 3, tau=1.0, seed=SEED) for x in (half, wide)]
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        assert results[0][0].dtype == torch.float32
        for weights, _ in results:
            weights[:, 0].sum().backward()
        assert half.grad.dtype == dtype
        assert torch.equal(half.grad, wide.grad.to(dtype))


@pytest.mark.promise("K11")
def test_no_rows(backend):
    logits = torch.empty(0, 5, requires_grad=True)
    weights, indices = ops.gumbel_topk(logits, 2, tau=1.0, seed=SEED)
    assert weights.shape == indices.shape == (0, 2)
    weights.sum().backward()
    assert logits.grad.shape == (0, 5)


def test_the_noise_given_back_gives_the_same_sample(backend):
    for columns in (8, 100):
        logits = torch.randn(30, columns, generator=torch.Generator().manual_seed(8))
        noise = ops.gumbel_noise(SEED, 30, columns)
        drawn = ops.gumbel_topk(logits, 3, tau=1.0, seed=SEED)
        given = ops.gumbel_topk(logits, 3, tau=1.0, seed=torch.tensor([0, 0]), noise=noise)
        assert all(torch.equal(a, b) for a, b in zip(drawn, given, strict=True))
        for dtype in (torch.float64, torch.bfloat16):
            weights, _ = ops.gumbel_topk(logits, 3, tau=1.0, seed=SEED, noise=noise.to(dtype))
            assert weights.dtype == torch.float32


@pytest.mark.promise("D1")
def test_threads_and_repeats_change_nothing(kernels):
    before = torch.get_num_threads()
    try:
        for shape in [(5000, 8), (300, 500), (40, 65)]:
            logits = torch.randn(shape, generator=torch.Generator().manual_seed(9))
            results = []
            for threads in (1, 2, 4, 1):
                torch.set_num_threads(threads)
                x = logits.clone().requires_grad_()
                weights, indices = ops.gumbel_topk(x, 3, tau=1.0, seed=SEED)
                weights.square().sum().backward()
                results.append((weights.detach(), indices, x.grad))
            for result in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.promise("G6")
@pytest.mark.promise("K21")
def test_two_python_threads_get_their_own_samples(backend):
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(10))
    state = torch.get_rng_state()

    calls = 1000 if backend == "compiled" else 20

    def sample(first):
        seeds = range(first, first + calls)
        draws = [ops.gumbel_topk(logits, 2, tau=1.0, seed=torch.tensor([7, n])) for n in seeds]
        return torch.stack([indices for _, indices in draws])

    want = [sample(0), sample(5000)]
    got = [None, None]

    def work(slot, first):
        got[slot] = sample(first)

    threads = [threading.Thread(target=work, args=(i, f)) for i, f in enumerate((0, 5000))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.promise("K8")
def test_inputs_are_left_alone(backend):
    logits = torch.randn(5, 8)
    noise, seed = torch.randn(5, 8), SEED.clone()
    copies = [x.clone() for x in (logits, noise, seed)]
    ops.gumbel_topk(logits, 2, tau=1.0, seed=seed, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip((logits, noise, seed), copies, strict=True))
    assert [x._version for x in (logits, noise, seed)] == [0, 0, 0]


PRINT_DIGEST = """
import hashlib, torch
from pyfast_nas import ops
digest = hashlib.sha256()
seed = torch.tensor([2024, 3])
for rows, columns, k in [(1, 1, 1), (14, 8, 2), (33, 64, 7), (3, 65, 2), (2, 300, 70)]:
    for dtype in (torch.float32, torch.float64):
        for relaxation in ("shared", "conditional", "subset"):
            x = torch.linspace(-1, 1, rows * columns, dtype=dtype).view(rows, columns)
            x.requires_grad_()
            weights, indices = ops.gumbel_topk(x, k, tau=0.8, seed=seed, relaxation=relaxation)
            weights.square().sum().backward()
            for tensor in (weights.detach(), indices, x.grad):
                digest.update(tensor.numpy().tobytes())
    digest.update(ops.philox_uniform(seed, rows, columns, stream=2).numpy().tobytes())
print(bool((torch.empty(200).view(torch.uint8) == 0xAA).all()), digest.hexdigest())
"""


@pytest.mark.unsanitized("its allocator is not the C library's")
@pytest.mark.promise("G5")
@pytest.mark.promise("M4")
def test_other_processes_and_other_memory_give_the_same_bytes(kernels):
    """The C library fills every block it hands out with 0xAA when told to, ours included."""
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(PRINT_DIGEST, {})
    done = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={**os.environ, "MALLOC_PERTURB_": "85"},
    )
    lines = [here.getvalue().split(), done.stdout.split()]
    assert lines[1][0] == "True", "fresh memory was not filled, so the check shows nothing"
    assert lines[0][1] == lines[1][1]


@pytest.mark.promise("M4")
def test_nothing_is_left_unwritten(backend):
    was = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        for rows, columns, k in [(14, 8, 2), (3, 65, 2), (17, 64, 64)]:
            logits = torch.randn(rows, columns, requires_grad=True)
            weights, indices = ops.gumbel_topk(logits, k, tau=1.0, seed=SEED)
            weights.sum().backward()
            assert bool(weights.isfinite().all())
            assert bool(((indices >= 0) & (indices < columns)).all())
            assert bool(logits.grad.isfinite().all())
    finally:
        torch.use_deterministic_algorithms(was)
