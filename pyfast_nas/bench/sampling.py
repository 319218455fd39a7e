"""Cases of ``gumbel_topk`` and its rivals: plain forms of sampling without replacement."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.bench.operators import compiled
from pyfast_nas.bench.workload import Workload, WrongResultError
from pyfast_nas.ops import reference

__all__ = ["GUMBEL_TOPK_CASES", "GumbelTopKCase"]

TAU = 1.0
Sample = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class GumbelTopKCase:
    """Draw ``k`` of ``columns`` candidates in each of ``rows`` rows."""

    operator: ClassVar[str] = "gumbel_topk"
    modes: ClassVar[tuple[str, ...]] = ("forward", "both")

    rows: int
    columns: int
    k: int

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"{self.rows}x{self.columns}_k{self.k}"

    @property
    def sizes(self) -> list[int]:
        """Rows, columns, k."""
        return [self.rows, self.columns, self.k]

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel moves; backward reads the keys and writes as much."""
        forward = self.rows * (4 * self.columns + 12 * self.k)
        return forward + (self.rows * 12 * self.columns if mode == "both" else 0)

    def workloads(self, device: str) -> dict[str, Workload]:
        """Return every provider, each checked."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.rows, self.columns, generator=generator).to(device)
        seed = ops.draw_seed(torch.Generator().manual_seed(0), logits.device)
        functions: dict[str, Sample] = {
            "rand": _noise_by_rand,
            "exponential_topk": _exponential_topk,
            "exponential_softmax": _exponential_softmax,
            "exponential_in_place": _exponential_in_place,
            "compiled": compiled(_exponential_softmax),
            "fused": lambda logits, k: ops.gumbel_topk(logits, k, tau=TAU, seed=seed),
        }
        for name, function in functions.items():
            self._check_draw(name, *function(logits, self.k))
        self._check_ours(logits, seed, *functions["fused"](logits, self.k))
        return {name: _workload(function, logits, self.k) for name, function in functions.items()}

    def _check_draw(self, name: str, weights: Tensor, indices: Tensor) -> None:
        """Rivals draw otherwise: what they return must be a draw, best first."""
        fine = (
            weights.shape == indices.shape == (self.rows, self.k)
            and bool((indices.sort(1).values.diff(dim=1) > 0).all())
            and bool((weights.sum(1) <= 1 + 1e-5).all())
            and bool((weights.diff(dim=1) <= 0).all())
        )
        if not fine:
            raise WrongResultError(f"bench: {name} must draw {self.k} different candidates a row")

    def _check_ours(self, logits: Tensor, seed: Tensor, weights: Tensor, indices: Tensor) -> None:
        want, picks, _ = reference.gumbel_topk(logits.double(), self.k, TAU, seed, False, True)
        same = (indices == picks).all(1)
        # Keys closer than float32 can tell are drawn in either order.
        others = float((~same).double().mean())
        error = float((weights - want)[same].abs().max())
        if others >= 1e-3 or error >= 5e-6:
            raise WrongResultError(
                f"bench: fused must draw as the reference does, got {others:.1e} of the rows "
                f"otherwise and an error of {error:.1e}"
            )


GUMBEL_TOPK_CASES = (
    GumbelTopKCase(14, 8, 2),
    GumbelTopKCase(1024, 8, 2),
    GumbelTopKCase(65536, 16, 2),
    GumbelTopKCase(4096, 1024, 8),
)


def _noise_by_rand(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    noise = -torch.log(-torch.log(torch.rand_like(logits) + 1e-20) + 1e-20)
    return torch.topk(torch.softmax((logits + noise) / TAU, dim=1), k, dim=1)


def _exponential_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    keys = logits - torch.empty_like(logits).exponential_().log()
    best, indices = torch.topk(keys, k, dim=1)
    return torch.exp((best - (keys / TAU).logsumexp(1, keepdim=True) * TAU) / TAU), indices


def _exponential_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    race = torch.empty_like(logits).exponential_()
    return torch.topk(torch.softmax((logits - race.log()) / TAU, dim=1), k, dim=1)


def _exponential_in_place(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and logits.requires_grad:
        return _exponential_softmax(logits, k)
    keys = torch.empty_like(logits).exponential_().log_()
    q = torch.softmax(torch.sub(logits, keys, out=keys).div_(TAU), dim=1)
    return torch.topk(q, k, dim=1)


def _workload(function: Sample, logits: Tensor, k: int) -> Workload:
    leaf = logits.clone().requires_grad_()
    return Workload(
        forward=lambda: function(logits, k),
        run=lambda: function(leaf, k)[0].sum(),
        leaves=[leaf],
        parameters=[leaf],
    )
