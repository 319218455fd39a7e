"""How far a finite difference is from the mixed derivative: ``python -m benchmarks.hvp_accuracy``.

The DARTS supernet with 4 channels and 3 cells on 8 x 8 images, batch 16. On smooth operations the
error falls with the square of the radius; with ReLU and max pooling the difference sees kinks that
the derivative does not, and the two are different quantities.
"""

import argparse
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas import spaces
from pyfast_nas.hypergradients import BilevelProblem, HessianProducts

__all__ = ["errors", "main", "make", "smooth", "table"]

RADII = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
RADII_IN_FLOAT32 = RADII[:4]
BATCH = 16
# Column of the table -> whether operations are smooth, steps of the weights before.
CASES = {
    "smooth, at the start": (True, 0),
    "smooth, after 60 steps": (True, 60),
    "ReLU and max pooling, at the start": (False, 0),
}


def smooth(model: nn.Module) -> None:
    """Put softplus in place of every ReLU and average pooling in place of every maximum."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(
                    child.kernel_size, child.stride, child.padding, count_include_pad=False
                )
                setattr(module, name, pool)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (BATCH,), generator=generator)


def make(is_smooth: bool, steps: int) -> nn.Module:
    """Return the supernet in float64, after steps of SGD on random batches."""
    torch.manual_seed(0)
    space = spaces.DARTS(channels=4, cells=3, num_classes=10, in_channels=3, image_size=8)
    model = space.supernet().double()
    if is_smooth:
        smooth(model)
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    for seed in range(steps):
        images, labels = batch(100 + seed)
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
    return model


def errors(
    model: nn.Module, radii: Sequence[float], dtype: torch.dtype = torch.float64
) -> list[tuple[float, float]]:
    """Return relative error and cosine of the mixed product by differences, for each radius.

    The vector is the gradient of another batch, as in a second-order step. The truth is the exact
    product in float64.

    Args:
        model: In float64.
        radii: Lengths of the step.
        dtype: What differences are computed in.
    """
    (images, labels), valid = batch(1), batch(2)
    problem = BilevelProblem.of_module(model)
    vector = problem.gradients("valid", valid, problem.weights)
    truth = flat(HessianProducts(problem, (images, labels)).aw(vector))
    found = []
    model = copy.deepcopy(model).to(dtype)
    problem = BilevelProblem.of_module(model)
    for radius in radii:
        products = HessianProducts(
            problem, (images.to(dtype), labels), mode="finite_difference", radius=radius
        )
        product = flat(products.aw([entry.to(dtype) for entry in vector])).double()
        error = (product - truth).norm() / truth.norm()
        found.append((float(error), float(F.cosine_similarity(product, truth, dim=0))))
    return found


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def table(cases: dict[str, tuple[bool, int]] | None = None) -> str:
    """Return the Markdown table of relative errors; a cosine where the error is no small number."""
    cases = CASES if cases is None else cases
    models = {name: make(*how) for name, how in cases.items()}
    lines = [
        f"| radius | {' | '.join(models)} |",
        "| --- " * (1 + len(models)) + "|",
    ]
    for label, radii, dtype in (
        ("", RADII, torch.float64),
        ("float32, ", RADII_IN_FLOAT32, torch.float32),
    ):
        columns = [errors(model, radii, dtype) for model in models.values()]
        for radius, row in zip(radii, zip(*columns, strict=True), strict=True):
            cells = [
                f"{error:.1e}" + (f" (cosine {cosine:.2f})" if error > 0.5 else "")
                for error, cosine in row
            ]
            lines.append(f"| {label}{radius:.0e} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; a minute or two on one core."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    print(table())


if __name__ == "__main__":
    main()
