"""Nodes for the tests of fused_node: candidates of every kind, and their derivatives."""

import dataclasses

import torch
from torch import Tensor

from pyfast_nas.ops import Candidate, Norm, Stage
from pyfast_nas.ops.node_plan import params_of

SEP3, SEP5, DIL3, DIL5 = ((3, 1), (3, 1)), ((5, 1), (5, 1)), ((3, 2),), ((5, 2),)
# Window 0 has no depthwise convolution; 1, 7 and dilation 3 take the way of any window.
ODD = (((0, 1),), ((7, 1),), ((1, 1), (3, 3)))
REDUCE = ((-1, 1),)  # a factorised reduction
# Full convolutions are written with the negative of their size.
FULL = (((-3, 1),), ((-5, 2), (-3, 1)), ((3, 1), (-3, 2)), ((-9, 1),))


@dataclasses.dataclass(frozen=True)
class NodeCase:
    """Inputs of ``shape`` through the candidates of DARTS, or other windows."""

    shape: tuple[int, int, int, int]
    strides: tuple[int, ...] = (1,)
    norm: str = ""  # letters: a affine, g given statistics
    windows: tuple = (SEP3, SEP5, DIL3, DIL5)
    pools: bool = True
    out_channels: int | None = None
    mean: float = 0.0

    def __str__(self) -> str:
        size, strides = "x".join(map(str, self.shape)), "".join(map(str, self.strides))
        words = [size, f"stride{strides}", self.norm or "plain"]
        if self.windows != (SEP3, SEP5, DIL3, DIL5):
            words.append("windows" + "-".join(str(stage[0][0]) for stage in self.windows))
        if self.out_channels:
            words.append(f"to{self.out_channels}")
        return "_".join(words)

    def make(self, dtype=torch.float32):
        """Return (xs, weights, candidates, gradient of the sum)."""
        self_generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=self_generator, dtype=torch.float64)

        batch, channels, height, width = self.shape
        out = self.out_channels or channels

        def norm():
            gamma, beta = (draw(out).abs() + 0.5, draw(out)) if "a" in self.norm else (None, None)
            mean, var = (draw(out), draw(out).abs() + 0.5) if "g" in self.norm else (None, None)
            return Norm(gamma, beta, mean, var, 1e-5)

        def conv(edge, windows):
            stages, width_in = [], channels
            for size, dilation in windows:
                taps = 0.3 * draw(width_in, 1, size, size) if size > 0 else None
                full = -size if size < -1 else 1
                matrix = 0.3 * draw(out, width_in, full, full) / full
                if size == -1:
                    matrix, shifted = matrix[: (out + 1) // 2], matrix[(out + 1) // 2 :]
                    stages.append(Stage(None, matrix, norm(), shifted=shifted))
                else:
                    stages.append(Stage(taps, matrix, norm(), dilation))
                width_in = out
            return Candidate("conv", edge, tuple(stages))

        candidates = []
        for edge, stride in enumerate(self.strides):
            if stride == 1 and self.pools:
                candidates.append(Candidate("skip", edge))
            if self.pools:
                candidates.append(Candidate("max_pool", edge, norm=norm()))
                candidates.append(Candidate("avg_pool", edge, norm=norm() if edge == 0 else None))
            candidates += [conv(edge, windows) for windows in self.windows]
        xs = [draw(*self.shape) + self.mean for _ in self.strides]
        weights = draw(len(candidates)).softmax(0)
        sizes = [-(-side // self.strides[0]) for side in (height, width)]
        gradient = draw(batch, out, *sizes)
        tensors = [t.to(dtype) for t in (weights, gradient)]
        return [x.to(dtype) for x in xs], tensors[0], cast(candidates, dtype), tensors[1]


def cast(candidates, dtype: torch.dtype) -> list[Candidate]:
    """Return the candidates in another dtype."""

    def tensor(t):
        return None if t is None else t.to(dtype)

    def norm(n):
        return None if n is None else Norm(*map(tensor, n[:4]), n.eps)

    def stage(s):
        return Stage(*map(tensor, s[:2]), norm(s.norm), s.dilation, tensor(s.shifted))

    return [
        Candidate(c.kind, c.edge, tuple(map(stage, c.stages)), norm(c.norm)) for c in candidates
    ]


def with_gradients(function, xs, weights, candidates, gradient, strides) -> list[Tensor]:
    """Return y, the statistics, and the gradients of weights, inputs and parameters."""
    params = list(params_of(candidates))
    leaves = [t.detach().requires_grad_() for t in (weights, *xs, *params)]
    weights, xs, params = leaves[0], leaves[1 : 1 + len(xs)], leaves[1 + len(xs) :]
    y, statistics = function(xs, weights, with_params(candidates, params), strides)
    found = torch.autograd.grad(y, leaves, gradient, allow_unused=True, materialize_grads=True)
    return [y.detach(), statistics, *found]


def with_params(candidates, params) -> list[Candidate]:
    """Return the candidates with other parameters, in the order of ``params_of``."""
    left = iter(params)

    def norm(n):
        if n is None or n.gamma is None:
            return n
        return n._replace(gamma=next(left), beta=next(left))

    def stage(s):
        taps = None if s.taps is None else next(left)
        matrix = next(left)
        shifted = None if s.shifted is None else next(left)
        return Stage(taps, matrix, norm(s.norm), s.dilation, shifted)

    return [c._replace(stages=tuple(map(stage, c.stages)), norm=norm(c.norm)) for c in candidates]
