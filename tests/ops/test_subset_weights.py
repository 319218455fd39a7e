"""The relaxed subset: its recursion, sums, limits, derivatives, shapes and registrations."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyfast_nas import ops
from pyfast_nas.ops import reference_subset
from tests.ops.gumbel_cases import SEED, SHAPES, assert_samples_agree

LOGITS = torch.tensor([[1, 0.5, 0, -0.5, -1]], dtype=torch.float64)
NOISE = torch.tensor([[0.2, -0.1, 0.9, 0.4, 1.3]], dtype=torch.float64)
TINY = torch.finfo(torch.float32).tiny


def recursion(keys, k, tau):
    """The softmaxes as they are printed (Xie & Ermon 2019, algorithm 1): [k, rows, columns]."""
    scores, softmaxes = keys, []
    for _ in range(k):
        q = torch.softmax(scores / tau, dim=1)
        softmaxes.append(q)
        scores = scores + (1 - q).clamp(min=TINY).log()
    return torch.stack(softmaxes)


def at_picks(softmaxes, indices):
    return torch.stack(
        [q.gather(1, pick[:, None])[:, 0] for q, pick in zip(softmaxes, indices.T, strict=True)],
        dim=1,
    )


def sample(logits, k, tau, noise=None):
    return ops.gumbel_topk(logits, k, tau=tau, seed=SEED, relaxation="subset", noise=noise)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(
    ("columns", "k"), [(1, 1), (4, 1), (4, 2), (5, 3), (8, 4), (9, 9), (80, 5)]
)
def test_weights_and_gradient_are_those_of_the_recursion(backend, columns, k, tau, dtype):
    """Gradients by the closed recursion against autograd through the printed one, in float64."""
    generator = torch.Generator().manual_seed(columns * 10 + k)
    logits = torch.randn(7, columns, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(7, k, generator=generator).to(dtype)
    weights, indices = sample(logits, k, tau)
    weights.backward(grad)
    noise = ops.gumbel_noise(SEED, 7, columns) if dtype == torch.float32 else None
    if noise is None:
        noise = -torch.log(-torch.log(ops.philox_uniform(SEED, 7, columns).double()))
    exact = logits.detach().double().requires_grad_()
    want = at_picks(recursion(exact + noise, k, tau), indices)
    want.backward(grad.double())
    if k < columns:  # of the last of all, 1 - q loses its digits in the printed form
        bound = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(weights.double(), want, rtol=0, atol=bound)
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=0, atol=bound)
    assert bool(weights.isfinite().all())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_shape_agrees_with_the_reference(instruction_set, dtype):
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        logits = torch.randn(rows, columns, dtype=dtype, generator=generator)
        for k in sorted({1, 2, 3, 5, 9} & set(range(1, columns + 1))):
            assert_samples_agree(logits, k, relaxation="subset")


def test_every_backward_agrees_with_the_reference(instruction_set):
    generator = torch.Generator().manual_seed(3)
    for rows, columns in SHAPES[1::2]:
        for k in sorted({1, 2, 5} & set(range(1, columns + 1))):
            logits = torch.randn(rows, columns, generator=generator, requires_grad=True)
            weights, indices = sample(logits, k, 0.7)
            grad = torch.randn(weights.shape, generator=generator)
            weights.backward(grad)
            keys = logits.detach() + ops.gumbel_noise(SEED, rows, columns)
            want = reference_subset.subset_weights_backward(
                grad.double(), keys.double(), indices, 0.7
            )
            bound = 4e-6 * k * float(grad.abs().max())
            assert float((logits.grad - want).abs().max()) <= bound


def test_the_relaxed_k_hot_sums_to_k(backend):
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(1, 8):
        for tau in (0.05, 1.0, 20.0):
            relaxed = ops.relaxed_k_hot(logits, k, tau=tau, seed=SEED)
            torch.testing.assert_close(relaxed.sum(1), torch.full((50,), float(k)).double())
            assert bool((relaxed >= 0).all())


def test_entries_exceed_one_at_high_temperature(backend):
    """A candidate far ahead keeps most of every softmax: 1.4 and more at temperature one."""
    relaxed = ops.relaxed_k_hot(LOGITS * 4, 2, tau=1.0, seed=SEED, noise=torch.zeros(1, 5).double())
    assert 1.3 < float(relaxed.max()) < 1.5
    assert float(relaxed[0].argmax()) == 0
    cold = ops.relaxed_k_hot(LOGITS * 4, 2, tau=0.1, seed=SEED, noise=torch.zeros(1, 5).double())
    assert float(cold.max()) < 1 + 1e-6


def test_it_tends_to_the_k_hot_vector(backend):
    logits = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights, indices = sample(logits, 3, 1e-4)
    hot = torch.zeros(40, 6, dtype=torch.float64).scatter(1, indices, 1.0)
    relaxed = ops.relaxed_k_hot(logits, 3, tau=1e-4, seed=SEED)
    torch.testing.assert_close(relaxed, hot, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, torch.ones(40, 3).double(), rtol=0, atol=1e-6)


def test_weights_are_columns_of_the_softmaxes(backend):
    """Column r is rank r's softmax at the candidate picked there; rank one is the shared form."""
    weights, indices = sample(LOGITS, 3, 0.5, NOISE)
    assert indices.tolist() == [[0, 2, 1]]
    softmaxes = recursion(LOGITS + NOISE, 3, 0.5)
    torch.testing.assert_close(weights, at_picks(softmaxes, indices), rtol=0, atol=1e-12)
    relaxed = ops.relaxed_k_hot(LOGITS, 3, tau=0.5, seed=SEED, noise=NOISE)
    torch.testing.assert_close(relaxed, softmaxes.sum(0), rtol=0, atol=1e-12)
    shared, _ = ops.gumbel_topk(LOGITS, 3, tau=0.5, seed=SEED, noise=NOISE)
    torch.testing.assert_close(weights[:, :1], shared[:, :1], rtol=0, atol=1e-12)
    one, _ = ops.gumbel_topk(LOGITS, 1, tau=0.5, seed=SEED, noise=NOISE)
    torch.testing.assert_close(sample(LOGITS, 1, 0.5, NOISE)[0], one, rtol=0, atol=1e-12)


