"""Gates: values, host-side indices, and a straight-through that is right to every order."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from pyfast_nas import _ext, ops
from pyfast_nas.nn.gates import (
    GateOutput,
    GumbelSoftmax,
    GumbelTopK,
    Softmax,
    straight_through,
)

SEED = torch.tensor([3, 1])
EXACT = {"rtol": 0.0, "atol": 0.0}
FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}  # a few roundings of double precision
# torch scripts its own forward-mode rules at the first use of them.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def meaning(y, q):
    """What straight_through stands for, left to autograd."""
    return y * (1 + q - q.detach())


def sample(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4, 3, generator=generator, dtype=dtype, requires_grad=True)
    return y, torch.tensor(0.3, dtype=dtype, requires_grad=True)


def loss(through, y, q):
    return (through(torch.sin(y), q * q) ** 3).sum()


def test_straight_through_value_is_bitwise():
    y = torch.tensor([0.1, -0.0, 1e-45, float("inf"), 3.0], requires_grad=True)
    out = straight_through(y, torch.tensor(0.3, requires_grad=True))
    assert torch.equal(out.detach().view(torch.int32), y.detach().view(torch.int32))


def test_first_and_second_derivatives():
    y, q = sample()
    got = torch.autograd.grad(loss(straight_through, y, q), (y, q), create_graph=True)
    want = torch.autograd.grad(loss(meaning, y, q), (y, q), create_graph=True)
    torch.testing.assert_close(got, want, **FLOAT64)
    for vector in ((torch.ones_like(y), torch.zeros_like(q)), (torch.randn_like(y), q.detach())):
        torch.testing.assert_close(
            torch.autograd.grad(got, (y, q), vector, retain_graph=True),
            torch.autograd.grad(want, (y, q), vector, retain_graph=True),
            **FLOAT64,
        )


def test_third_derivative():
    y, q = sample()

    def third(through):
        value = loss(through, y, q)
        for _ in range(2):
            (value,) = torch.autograd.grad(value, q, create_graph=True)
        return torch.autograd.grad(value, (y, q))

    torch.testing.assert_close(third(straight_through), third(meaning), **FLOAT64)


@forward_mode
def test_transforms():
    y, q = (tensor.detach() for tensor in sample())
    tangents = (torch.randn_like(y), torch.tensor(0.7, dtype=y.dtype))
    # Forward mode has no detach under its feet: the factor's own value is held fixed instead.
    factor = (q * q).clone()
    value, tangent = jvp(lambda y, q: loss(straight_through, y, q), (y, q), tangents)
    want = jvp(lambda y, q: ((torch.sin(y) * (1 + q * q - factor)) ** 3).sum(), (y, q), tangents)
    torch.testing.assert_close((value, tangent), want, **FLOAT64)

    for_y = grad(lambda y, q: loss(straight_through, y, q))
    torch.testing.assert_close(for_y(y, q), grad(lambda y, q: loss(meaning, y, q))(y, q))
    torch.testing.assert_close(
        hessian(lambda q: loss(straight_through, y, q))(q),
        torch.autograd.functional.hessian(lambda q: loss(meaning, y, q), q),
        **FLOAT64,
    )
    several = torch.tensor([0.1, 0.5], dtype=y.dtype)
    per_weight = grad(lambda q: loss(straight_through, y, q))
    torch.testing.assert_close(
        vmap(per_weight)(several), torch.stack([per_weight(q) for q in several]), **FLOAT64
    )


@forward_mode
def test_forward_mode_reaches_a_weight_without_grad():
    y, q = torch.ones(3), torch.tensor(0.5)
    _, tangent = jvp(lambda q: straight_through(y, q), (q,), (torch.tensor(2.0),))
    assert torch.equal(tangent, torch.full((3,), 2.0))


def test_weight_without_grad_costs_nothing():
    y = torch.ones(2, requires_grad=True) * 2
    assert straight_through(y, torch.tensor(0.5)) is y


def test_half_precision_gradient_is_summed_wide():
    y = torch.full((70_000,), 2.0, dtype=torch.float16, requires_grad=True)
    q = torch.tensor(0.5, requires_grad=True)
    out = straight_through(y, q)
    assert out.dtype == torch.float16
    out.backward(torch.ones_like(out))
    assert q.grad.item() == 140_000.0  # beyond the largest float16
    assert torch.equal(y.grad, torch.ones_like(y))


@pytest.mark.promise("D1")
def test_threads_change_no_bit_of_the_gradient():
    if "reference" in _ext.kernels_in_use().values():
        pytest.skip("torch's own sums depend on the number of threads")
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1_000_003, generator=generator)
    upstream = torch.randn(1_000_003, generator=generator)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            q = torch.tensor(0.5, requires_grad=True)
            straight_through(y, q).backward(upstream)
            results.append(q.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    terms = y.double() * upstream.double()
    # Products are rounded once and added up in lanes of a few hundred.
    assert abs(results[0].double() - terms.sum()) <= 100 * 2**-24 * terms.square().sum().sqrt()


def test_kernels_and_reference_agree_on_every_derivative():
    results = []
    for mode in ("auto", "reference"):
        with _ext.use(mode):
            y, q = sample()
            first = torch.autograd.grad(loss(straight_through, y, q), (y, q), create_graph=True)
            second = torch.autograd.grad(first[1] + first[0].sum(), (y, q))
            results.append([*first, *second])
    torch.testing.assert_close(*results, **FLOAT64)


def test_straight_through_compiles():
    y, q = sample(torch.float32)
    compiled = torch.compile(straight_through, fullgraph=True, backend="aot_eager")
    out = compiled(y, q)
    torch.testing.assert_close(out, y, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), (y, q)),
        torch.autograd.grad(straight_through(y, q).sum(), (y, q)),
    )


def test_softmax_gate():
    logits = torch.randn(5, 4)
    gate = Softmax()(logits)
    torch.testing.assert_close(gate.weights, logits.softmax(1), **EXACT)
    assert gate.active is None and not gate.straight_through


def test_gumbel_softmax_gate():
    logits = torch.randn(5, 4)
    gate = GumbelSoftmax(tau=0.5)(logits, SEED)
    noise = ops.gumbel_noise(SEED, 5, 4)
    torch.testing.assert_close(gate.weights, ((logits + noise) / 0.5).softmax(1))
    assert gate.active is None
    again = GumbelSoftmax(tau=0.5)(logits, SEED)
    other = GumbelSoftmax(tau=0.5)(logits, torch.tensor([3, 2]))
    assert torch.equal(gate.weights, again.weights)
    assert not torch.equal(gate.weights, other.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gumbel_softmax_of_half_precision_is_computed_in_single(dtype):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    gate = GumbelSoftmax(tau=0.1)(logits.requires_grad_(), SEED)
    want = ((logits.float() + ops.gumbel_noise(SEED, 50, 4)) / 0.1).softmax(1)
    assert gate.weights.dtype is dtype and gate.weights.requires_grad
    assert torch.equal(gate.weights, want.to(dtype))


@pytest.mark.parametrize("relaxation", ["shared", "conditional"])
def test_gumbel_topk_gate(relaxation):
    logits = torch.randn(6, 5, requires_grad=True)
    gate = GumbelTopK(3, 0.7, relaxation)(logits, SEED)
    weights, indices = ops.gumbel_topk(logits, 3, tau=0.7, seed=SEED, relaxation=relaxation)
    assert torch.equal(gate.weights, weights)
    assert gate.active == tuple(tuple(row) for row in indices.tolist())
    assert all(type(index) is int for row in gate.active for index in row)
    assert gate.weights.requires_grad


def test_split_gives_single_paths():
    drawn = GumbelTopK(3)(torch.randn(4, 5), SEED)
    gate = GateOutput(drawn.weights, drawn.active, shift=torch.ones(4))
    parts = list(gate.split())
    assert len(parts) == 3
    assert all(part.shift is gate.shift for part in parts)
    for column, part in enumerate(parts):
        assert part.straight_through
        assert part.active == tuple((row[column],) for row in gate.active)
        assert torch.equal(part.weights, gate.weights[:, column : column + 1])


def test_masked_candidates_are_never_drawn():
    logits = torch.zeros(50, 4)
    logits[:, 2] = -torch.inf
    gate = GumbelTopK(3)(logits, SEED)
    assert all(2 not in row for row in gate.active)
    assert not GumbelSoftmax()(logits, SEED).weights[:, 2].any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GateOutput(torch.ones(3)), r"\[rows, columns\], got \[3\]"),
        (lambda: GateOutput(torch.ones(2, 2), ((0, 1),)), "2 rows of 2 candidates"),
        (lambda: GateOutput(torch.ones(1, 2), ((0, 1),), True), "one active candidate"),
        (lambda: GateOutput(torch.ones(1, 1), None, True), "one active candidate"),
        (lambda: list(GateOutput(torch.ones(1, 1)).split()), "got None"),
        (
            lambda: GateOutput(torch.ones(2, 1), shift=torch.ones(2, 1)),
            r"shift must have shape \[2\] for 2 rows of weights, got \[2, 1\]",
        ),
        (lambda: GumbelTopK(2)(torch.zeros(1, 3)), "seed must be .* got None"),
        (lambda: GumbelSoftmax()(torch.zeros(1, 3)), "seed must be .* got None"),
        (lambda: GumbelSoftmax(0.0)(torch.zeros(1, 3), SEED), "tau must be positive"),
        (lambda: GumbelSoftmax(float("nan"))(torch.zeros(1, 3), SEED), "tau must be positive"),
        (lambda: GumbelTopK(4)(torch.zeros(1, 3), SEED), "k must be"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
