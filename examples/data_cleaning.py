"""Find wrong labels: learn a weight for each training image from a few images that are right.

Of 400 embedded digits 40 % get a random label. A linear classifier trains on all of them, each
with a weight of its own; the weights go down the gradient of its loss on 200 clean images.

Run:  python examples/data_cleaning.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas.data import load_data
from pyfast_nas.hypergradients import hypergradient

TRAIN, CLEAN, NOISE = 400, 200, 0.4
DECAY = 0.02


def images() -> dict[str, tuple[Tensor, Tensor]]:
    """Return noisy training images, clean ones and test images, as vectors of pixels."""
    digits = load_data("digits")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.train_x), generator=generator)
    x = digits.train_x[order].flatten(1).float() / digits.scale
    y = digits.train_y[order]
    test_x = digits.test_x.flatten(1).float() / digits.scale
    return {
        "train": (x[:TRAIN], y[:TRAIN]),
        "clean": (x[TRAIN : TRAIN + CLEAN], y[TRAIN : TRAIN + CLEAN]),
        "test": (test_x, digits.test_y),
    }


def spoil(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels of which a share is random, and which of them are wrong now."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(10, labels.shape, generator=generator)
    is_spoilt = torch.rand(labels.shape, generator=generator) < NOISE
    spoilt = torch.where(is_spoilt, drawn, labels)
    return spoilt, spoilt != labels


def main() -> None:
    """Learn the weights, and show what they say about the labels."""
    data = images()
    x, right = data["train"]
    y, is_wrong = spoil(right)

    def train_loss(model: dict[str, Tensor], scores: Tensor) -> Tensor:
        losses = F.cross_entropy(x @ model["w"] + model["b"], y, reduction="none")
        penalty = DECAY * model["w"].square().sum() / 2
        return (scores.sigmoid() * losses).mean() + penalty

    def clean_loss(model: dict[str, Tensor], scores: Tensor) -> Tensor:
        inputs, labels = data["clean"]
        return F.cross_entropy(inputs @ model["w"] + model["b"], labels)

    def accuracy(model: dict[str, Tensor]) -> float:
        inputs, labels = data["test"]
        return (inputs @ model["w"] + model["b"]).argmax(1).eq(labels).float().mean().item()

    model = {"w": torch.zeros(64, 10), "b": torch.zeros(10)}
    scores = torch.zeros(TRAIN, requires_grad=True)

    def train(steps: int) -> None:
        for _ in range(steps):
            leaves = {name: value.requires_grad_() for name, value in model.items()}
            gradients = torch.autograd.grad(
                train_loss(leaves, scores.detach()), list(leaves.values())
            )
            for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
                model[name] = (value - 2.0 * gradient).detach()

    train(500)
    print(f"all labels alike:  test accuracy {accuracy(model):.3f}")
    optimizer = torch.optim.Adam([scores], lr=0.2)
    for _ in range(60):
        hypergradient(
            clean_loss,
            train_loss,
            model,
            scores,
            method="conjugate_gradient",
            maxiter=10,
            damping=1e-3,
            accumulate=False,
        )
        optimizer.step()
        train(20)
    weights = scores.detach().sigmoid()
    print(f"learnt weights:    test accuracy {accuracy(model):.3f}")
    right_mean, wrong_mean = weights[~is_wrong].mean().item(), weights[is_wrong].mean().item()
    print(f"mean weight of right labels {right_mean:.2f}, of wrong ones {wrong_mean:.2f}")
    caught = (weights[is_wrong] < 0.5).float().mean().item()
    print(f"wrong labels with a weight below one half: {caught:.0%} of {int(is_wrong.sum())}")


if __name__ == "__main__":
    main()
