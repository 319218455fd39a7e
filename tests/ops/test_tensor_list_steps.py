"""Lists of tensors at work: central differences, Neumann series, conjugate gradients."""

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.ops import tensor_list
from tests.ops.list_cases import flat, make, whole

SHAPES = ((3,), (), (2, 5))
SIZE = 14


def split(vector):
    """Cut a vector into a list of SHAPES."""
    parts = vector.split([torch.Size(shape).numel() for shape in SHAPES])
    return [part.reshape(shape).clone() for part, shape in zip(parts, SHAPES, strict=True)]


def symmetric(lowest: float, seed: int = 0):
    """Return a symmetric matrix whose eigenvalues go from ``lowest`` to 2."""
    generator = torch.Generator().manual_seed(seed)
    base, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return base @ torch.diag(torch.linspace(lowest, 2, SIZE, dtype=torch.float64)) @ base.T


def draw(seed: int = 1):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_direction_of_length_zero_leads_nowhere(dtype, backend):
    ws = [torch.tensor([1.5, -0.0, 0.0, float("inf")], dtype=dtype), -torch.zeros(2, dtype=dtype)]
    for zero in (0.0, -0.0):
        vs = [torch.full_like(w, zero) for w in ws]
        eps = tensor_list.central_difference_step(vs)
        assert float(eps) == 0.0
        for c in (1.0, -1.0):
            moved = tensor_list.perturb(ws, eps, vs, c=c)
            for got, want in zip(moved, ws, strict=True):
                assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit())
        apart = tensor_list.difference(ws, moved, eps)
        assert not any(x.any() for x in apart)


def test_a_direction_that_is_not_finite_shows(backend):
    for value in (float("inf"), float("nan")):
        eps = tensor_list.central_difference_step([torch.tensor([1.0, value])])
        assert bool(eps.isnan())


def test_a_norm_does_not_overflow_on_the_way(backend):
    for value in (1e30, 1e-30):
        assert float(tensor_list.norm([torch.full((4,), value)])) == pytest.approx(2 * value)


@pytest.mark.parametrize("radius", [1e-1, 1e-3])
def test_central_differences_of_a_cubic(radius, backend):
    # grad = w^3: the difference is 3 w^2 v + eps^2 v^3 exactly.
    ws, vs = split(draw(2)), split(draw(3))
    eps = tensor_list.central_difference_step(vs, radius)
    torch.testing.assert_close(eps, radius / whole(vs).norm())
    plus = tensor_list.perturb(ws, eps, vs)
    minus = tensor_list.perturb(ws, eps, vs, c=-1.0)
    found = tensor_list.difference([x**3 for x in plus], [x**3 for x in minus], eps)
    w, v = whole(ws), whole(vs)
    torch.testing.assert_close(whole(found), 3 * w**2 * v + eps**2 * v**3)


def test_neumann_series(backend):
    matrix, v, gamma = symmetric(0.2), draw(), 0.3
    ps, us = flat(split(v)), flat(split(v))
    want = term = v
    order = 40
    for _ in range(order):
        tensor_list.neumann_step_(ps, us, split(matrix @ whole(us)), gamma)
        term = term - gamma * matrix @ term
        want = want + term
        torch.testing.assert_close(whole(ps), want)
    exact = torch.linalg.solve(matrix, v)
    # What is left out is (I - gamma H)^(K+1) of the solution.
    error = (gamma * whole(ps) - exact).norm() / exact.norm()
    assert 0 < error <= (1 - gamma * 0.2) ** (order + 1)


def conjugate_gradients(matrix, v, steps: int, dtype=torch.float64):
    zs, rs, ps = (tensor_list.flat_like(split(v.to(dtype))) for _ in range(3))
    for tensors in (rs, ps):
        tensor_list.axpy_(tensors, 1.0, split(v.to(dtype)))
    state = tensor_list.cg_start(rs)
    for _ in range(steps):
        hs = split((matrix @ whole(ps)).to(dtype))
        tensor_list.cg_step_(zs, rs, ps, hs, state)
    return whole(zs), whole(rs), state


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_dimensions(backend):
    matrix, v = symmetric(0.2), draw()
    errors = []
    for steps in (2, 6, SIZE):
        z, r, state = conjugate_gradients(matrix, v, steps)
        torch.testing.assert_close(r, v - matrix @ z)  # the residual is that of the solution
        torch.testing.assert_close(state[0], r @ r)
        errors.append(float((z - torch.linalg.solve(matrix, v)).norm()))
    assert errors[0] > errors[1] > 1e-6 > 1e-10 > errors[2]
    assert state[3] == 0


def test_conjugate_gradients_of_the_reference_step_by_step(kernels):
    matrix, v = symmetric(0.1), draw()
    for steps in range(1, 8):
        got = conjugate_gradients(matrix, v, steps)
        with _ext.use("reference"):
            want = conjugate_gradients(matrix, v, steps)
        torch.testing.assert_close(got, want)


def test_negative_curvature_stops_for_good(backend):
    matrix, v = symmetric(-1.0), draw()
    stopped = None
    for steps in range(1, SIZE):
        z, r, state = conjugate_gradients(matrix, v, steps)
        if stopped is None and state[3]:
            stopped = steps, z, r, state
            before, _, _ = conjugate_gradients(matrix, v, steps - 1)
            assert torch.equal(z, before)  # the step that found it was not taken
        elif stopped:
            assert torch.equal(z, stopped[1]) and torch.equal(r, stopped[2])
            assert torch.equal(state, stopped[3])
    assert stopped is not None


def test_a_solved_system_stays_solved(backend):
    v = draw()
    z, r, state = conjugate_gradients(torch.eye(SIZE).double(), v, 4)
    torch.testing.assert_close(z, v)
    assert not r.any() and state[3] == 0 and state[0] == 0
    z, _, state = conjugate_gradients(torch.eye(SIZE).double(), torch.zeros(SIZE).double(), 2)
    assert not z.any() and state[3] == 0


def test_lists_of_a_whole_network(backend):
    shapes = [(16, 1, 3, 3), (16, 16, 1, 1), (16,), (1,)] * 50
    ps, us, hs = make(3, shapes=shapes)
    flats = [flat(tensors) for tensors in (ps, us, hs)]
    tensor_list.neumann_step_(ps, us, hs, 0.1)
    tensor_list.neumann_step_(*flats, 0.1)
    assert all(map(torch.equal, ps, flats[0])) and all(map(torch.equal, us, flats[1]))
