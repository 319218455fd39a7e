"""Products of vectors with second derivatives: exact twice over, or by a central difference."""

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.double_backward import (
    refusing_gaps,
    require_twice_differentiable,
)
from pyfast_nas.hypergradients.problem import BilevelProblem, Split, moved
from pyfast_nas.testing import full_float32

__all__ = ["HessianProducts", "Mode", "hvp_aa", "hvp_aw", "hvp_ww"]

Mode = Literal["exact", "forward_over_reverse", "finite_difference"]
MODES: tuple[Mode, ...] = ("exact", "forward_over_reverse", "finite_difference")


class HessianProducts:
    r"""Products with the second derivatives of one loss on one batch, at the weights as they are.

    With :math:`H = \nabla^2_{ww} L` and :math:`G = \nabla^2_{\alpha w} L`: ``ww`` gives
    :math:`Hu`, ``aw`` gives :math:`Gu`, ``wa`` gives :math:`G^\top u`, ``aa`` gives
    :math:`\nabla^2_{\alpha\alpha} L\, u`, and ``both`` gives :math:`Hu` and :math:`Gu` at the
    cost of one.

    Weights, gradients, buffers and random streams are afterwards as before, to the bit, and every
    pass begins at the caller's random state. The products are computed in the weights' dtype, at
    least float32, with autocast and the shortened float32 of GPUs off.

    Args:
        problem: What the loss belongs to.
        batch: Handed to the loss.
        split: ``"train"`` or ``"valid"``: which loss.
        mode: ``"exact"`` differentiates the gradient, whose graph is made once and kept as long as
            this object; ``"forward_over_reverse"`` runs one pass per product with tangents and
            keeps nothing; ``"finite_difference"`` takes two plain passes,
            :math:`[g(w + \epsilon u) - g(w - \epsilon u)] / 2\epsilon` with
            :math:`\epsilon = r / \lVert u\rVert`. Where the network has kinks (ReLU, max pooling)
            the difference sees them and the derivative does not: they are different quantities.
        radius: The length :math:`r` of the finite difference.

    Attributes:
        counts: How many products were taken, by kind.

    Raises:
        ConfigError: If ``mode`` or ``radius`` is out of range, or a parameter has fewer bits than
            float32.
        DivergenceError: If the vector holds NaN or infinity (on a GPU the product holds NaN
            instead: nothing is read on the host).
        NotImplementedError: If an operation of the model has no second derivative, or no forward
            one, and the mode needs it.

    Example:
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> a = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w.pow(3) + a * w).sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> products = HessianProducts(problem, None)
        >>> u = [torch.ones(2, dtype=torch.float64)]
        >>> products.ww(u), products.aw(u)
        ([tensor([ 6., 12.], dtype=torch.float64)], [tensor([2.], dtype=torch.float64)])

    References:
        Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 1994.
        Liu, Simonyan & Yang, "DARTS", ICLR 2019, eq. 8 for the finite difference.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        batch: Any,
        *,
        split: Split = "train",
        mode: Mode = "exact",
        radius: float = 1e-2,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"HessianProducts: mode must be one of {MODES}, got {mode!r:.200}")
        if not radius > 0:
            raise ConfigError(f"HessianProducts: radius must be greater than 0, got {radius!r}")
        for tensor in (*problem.weights, *problem.alphas):
            if torch.finfo(tensor.dtype).bits < 32:
                raise ConfigError(
                    "HessianProducts: parameters must be float32 or wider, got "
                    f"{str(tensor.dtype).removeprefix('torch.')}"
                )
        self.problem = problem
        self.batch = batch
        self.split: Split = split
        self.mode: Mode = mode
        self.radius = radius
        self.counts: collections.Counter[str] = collections.Counter()
        self._graphs: dict[str, tuple[Tensor, ...]] = {}

    def ww(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian in the weights times ``u``, both shaped like the weights."""
        return self._product("ww", "weights", u, self.problem.weights)

    def aw(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return the mixed derivative times ``u``: shaped like the weights -> like the alphas."""
        return self._product("aw", "weights", u, self.problem.alphas)

    def wa(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return its transpose times ``u``: shaped like the alphas -> like the weights."""
        return self._product("wa", "alphas", u, self.problem.weights)

    def aa(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian in the alphas times ``u``, both shaped like the alphas."""
        return self._product("aa", "alphas", u, self.problem.alphas)

    def both(self, u: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return ``ww(u)`` and ``aw(u)`` at the cost of one product."""
        wanted = (*self.problem.weights, *self.problem.alphas)
        products = self._product("both", "weights", u, wanted)
        return products[: len(self.problem.weights)], products[len(self.problem.weights) :]

    def _product(
        self, kind: str, along: str, u: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> list[Tensor]:
        tensors: tuple[Tensor, ...] = getattr(self.problem, along)
        u = [entry.detach() for entry in u]
        shapes, wanted_shapes = ([list(t.shape) for t in vector] for vector in (u, tensors))
        if shapes != wanted_shapes:
            raise ValueError(
                f"hvp_{kind}: u must have the shapes of the {along}, {wanted_shapes!s:.200}, "
                f"got {shapes!s:.200}"
            )
        if self.problem.device.type == "cpu":
            _require_finite(kind, u)
        self.counts[kind] += 1
        if not wanted or not tensors:
            return vectors.zeros_like(wanted)
        if self.mode == "exact":
            return self._exact(along, tensors, u, wanted)
        if self.mode == "forward_over_reverse":
            return self._forward_over_reverse(tensors, u, wanted)
        return self._finite_difference(tensors, u, wanted)

    @contextlib.contextmanager
    def _precisely(self) -> Iterator[None]:
        device = self.problem.device.type
        with contextlib.ExitStack() as stack:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            if device == "cuda":
                stack.enter_context(full_float32())
            yield

    def _gradients(self, wanted: Sequence[Tensor], **how: bool) -> tuple[Tensor, ...]:
        with self._precisely():
            return self.problem.gradients(self.split, self.batch, wanted, **how)

    def _exact(
        self, along: str, tensors: Sequence[Tensor], u: list[Tensor], wanted: Sequence[Tensor]
    ) -> list[Tensor]:
        if along not in self._graphs:
            gradients = self._gradients(tensors, create_graph=True)
            require_twice_differentiable(gradients)
            self._graphs[along] = gradients
        # A loss linear in a tensor has a gradient that depends on nothing.
        pairs = [(g, e) for g, e in zip(self._graphs[along], u, strict=True) if g.requires_grad]
        if not pairs:
            return vectors.zeros_like(wanted)
        sources, directions = zip(*pairs, strict=True)
        # Backward may run layers again.
        with self._precisely(), self.problem.one_pass(), refusing_gaps():
            return list(
                torch.autograd.grad(
                    sources,
                    wanted,
                    directions,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )

    def _forward_over_reverse(
        self, tensors: Sequence[Tensor], u: list[Tensor], wanted: Sequence[Tensor]
    ) -> list[Tensor]:
        # The other order, reverse over forward, is wrong without a word through torch's batch norm.
        try:
            with moved(tensors) as start, forward_ad.dual_level():
                with torch.no_grad():
                    for tensor, value, tangent in zip(tensors, start, u, strict=True):
                        tensor.copy_(forward_ad.make_dual(value, tangent))
                gradients = self._gradients(wanted, tangents=True)
                tangents = [forward_ad.unpack_dual(g).tangent for g in gradients]
        except NotImplementedError as error:
            raise NotImplementedError(
                "HessianProducts: mode 'forward_over_reverse' needs a forward derivative of every "
                f"operation of the model; mode='exact' does not ({str(error).splitlines()[0]:.200})"
            ) from error
        return [
            torch.zeros_like(g) if tangent is None else tangent.detach()
            for g, tangent in zip(gradients, tangents, strict=True)
        ]

    def _finite_difference(
        self, tensors: Sequence[Tensor], u: list[Tensor], wanted: Sequence[Tensor]
    ) -> list[Tensor]:
        step = vectors.step_size(u, self.radius)
        with moved(tensors) as start:
            vectors.perturb_(tensors, start, step, u)
            plus = self._gradients(wanted)
            vectors.perturb_(tensors, start, step, u, -1.0)
            minus = self._gradients(wanted)
        return vectors.difference(plus, minus, step)


def _require_finite(kind: str, u: Sequence[Tensor]) -> None:
    if not bool(vectors.norm(u).isfinite()):
        raise DivergenceError(f"hvp_{kind}: u must be finite, got NaN or infinity")


def hvp_ww(problem: BilevelProblem, batch: Any, u: Sequence[Tensor], **how: Any) -> list[Tensor]:
    """Return the Hessian of the training loss in the weights times ``u``.

    Args:
        problem: What the loss belongs to.
        batch: Training batch.
        u: Shaped like the weights.
        how: ``mode`` and ``radius`` of `HessianProducts`.

    Example:
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (2, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w.pow(3) * a).sum(),
        ...     valid_loss=lambda batch: (w * a.pow(2)).sum(),
        ... )
        >>> hvp_ww(problem, None, [torch.ones(1)])
        [tensor([36.])]
    """
    return HessianProducts(problem, batch, **how).ww(u)


def hvp_aw(problem: BilevelProblem, batch: Any, u: Sequence[Tensor], **how: Any) -> list[Tensor]:
    """Return the mixed second derivative of the training loss times ``u``.

    Args:
        problem: What the loss belongs to.
        batch: Training batch.
        u: Shaped like the weights.
        how: ``mode`` and ``radius`` of `HessianProducts`.

    Returns:
        One tensor per architecture parameter.

    Example:
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (2, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w.pow(3) * a).sum(),
        ...     valid_loss=lambda batch: (w * a.pow(2)).sum(),
        ... )
        >>> hvp_aw(problem, None, [torch.ones(1)])
        [tensor([12.])]
    """
    return HessianProducts(problem, batch, **how).aw(u)


def hvp_aa(problem: BilevelProblem, batch: Any, u: Sequence[Tensor], **how: Any) -> list[Tensor]:
    """Return the Hessian of the validation loss in the architecture parameters times ``u``.

    Args:
        problem: What the loss belongs to.
        batch: Validation batch.
        u: Shaped like the architecture parameters.
        how: ``mode`` and ``radius`` of `HessianProducts`.

    Example:
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (2, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w.pow(3) * a).sum(),
        ...     valid_loss=lambda batch: (w * a.pow(2)).sum(),
        ... )
        >>> hvp_aa(problem, None, [torch.ones(1)])
        [tensor([4.])]
    """
    return HessianProducts(problem, batch, split="valid", **how).aa(u)
