"""Use MixedOp in a supernet of your own: one import changes, the rest of the model stays.

Run:  python examples/drop_in_mixed_op.py
"""

import torch
from torch import nn

from pyfast_nas.nn import MixedOp


def candidates(channels: int) -> dict[str, nn.Module]:
    """Return what one edge chooses from."""
    return {
        "skip": nn.Identity(),
        "conv3": nn.Conv2d(channels, channels, 3, padding=1),
        "conv5": nn.Conv2d(channels, channels, 5, padding=2),
        "pool": nn.AvgPool2d(3, stride=1, padding=1),
    }


class TinySupernet(nn.Module):
    """Three searchable edges between a stem and a classifier."""

    def __init__(self, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.edges = nn.ModuleList(MixedOp(candidates(channels)) for _ in range(3))
        self.alphas = nn.Parameter(1e-3 * torch.randn(3, 4))
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class scores of a batch of images [N, 3, H, W]."""
        x = self.stem(images)
        for edge, weights in zip(self.edges, self.alphas.softmax(-1), strict=True):
            x = edge(x.relu(), weights)
        return self.head(x.mean((2, 3)))


def main() -> None:
    """Take three alternating first-order steps on random images."""
    torch.manual_seed(0)
    model = TinySupernet()
    weights = [p for name, p in model.named_parameters() if name != "alphas"]
    weight_optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    alpha_optimizer = torch.optim.Adam([model.alphas], lr=3e-3)
    for step in range(3):
        images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
        loss = nn.functional.cross_entropy(model(images), labels)
        (model.alphas.grad,) = torch.autograd.grad(loss, [model.alphas])
        alpha_optimizer.step()
        loss = nn.functional.cross_entropy(model(images), labels)
        for parameter, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            parameter.grad = grad
        weight_optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, alphas moved to {model.alphas.norm():.4f}")


if __name__ == "__main__":
    main()
