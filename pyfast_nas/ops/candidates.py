"""What the candidates of a fused node are: plain tuples of their tensors, no modules."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["Candidate", "Norm", "Stage", "map_tensors"]


class Norm(NamedTuple):
    """A batch norm over ``[N, C, H, W]``.

    Attributes:
        gamma: Scale ``[C]``, or None where the norm is not affine; then ``beta`` is None too.
        beta: Shift ``[C]``.
        mean: Given mean ``[C]`` (evaluation mode), or None for that of the batch (training mode).
        var: Given variance ``[C]``, biased as stored; None exactly where ``mean`` is.
        eps: Added to the variance.
    """

    gamma: Tensor | None = None
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5


class Stage(NamedTuple):
    """ReLU, depthwise convolution, pointwise or full convolution, batch norm.

    With ``shifted`` it is a factorised reduction: two pointwise convolutions of stride 2, the
    second one row and column further, whose outputs stand side by side.

    Attributes:
        taps: Depthwise kernel ``[C_in, 1, k, k]`` with odd k, padded so that the image keeps its
            size at stride 1; None for none.
        matrix: Pointwise kernel ``[C_out, C_in, 1, 1]``; or, without ``taps``, kernel
            ``[C_out, C_in, k, k]`` of a full convolution with odd k, padded in the same way.
        norm: The batch norm behind it.
        dilation: Distance of the taps.
        shifted: Pointwise kernel of the remaining output channels, ``[C_rest, C_in, 1, 1]``; only
            in a first stage without taps, of stride 2 on an image with even sides.
        bias: Added in front of a norm that uses the statistics of the batch, ``[C_out]``.
            It cancels out: kernels do not read it, its gradient is zero, and the mean in the
            statistics is that without it.
    """

    taps: Tensor | None
    matrix: Tensor
    norm: Norm
    dilation: int = 1
    shifted: Tensor | None = None
    bias: Tensor | None = None

    @property
    def out_channels(self) -> int:
        """Channels that the stage gives."""
        return self.matrix.shape[0] + (0 if self.shifted is None else self.shifted.shape[0])


class Candidate(NamedTuple):
    """One candidate operation of one edge into a node.

    Attributes:
        kind: ``"skip"`` (stride 1 only), ``"max_pool"`` or ``"avg_pool"`` (3 x 3, padding does not
            count), or ``"conv"``.
        edge: Which input it reads, and so its stride.
        stages: One or two stages of a ``"conv"``; the stride is in the first.
        norm: Batch norm behind a pool, or None.
    """

    kind: Literal["skip", "max_pool", "avg_pool", "conv"]
    edge: int
    stages: tuple[Stage, ...] = ()
    norm: Norm | None = None

    def norms(self) -> tuple[Norm, ...]:
        """Return the batch norms in the order in which they are run."""
        if self.kind == "conv":
            return tuple(stage.norm for stage in self.stages)
        return () if self.norm is None else (self.norm,)


def map_tensors(
    candidates: Sequence[Candidate], function: Callable[[Tensor], Tensor]
) -> list[Candidate]:
    """Return the candidates with ``function`` of each of their tensors."""

    def tensor(t: Tensor | None) -> Tensor | None:
        return None if t is None else function(t)

    def norm(n: Norm | None) -> Norm | None:
        return None if n is None else Norm(*map(tensor, n[:4]), n.eps)

    def stage(s: Stage) -> Stage:
        return Stage(*map(tensor, s[:2]), norm(s.norm), s.dilation, *map(tensor, s[4:]))

    return [c._replace(stages=tuple(map(stage, c.stages)), norm=norm(c.norm)) for c in candidates]
