"""Gates: how architecture logits become mixing weights, and which candidates have to run.

Every relaxation is a gate; a cell never asks which one it was. Gates own no parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from pyfast_nas import ops
from pyfast_nas.ops.inner_product import inner_product

__all__ = ["Gate", "GateOutput", "GumbelSoftmax", "GumbelTopK", "Softmax", "straight_through"]


@dataclass(frozen=True)
class GateOutput:
    """Mixing weights of every row, and which candidate each column belongs to.

    Attributes:
        weights: Mixing weights, one column per candidate that runs.
        active: Per row the candidate of each column, as Python integers on the host; ``None``
            means that all candidates run, in their own order.
        straight_through: With one active column, or with ``selected``: outputs pass unchanged,
            and weights receive the gradient they would get as factors of value one.
        selected: In place of ``active`` where the host shall not know: which candidates run, bool,
            on the device of ``weights``. A kernel skips the others there; a candidate that runs
            beside the kernel is computed and left out of the sum.
        shift: Numbers that are added to every element of each row's output; ``None`` adds nothing.
        recompute: One candidate of a row runs, by ``active`` or ``selected``, and its output passes
            unchanged; backward runs all candidates of the row again, one at a time and without a
            graph, to give every weight the gradient it would get as a factor. See
            `pyfast_nas.nn.recomputation`.

    Shape:
        weights ``[rows, columns]``, ``selected`` alike; ``active`` has ``rows`` entries of
        ``columns`` integers, or of one with ``recompute``; shift ``[rows]``.

    Example:
        >>> gate = GateOutput(torch.tensor([[0.5, 0.2]]), active=((3, 1),))
        >>> [part.active for part in gate.split()]
        [((3,),), ((1,),)]
    """

    weights: Tensor
    active: tuple[tuple[int, ...], ...] | None = None
    straight_through: bool = False
    selected: Tensor | None = None
    shift: Tensor | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.weights.dim() != 2:
            raise ValueError(
                f"GateOutput: weights must have shape [rows, columns], "
                f"got {list(self.weights.shape)}"
            )
        rows, columns = self.weights.shape
        if self.recompute:
            if self.straight_through or (self.active is None and self.selected is None):
                raise ValueError(
                    "GateOutput: recompute must go with active or selected, and without "
                    "straight_through, which it implies"
                )
            columns = 1
        if self.active is not None and (
            len(self.active) != rows or any(len(row) != columns for row in self.active)
        ):
            raise ValueError(
                f"GateOutput: active must have {rows} rows of {columns} candidates"
                + (" with recompute" if self.recompute else " like weights")
            )
        # A sampler on a GPU says -1 of logits with NaN; as an index it would be the last candidate.
        if any(k < 0 for row in self.active or () for k in row):
            least = min(k for row in self.active for k in row)
            raise ValueError(f"GateOutput: active must be candidates from 0 on, got {least}")
        if self.selected is not None and (
            self.active is not None
            or self.selected.shape != self.weights.shape
            or self.selected.dtype is not torch.bool
        ):
            raise ValueError(
                f"GateOutput: selected must be bool of shape {list(self.weights.shape)} like "
                f"weights, and active None, got {self.selected.dtype} of shape "
                f"{list(self.selected.shape)}"
            )
        if self.shift is not None and self.shift.shape != (rows,):
            raise ValueError(
                f"GateOutput: shift must have shape [{rows}] for {rows} rows of weights, "
                f"got {list(self.shift.shape)}"
            )
        if (
            self.straight_through
            and self.selected is None
            and (columns != 1 or self.active is None)
        ):
            raise ValueError(
                f"GateOutput: straight_through must go with one active candidate a row, "
                f"got {columns} columns"
            )

    def path(self) -> "GateOutput":
        """Return the gate of what runs forward with ``recompute``, without a gradient.

        Example:
            >>> GateOutput(torch.zeros(1, 3), active=((2,),), recompute=True).path().weights
            tensor([[1.]])
        """
        if self.active is None:
            ones = torch.ones_like(self.weights, requires_grad=False)
            return GateOutput(ones, straight_through=True, selected=self.selected)
        ones = self.weights.new_ones(len(self.active), 1)
        return GateOutput(ones, self.active, straight_through=True)

    def split(self) -> Iterator["GateOutput"]:
        """Yield one straight-through single-path gate per column, first column first."""
        if self.active is None:
            raise ValueError("GateOutput.split: active must name the candidates, got None")
        for column in range(self.weights.shape[1]):
            active = tuple((row[column],) for row in self.active)
            weights = self.weights[:, column : column + 1]
            yield GateOutput(weights, active, straight_through=True, shift=self.shift)


class Gate(Protocol):
    """Anything that turns logits ``[rows, num_ops]`` into a `GateOutput`."""

    def __call__(self, logits: Tensor, seed: Tensor | None = None) -> GateOutput:
        """Return the weights of every row; only sampling gates need the seed."""
        ...


@dataclass(frozen=True)
class Softmax:
    """Weight every candidate by the softmax of its row: the DARTS relaxation.

    Shape:
        logits ``[rows, num_ops]`` -> weights ``[rows, num_ops]``.

    Example:
        >>> Softmax()(torch.zeros(1, 4)).weights
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eq. 2.
    """

    def __call__(self, logits: Tensor, seed: Tensor | None = None) -> GateOutput:
        """Return the softmax of each row; the seed is not used."""
        return GateOutput(torch.softmax(logits, dim=-1))


@dataclass
class GumbelSoftmax:
    r"""Weight every candidate by :math:`\mathrm{softmax}((\alpha + G) / \tau)` with Gumbel noise.

    Args:
        tau: Temperature, greater than zero.

    Shape:
        logits ``[rows, num_ops]``, seed int64 ``[2]`` -> weights ``[rows, num_ops]``, of the dtype
        of the logits; float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: If ``tau`` is not positive and finite, or the seed is missing.

    Example:
        >>> gate = GumbelSoftmax(tau=0.5)(torch.zeros(2, 3), seed=torch.tensor([0, 0]))
        >>> bool(torch.allclose(gate.weights.sum(1), torch.ones(2)))
        True

    References:
        Jang, Gu & Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, eq. 2.
    """

    tau: float = 1.0

    def __call__(self, logits: Tensor, seed: Tensor | None = None) -> GateOutput:
        """Draw one noise row per logit row and relax it."""
        if not 0 < self.tau < float("inf"):
            raise ValueError(
                f"GumbelSoftmax: tau must be positive and finite, got {self.tau!r:.200}"
            )
        # In half precision the sum would round away most of the noise.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        noise = ops.gumbel_noise(_given(seed, "GumbelSoftmax"), *logits.shape)
        keys = logits.to(dtype) + noise.to(dtype)
        return GateOutput(torch.softmax(keys / self.tau, dim=-1).to(logits.dtype))


@dataclass
class GumbelTopK:
    """Draw ``k`` candidates per row without replacement and weight them by their relaxation.

    The indices cross to the host once for all rows; whatever is not drawn does not run.

    Args:
        k: Candidates drawn per row.
        tau: Temperature, greater than zero.
        relaxation: ``"shared"``, ``"conditional"`` or ``"subset"``, as in
            `pyfast_nas.ops.gumbel_topk`.

    Shape:
        logits ``[rows, num_ops]``, seed int64 ``[2]`` -> weights ``[rows, k]``, best first.

    Raises:
        ValueError: If ``k``, ``tau`` or ``relaxation`` is out of range, or the seed is missing.

    Example:
        >>> gate = GumbelTopK(k=2)(torch.zeros(3, 4), seed=torch.tensor([0, 0]))
        >>> gate.weights.shape, [len(set(row)) for row in gate.active]
        (torch.Size([3, 2]), [2, 2, 2])

    References:
        Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them", ICML 2019.
    """

    k: int = 1
    tau: float = 1.0
    relaxation: str = "shared"

    def __call__(self, logits: Tensor, seed: Tensor | None = None) -> GateOutput:
        """Sample every row and read the drawn indices back."""
        weights, indices = ops.gumbel_topk(
            logits,
            self.k,
            tau=self.tau,
            seed=_given(seed, "GumbelTopK"),
            relaxation=self.relaxation,
        )
        return GateOutput(weights, tuple(tuple(row) for row in indices.tolist()))


def straight_through(y: Tensor, weight: Tensor) -> Tensor:
    r"""Return ``y`` unchanged, differentiated as if multiplied by a factor of value one.

    The value is ``y`` to the bit. Derivatives of every order are those of
    :math:`y\,(1 + q - \mathrm{sg}(q))` with :math:`q` the weight, so
    :math:`\partial L/\partial q = \langle \partial L/\partial y, y\rangle`, accumulated in at
    least single precision and, where compiled kernels serve, in an order that does not depend on
    the number of threads. A weight that needs no gradient costs nothing.

    Args:
        y: Output of the one candidate that ran.
        weight: Its relaxed weight.

    Shape:
        y any shape, weight ``[]`` -> the shape of y.

    Example:
        >>> y, q = torch.tensor([2.0, 3.0]), torch.tensor(0.25, requires_grad=True)
        >>> straight_through(y, q).sum().backward()
        >>> q.grad
        tensor(5.)

    References:
        Dong & Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019.
    """
    if not weight.requires_grad and forward_ad.unpack_dual(weight).tangent is None:
        return y
    if torch.compiler.is_compiling():
        # Dynamo cannot trace a Function that has a jvp; multiplying by exactly one is as exact.
        return y * (1 + (weight - weight.detach())).to(y.dtype)
    return _StraightThrough.apply(y, weight)


class _StraightThrough(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, weight: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        y, weight = ctx.saved_tensors
        grad_y = straight_through(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_y, inner_product(grad, y).to(weight.dtype)

    @staticmethod
    def jvp(ctx, y_tangent: Tensor | None, weight_tangent: Tensor | None) -> Tensor:
        y, _ = ctx.saved_tensors
        if weight_tangent is None:
            return y_tangent.view_as(y_tangent)
        scaled = y * weight_tangent.to(y.dtype)
        return scaled if y_tangent is None else y_tangent + scaled


def _given(seed: Tensor | None, name: str) -> Tensor:
    if seed is None:
        raise ValueError(f"{name}: seed must be an int64 tensor of shape [2], got None")
    return seed
