"""Each operator once, by its kernel and by the reference: what ``pyfast-nas info --check`` runs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas import _ext, ops
from pyfast_nas.ops import reference
from pyfast_nas.testing import full_float32

__all__ = ["check"]

LIMIT = 1e-5


def check() -> list[str]:
    """Run each operator once against the float64 reference on every device that has kernels.

    Returns:
        One line for each operator and device that disagrees; an empty list when all is well.

    Example:
        >>> check()
        []
    """
    problems = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        served = _ext.kernels_in_use(device)
        for name, error_on in _ERRORS.items():
            if served[name] != "compiled":
                continue
            # Without shortened factors, which are no mistake of a kernel.
            with full_float32():
                error = error_on(device)
            if not error < LIMIT:
                problems.append(f"{name} on {device} differs from the reference by {error:.1e}")
    return problems


def _draw(*shapes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _furthest(got: Tensor, want: Tensor) -> float:
    return (got.cpu().double() - want.double()).abs().max().item()


def _mixed_sum(device: str) -> float:
    *xs, weights = _draw(*[(3, 5, 7)] * 5, (5,))
    got = ops.mixed_sum([x.to(device) for x in xs], weights.to(device))
    return _furthest(got, reference.mixed_sum([x.double() for x in xs], weights.double()))


def _gumbel_topk(device: str) -> float:
    (logits,), seed = _draw((9, 8)), torch.tensor([2024, 3])
    errors = []
    for relaxation in ("conditional", "shared", "subset"):
        found = ops.gumbel_topk(
            logits.to(device), 3, tau=0.7, seed=seed.to(device), relaxation=relaxation
        )
        with _ext.use("reference"):
            want = ops.gumbel_topk(logits, 3, tau=0.7, seed=seed, relaxation=relaxation)
        picked = torch.equal(found[1].cpu(), want[1])
        errors.append(_furthest(found[0], want[0]) if picked else float("inf"))
    return max(errors)


def _philox_uniform(device: str) -> float:
    seed = torch.tensor([2024, 3])
    got = ops.philox_uniform(seed.to(device), 4, 33)
    with _ext.use("reference"):
        return _furthest(got, ops.philox_uniform(seed, 4, 33))


def _norm_mixed_sum(device: str) -> float:
    *xs, weights = _draw(*[(3, 5, 7)] * 5, (5,))
    norms = [ops.Norm()] * len(xs)
    got, *_ = ops.norm_mixed_sum([x.to(device) for x in xs], weights.to(device), norms)
    with _ext.use("reference"):
        want, *_ = ops.norm_mixed_sum([x.double() for x in xs], weights.double(), norms)
    return _furthest(got, want)


def _fused_node(device: str) -> float:
    x, weights, matrix = _draw((2, 6, 5, 5), (3,), (6, 6, 1, 1))

    def node(place: str, dtype: torch.dtype) -> Tensor:
        stage = ops.Stage(None, matrix.to(place, dtype), ops.Norm())
        candidates = [
            ops.Candidate("skip", 0),
            ops.Candidate("max_pool", 0, norm=ops.Norm()),
            ops.Candidate("conv", 0, (stage,)),
        ]
        return ops.fused_node([x.to(place, dtype)], weights.to(place, dtype), candidates, [1])[0]

    got = node(device, torch.float32)
    with _ext.use("reference"):
        return _furthest(got, node("cpu", torch.float64))


def _tensor_list(device: str) -> float:
    xs = _draw(*[(3, 5, 7)] * 5)
    ps, us, hs = ([x.to(device, copy=True) for x in xs] for _ in range(3))
    ops.tensor_list.neumann_step_(ps, us, hs, 0.5)
    want = 1.5 * torch.cat([x.double().flatten() for x in xs]).norm()
    return _furthest(ops.tensor_list.norm(ps) / want, torch.ones(()))


_ERRORS: dict[str, Callable[[str], float]] = {
    "mixed_sum": _mixed_sum,
    "gumbel_topk": _gumbel_topk,
    "philox_uniform": _philox_uniform,
    "norm_mixed_sum": _norm_mixed_sum,
    "fused_node": _fused_node,
    "tensor_list": _tensor_list,
}