def test_the_share_of_a_candidate_far_ahead_keeps_its_digits(backend):
    """Where 1 - q is rounded away, the sum over the others is what it is."""
    keys = torch.tensor([[60.0, 0.0, -1.0]], dtype=torch.float32)
    zero, tau = torch.zeros(1, 3), 3.0
    weights, _ = sample(keys, 2, tau, zero)
    others = torch.exp((keys[:, 1:].double() - 60) / tau).sum()
    scores = keys.double() / tau
    shift = torch.stack([others.log(), *(-torch.exp(scores[0, 1:] - 20))]) / tau
    want = torch.softmax(scores + shift, 1)[0, 1]
    torch.testing.assert_close(weights[0, 1].double(), want, rtol=1e-4, atol=0)


@pytest.mark.parametrize("tau", [1e-300, 1e-45, 1e-38, 1e-3, 1e3, 1e38, 1e300])
def test_extreme_temperatures_and_logits_stay_finite(backend, tau):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[1e4, -1e4, 0, -torch.inf, 3e38, 1e-45]], dtype=dtype).repeat(3, 1)
        logits.requires_grad_()
        weights, indices = sample(logits, 5, tau)
        assert bool(weights.isfinite().all())
        assert 3 not in indices
        (grad,) = torch.autograd.grad(weights.sum(), logits)
        assert bool(grad.isfinite().all())
        assert float(grad[:, 3].abs().max()) == 0


def test_half_logits_layouts_and_no_rows(backend):
    half = torch.randn(20, 9, generator=torch.Generator().manual_seed(7)).bfloat16()
    wide, narrow = half.float().requires_grad_(), half.clone().requires_grad_()
    results = [sample(x, 3, 1.0) for x in (wide, narrow)]
    assert torch.equal(results[0][0], results[1][0])
    for weights, _ in results:
        weights.square().sum().backward()
    assert torch.equal(narrow.grad, wide.grad.bfloat16())
    base = torch.randn(24, 40, generator=torch.Generator().manual_seed(6))
    for view in (base.t(), base[::2, 1::3], base[:1].expand(30, 40)):
        strided, packed = sample(view, 3, 1.0), sample(view.contiguous(), 3, 1.0)
        assert torch.equal(strided[1], packed[1])
        torch.testing.assert_close(strided[0], packed[0], rtol=0, atol=1e-6)
    empty = torch.empty(0, 5, requires_grad=True)
    sample(empty, 2, 1.0)[0].sum().backward()
    assert empty.grad.shape == (0, 5)


def test_threads_and_repeats_change_nothing(kernels):
    before = torch.get_num_threads()
    logits = torch.randn(4000, 8, generator=torch.Generator().manual_seed(9))
    results = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            weights, _ = sample(x, 3, 1.0)
            weights.square().sum().backward()
            results.append((weights.detach(), x.grad))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_registrations_pass_opcheck(backend, dtype, requires_grad):
    operators = torch.ops.pyfast_nas
    keys = torch.randn(3, 5, dtype=dtype, requires_grad=requires_grad)
    indices = keys.detach().topk(2).indices
    torch.library.opcheck(operators.subset_weights.default, (keys, indices, 0.7))
    grad = torch.randn(3, 2, dtype=dtype, requires_grad=requires_grad)
    torch.library.opcheck(operators.subset_weights_backward.default, (grad, keys, indices, 0.7))


def test_bare_operators_have_derivatives(kernels):
    operators = torch.ops.pyfast_nas
    keys = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    indices = keys.detach().topk(2).indices
    grad = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def weights_of(keys):
        return operators.subset_weights(keys, indices, 0.7)

    def backward_of(grad, keys):
        return operators.subset_weights_backward(grad, keys, indices, 0.7)

    assert gradcheck(weights_of, keys)
    assert gradgradcheck(weights_of, keys)
    assert gradcheck(backward_of, (grad, keys))
    assert gradgradcheck(backward_of, (grad, keys))


@pytest.mark.parametrize(
    ("keys", "indices", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(1, 1, dtype=torch.int64), "matrices of as many rows"),
        (torch.zeros(2, 3), torch.zeros(2, 1), "indices must have dtype int64"),
        pytest.param(
            torch.zeros(2, 3),
            torch.full((2, 1), 3),
            "indices must be columns of keys",
            marks=pytest.mark.untwinned("a GPU gives such rows weights of 0"),
        ),
        (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64), "between 1 and 3 columns"),
        (torch.zeros(2, 3).half(), torch.zeros(2, 1, dtype=torch.int64), "float64 or float32"),
    ],
)
def test_the_bare_operator_refuses_what_would_leave_memory(kernels, keys, indices, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyfast_nas.subset_weights(keys, indices, 1.0)
