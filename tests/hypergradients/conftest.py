"""Bilevel problems with known answers, and bit-exact snapshots."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas.hypergradients import BilevelProblem

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def leaf(values, dtype=DOUBLE) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def quadratic(w=(-0.1, -0.2), a=0.5, dtype=DOUBLE, buffer=None, hessian=None, **sgd):
    """The two weights and one parameter of which every estimate has a number; at w*(0.5)."""
    weight, alpha = leaf(list(w), dtype), leaf([a], dtype)
    h = torch.tensor(hessian or [[3.0, 1.0], [1.0, 2.0]], dtype=dtype)
    b = torch.tensor([1.0, -1.0], dtype=dtype)
    c = torch.tensor([0.0, 1.0], dtype=dtype)
    optimizer = torch.optim.SGD([weight], **({"lr": 0.1} | sgd))
    if buffer is not None:
        optimizer.state[weight]["momentum_buffer"] = torch.tensor(buffer, dtype=dtype)
    return BilevelProblem(
        weights=[weight],
        alphas=[alpha],
        train_loss=lambda _: 0.5 * weight @ h @ weight + weight @ (b * alpha + c),
        valid_loss=lambda _: 0.5 * (weight - 1).square().sum() + alpha.square().sum(),
        weight_optimizer=optimizer,
    )


def figure(w=-2.0, a=2.0, buffer=None, **sgd):
    """The example of figure 2 of the DARTS paper."""
    weight, alpha = leaf([w]), leaf([a])
    optimizer = torch.optim.SGD([weight], **({"lr": 0.1} | sgd))
    if buffer is not None:
        optimizer.state[weight]["momentum_buffer"] = torch.tensor([buffer], dtype=DOUBLE)
    return BilevelProblem(
        weights=[weight],
        alphas=[alpha],
        train_loss=lambda _: (weight.square() - 2 * alpha * weight + alpha.square()).sum(),
        valid_loss=lambda _: (alpha * weight - 2 * alpha + 1).sum(),
        weight_optimizer=optimizer,
    )


def spd(size: int = 8, alphas: int = 3, seed: int = 0, optimum: bool = True):
    """A random convex quadratic with its H, G and v, at w* unless told otherwise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    root = draw(size, size)
    h = root @ root.T / size + 0.3 * torch.eye(size, dtype=DOUBLE)
    g, target, alpha = draw(alphas, size), draw(size), leaf(draw(alphas).tolist())
    at = -torch.linalg.solve(h, g.T @ alpha.detach()) if optimum else draw(size)
    half = size // 2
    first, second = leaf(at[:half].tolist()), leaf(at[half:].tolist())

    def weights():
        return torch.cat([first, second])

    problem = BilevelProblem(
        weights=[first, second],
        alphas=[alpha],
        train_loss=lambda _: 0.5 * weights() @ h @ weights() + alpha @ g @ weights(),
        valid_loss=lambda _: (0.5 * (weights() - target).square()).sum() + alpha.pow(3).sum(),
        weight_optimizer=torch.optim.SGD([first, second], lr=0.1),
    )
    return problem, h, g, at - target


class SmoothNet(nn.Module):
    """Two layers; the hidden one mixes four activations of one linear map."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.second = nn.Linear(6, 3)
        self.alpha = nn.Parameter(0.3 * torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        mixture = torch.stack([h.tanh(), h.sigmoid(), h, torch.zeros_like(h)])
        return self.second(self.drop(torch.einsum("k,kbc->bc", self.alpha.softmax(0), mixture)))


def batch(seed: int, size: int = 12, dtype=DOUBLE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=generator, dtype=DOUBLE).to(dtype)
    return x, torch.randint(3, (size,), generator=generator)


def smooth(dtype=DOUBLE, *, optimizer=None, **net) -> tuple[SmoothNet, BilevelProblem]:
    """The net, and its problem under SGD with momentum that has made one step."""
    torch.manual_seed(7)
    model = SmoothNet(**net).to(dtype)
    weights = [p for p in model.parameters() if p is not model.alpha]
    make = optimizer or (lambda ws: torch.optim.SGD(ws, lr=0.05, momentum=0.9, weight_decay=3e-4))
    optimizer = make(weights)
    loss = F.cross_entropy(model(batch(9, dtype=dtype)[0]), batch(9)[1])
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimizer.step()
    return model, BilevelProblem.of_module(model, alphas=[model.alpha], weight_optimizer=optimizer)


def like(tensors, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=DOUBLE).to(t.dtype) for t in tensors]


def dot(xs, ys) -> float:
    return float(sum((x * y).sum() for x, y in zip(xs, ys, strict=True)))


def distance(got, want) -> float:
    """Relative distance of two lists of tensors."""
    over = sum((a.double() - b.double()).square().sum() for a, b in zip(got, want, strict=True))
    return float((over / sum(b.double().square().sum() for b in want)).sqrt())


def frozen(value: object) -> object:
    """A copy that compares by value, tensors by their bytes."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value


def snapshot(model: nn.Module, problem: BilevelProblem) -> dict[str, object]:
    """Everything that a hypergradient must leave alone."""
    optimizer = problem.weight_optimizer.optimizer
    return {
        "parameters": {n: frozen(p) for n, p in model.named_parameters()},
        "places": {n: p.data_ptr() for n, p in model.named_parameters()},
        "buffers": {n: frozen(b) for n, b in model.named_buffers()},
        "objects": {n: id(b) for n, b in model.named_buffers()},
        "grads": {n: frozen(p.grad) for n, p in model.named_parameters()},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "optimizer": frozen(optimizer.state_dict()),
        "entries": len(optimizer.state),
        "torch": frozen(torch.get_rng_state()),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def fixture(function: Callable) -> Callable:
    return pytest.fixture(name=function.__name__)(lambda: function)


quadratic_fixture = fixture(quadratic)
figure_fixture = fixture(figure)
spd_fixture = fixture(spd)
smooth_fixture = fixture(smooth)
batch_fixture = fixture(batch)
like_fixture = fixture(like)
dot_fixture = fixture(dot)
distance_fixture = fixture(distance)
snapshot_fixture = fixture(snapshot)
