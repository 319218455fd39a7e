"""Tune the penalty of a ridge regression by gradient descent; the truth is known in closed form.

No search here: any inner problem that a loss describes will do.

Run:  python examples/ridge_hyperparameter.py
"""

import torch
from torch import Tensor

from pyfast_nas.hypergradients import hypergradient

SAMPLES, FEATURES = 40, 20


def data(seed: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return features and noisy targets; only the first five features matter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    return x, x[:, :5].sum(1) + 2.0 * noise


def solve(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Return the coefficients that minimise the training loss."""
    gram = x.T @ x / len(x) + penalty * torch.eye(FEATURES, dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y / len(x))


def main() -> None:
    """Compare estimates with the closed form, then descend along one of them."""
    train, valid = data(0, SAMPLES), data(1, 200)

    def train_loss(w: Tensor, log_penalty: Tensor) -> Tensor:
        x, y = train
        return 0.5 * (x @ w - y).square().mean() + 0.5 * log_penalty.exp() * w.square().sum()

    def valid_loss(w: Tensor, log_penalty: Tensor) -> Tensor:
        x, y = valid
        return 0.5 * (x @ w - y).square().mean()

    log_penalty = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    w = solve(*train, log_penalty.exp())
    (truth,) = torch.autograd.grad(valid_loss(w, log_penalty), log_penalty)
    print(f"closed form             {truth:.8f}")
    for method, options in {
        "first_order": {},
        "identity": {"scale": 0.3},
        "neumann": {"gamma": 0.3, "order": 10},
        "conjugate_gradient": {"maxiter": 25, "rtol": 1e-10},
        "exact": {},
    }.items():
        result = hypergradient(
            valid_loss, train_loss, w.detach(), log_penalty, method=method, **options
        )
        print(f"{method:<23} {result.grads:.8f}  {dict(result.info.products)}")

    before = valid_loss(w, log_penalty).item()
    optimizer = torch.optim.Adam([log_penalty], lr=0.2)
    for _ in range(60):
        w = solve(*train, log_penalty.detach().exp())
        hypergradient(valid_loss, train_loss, w, log_penalty, maxiter=25, accumulate=False)
        optimizer.step()
    w = solve(*train, log_penalty.detach().exp())
    after = valid_loss(w, log_penalty).item()
    print(f"penalty {log_penalty.exp().item():.3f}: validation loss {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    main()
