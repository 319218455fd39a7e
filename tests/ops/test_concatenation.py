"""Parts of a concatenation written in place: the same numbers, no copy, no silent change."""

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.ops import Candidate, Concatenation

pytestmark = pytest.mark.filterwarnings("error")


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def pools(x, weights, place=None):
    return ops.fused_node(
        [x], weights, [Candidate("max_pool", 0), Candidate("skip", 0)], [1], place
    )[0]


def chain(x, weights, parts, in_place):
    """Three states, each made of the one before it; the last ``parts`` side by side."""
    outcome = Concatenation(parts)
    states = [x]
    for node in range(3):
        part = node - (3 - parts)
        place = outcome.place(part, x.shape, x) if in_place and part >= 0 else None
        states.append(pools(states[-1], weights, place))
    return outcome.join(states[-parts:]), states[-parts:]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 16, 5, 6), (3, 5, 4, 4), (1, 1, 3, 1), (2, 3, 1, 1)])
def test_equals_a_copy(parts, shape, backend):
    x, weights = draw(*shape).requires_grad_(), draw(2, seed=1).requires_grad_()
    gradient = draw(shape[0], parts * shape[1], *shape[2:], seed=2)
    (y, _), (want, _) = (chain(x, weights, parts, in_place) for in_place in (True, False))
    assert torch.equal(y, want)
    found, expected = (torch.autograd.grad(t, [x, weights], gradient) for t in (y, want))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_copied(backend):
    x, weights = draw(2, 4, 6, 6), draw(2)
    y, states = chain(x.requires_grad_(), weights, 2, True)
    shares = {s.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for s in states}
    assert shares == {backend == "compiled"}
    with torch.no_grad():
        y, states = chain(x, weights, 2, True)
    assert (states[0].data_ptr() == y.data_ptr()) == (backend == "compiled")


def test_second_derivatives(backend):
    x = draw(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    weights = draw(2, seed=1, dtype=torch.float64).requires_grad_()
    # In the weights: a max pool has no second derivative in its input.
    assert torch.autograd.gradgradcheck(lambda w: chain(x.detach(), w, 2, True)[0], weights)
    y, _ = chain(x, weights, 2, True)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    want, _ = chain(x, weights, 2, False)
    (other,) = torch.autograd.grad(want.square().sum(), x, create_graph=True)
    for a, b in zip(
        torch.autograd.grad(first.square().sum(), [x, weights]),
        torch.autograd.grad(other.square().sum(), [x, weights]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_change_in_place_is_refused(backend):
    """The outcome is what the states are: changing it would change what backward reads."""
    x, weights = draw(2, 4, 6, 6).requires_grad_(), draw(2, seed=1).requires_grad_()
    y, _ = chain(x, weights, 2, True)
    y = torch.relu_(y)
    if backend == "compiled":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()


def test_what_does_not_fit_is_copied():
    outcome = Concatenation(2)
    like = torch.zeros(1)
    first = outcome.place(0, (2, 3, 4, 4), like).fill_(1.0)
    assert outcome.place(1, (2, 3, 2, 2), like) is None
    second = torch.full((2, 3, 4, 4), 2.0)
    y = outcome.join([first, second])
    assert torch.equal(y, torch.cat([first, second], 1))
    assert y.data_ptr() != first.data_ptr()


def test_a_place_of_another_shape_is_refused(kernels):
    x = draw(2, 4, 6, 6)
    for place in (torch.empty(2, 4, 6, 5), torch.empty(2, 4, 6, 6), torch.empty(2, 3, 6, 6)):
        with pytest.raises(RuntimeError, match="place must be channels-last"):
            pools(x, draw(2), place)
    wide = torch.empty(2, 8, 6, 6, dtype=torch.float64, memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"place|y"):
        pools(x, draw(2), wide[:, :4])


def test_inputs_may_be_channels_of_wider_tensors(kernels):
    wide = draw(2, 12, 5, 7).contiguous(memory_format=torch.channels_last)
    for channels in (slice(0, 4), slice(3, 8), slice(11, 12)):
        x = wide[:, channels]
        gradient = wide.flip(0)[:, channels]
        weights = draw(2, seed=1).requires_grad_()
        results = []
        for source, g in ((x, gradient), (x.contiguous(), gradient.contiguous())):
            leaf = source.detach().requires_grad_()
            y = pools(leaf, weights)
            results.append([y, *torch.autograd.grad(y, [leaf, weights], g)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
