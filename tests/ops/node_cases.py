"""Nodes for the tests of fused_node: candidates of every kind, and their derivatives."""

import dataclasses

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.ops import Candidate, Norm, Stage, reference_edges
from pyfast_nas.ops.candidates import map_tensors
from pyfast_nas.ops.node_plan import params_of
from pyfast_nas.testing import UNIT_ROUNDOFF

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

    def make(self, dtype=torch.float32, wide=None):
        """Return (xs, weights, candidates, gradient of the sum).

        Args:
            dtype: Of the maps.
            wide: Of weights and parameters; that of the maps where it is not given.
        """
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
        wide = wide or dtype
        maps = [t.to(dtype) for t in (*xs, gradient)]
        return maps[:-1], weights.to(wide), cast(candidates, wide), maps[-1]


NORMS = ("", "a", "g", "ag")
SHAPES = [
    (2, 16, 8, 8),
    (3, 4, 7, 5),
    (2, 20, 9, 10),
    (1, 33, 6, 6),
    (4, 1, 3, 3),
    (2, 3, 1, 9),
    (5, 64, 4, 4),
    (2, 16, 32, 32),
]
CASES = [
    *(
        NodeCase(shape, strides, norm)
        for shape in SHAPES
        for strides in ((1,), (2,))
        for norm in NORMS
    ),
    *(NodeCase((2, 5, 6, 7), (stride,), norm, ODD) for stride in (1, 2) for norm in ("", "a")),
    *(NodeCase((2, 8, 6, 6), (1, 1, 1), norm) for norm in ("", "ag")),
    *(NodeCase((2, 24, 5, 5), (s,), "a", (((0, 1),), SEP3), False, 7) for s in (1, 2)),
    *(NodeCase((2, 6, 8, 4), (2,), norm, (REDUCE, SEP3)) for norm in NORMS),
    *(NodeCase((2, c, 8, 8), (2,), "a", (REDUCE,), False, out) for c, out in ((48, 16), (5, 33))),
    NodeCase((3, 64, 8, 8), (2, 2), "", (REDUCE, DIL5), True),
    NodeCase((2, 40, 5, 5), (1,), "", (((0, 1),), DIL5), False, 19),
    *(
        NodeCase(shape, (stride,), norm, FULL)
        for shape in ((2, 5, 6, 7), (3, 16, 8, 8), (2, 20, 9, 18))
        for stride in (1, 2)
        for norm in ("", "ag")
    ),
    *(NodeCase((2, c, 7, 33), (1,), "a", FULL, False, out) for c, out in ((48, 16), (5, 40))),
    NodeCase((2, 64, 8, 8), (1, 1), "", (FULL[0], ((0, 1),))),
]


def cast(candidates, to: torch.dtype | torch.device | str) -> list[Candidate]:
    """Return the candidates in another dtype or on another device."""
    return map_tensors(candidates, lambda t: t.to(to))


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


def truth_of(case) -> list[Tensor]:
    """Return the results of plain PyTorch in float64."""
    return run(case, torch.float64, reference_edges.fused_node)


def run(case, dtype=torch.float32, function=ops.fused_node, device="cpu") -> list[Tensor]:
    """Return the results of ``function``, computed on ``device``."""
    xs, weights, candidates, gradient = case.make(dtype)
    here = [x.to(device) for x in xs], weights.to(device), cast(candidates, device)
    found = with_gradients(function, *here, gradient.to(device), case.strides)
    return [t.cpu() for t in found]


def check_float64(case, device="cpu") -> None:
    """Hold results in float64 to those of plain PyTorch on the CPU."""
    check_close(run(case, torch.float64, device=device), truth_of(case))


def check_float32(case, device="cpu") -> None:
    """Hold the error in float32 to twice that of plain PyTorch on the same device."""
    plain = run(case, function=reference_edges.fused_node, device=device)
    _check(case, run(case, device=device), plain, truth_of(case))


def check_half(case, dtype, device="cpu") -> None:
    """Hold the error of 16-bit maps with float32 parameters to twice that of plain PyTorch.

    That takes the same maps to float32, computes in it and rounds once.
    """
    xs, weights, candidates, gradient = case.make(dtype, torch.float32)
    wide = [x.double() for x in xs], weights.double(), cast(candidates, torch.float64)
    truth = with_gradients(reference_edges.fused_node, *wide, gradient.double(), case.strides)
    here = [x.to(device) for x in xs], weights.to(device), cast(candidates, device)
    got, plain = (
        [t.cpu() for t in with_gradients(function, *here, gradient.to(device), case.strides)]
        for function in (ops.fused_node, reference_edges.fused_node)
    )
    edges = len(xs)
    for place, tensor in enumerate(got):
        is_map = place == 0 or 3 <= place < 3 + edges
        assert tensor.dtype == (dtype if is_map else torch.float64 if place == 1 else torch.float32)
    _check(case, got, plain, truth)


def _check(case, results, plain, truth) -> None:
    gradient = case.make(torch.float64)[3]
    edges = len(case.strides)
    for place, (got, eager, want) in enumerate(zip(results, plain, truth, strict=True)):
        error = (got.double() - want).abs().max()
        scale = want.abs().max()
        if place == 2 or place > 2 + edges:
            # A sum over the whole batch, whose terms may cancel: gradients of weights, parameters.
            scale = scale.maximum(gradient.abs().sum())
        # Roundings of the result, of a window's sum and of the sum over channels, which a full
        # convolution takes over all taps.
        window = max([1, *(size**2 for stages in case.windows for size, _ in stages if size < -1)])
        unit = UNIT_ROUNDOFF[got.dtype] + 2.0**-24 * (25 + case.shape[1] * window)
        assert error <= 2 * (eager.double() - want).abs().max() + unit * scale


# Nodes of which only a part runs.
SELECTED = [
    *(NodeCase((2, 16, 8, 8), (1,), norm) for norm in ("", "a", "g", "ag")),
    *(NodeCase((3, 5, 7, 6), (stride, stride), "a") for stride in (1, 2)),
    NodeCase((2, 8, 6, 6), (1, 1, 1)),
    NodeCase((2, 5, 6, 7), (1,), "a", ODD),
    NodeCase((2, 6, 8, 4), (2,), "ag", (REDUCE, SEP3)),
    NodeCase((2, 20, 9, 10), (1,), "a", FULL),
    NodeCase((2, 40, 5, 5), (1,), "", (((0, 1),), DIL3), False, 19),
]


def flags_of(case, which):
    """Return flags of all candidates: every third, the first edge's, the last, all, or none."""
    candidates = case.make()[2]
    chosen = {
        "some": [place % 3 == 1 for place in range(len(candidates))],
        "first edge": [c.edge == 0 for c in candidates],
        "last": [place == len(candidates) - 1 for place in range(len(candidates))],
        "all": [True] * len(candidates),
        "none": [False] * len(candidates),
    }
    return torch.tensor(chosen[which])


def selecting(case, flags, spoil=False, device="cpu"):
    """Return what `with_gradients` does, with parameters that do not run as NaN if asked for."""
    xs, weights, candidates, gradient = case.make(torch.float64)
    if spoil:
        weights = weights.where(flags, torch.nan)
        for candidate, flag in zip(candidates, flags.tolist(), strict=True):
            for param in () if flag else params_of([candidate]):
                param.fill_(torch.nan)

    def function(*arguments):
        return ops.fused_node(*arguments, flags.to(device))

    here = [x.to(device) for x in xs], weights.to(device), cast(candidates, device)
    found = with_gradients(function, *here, gradient.to(device), case.strides)
    return [t.cpu() for t in found]


def without_the_others(case, flags):
    """Return the same of a node that has only the candidates that run."""
    xs, weights, candidates, gradient = case.make(torch.float64)
    running = [c for c, flag in zip(candidates, flags.tolist(), strict=True) if flag]
    strides = case.strides
    y, statistics, of_weights, *found = with_gradients(
        reference_edges.fused_node, xs, weights[flags], running, gradient, strides
    )
    of_xs, left = found[: len(xs)], iter(found[len(xs) :])
    statistics = iter(statistics)
    rows, of_params = [], []
    for candidate, flag in zip(candidates, flags.tolist(), strict=True):
        for norm in candidate.norms():
            given = None if norm.mean is None else torch.stack([norm.mean, norm.var])
            rows.append(next(statistics) if flag else y.new_zeros(2, y.shape[1]))
            if given is not None:
                rows[-1] = given
        of_params += [next(left) if flag else torch.zeros_like(p) for p in params_of([candidate])]
    stacked = torch.stack(rows) if rows else y.new_zeros(0, 2, y.shape[1])
    spread = torch.zeros_like(weights).masked_scatter(flags, of_weights)
    return [y, stacked, spread, *of_xs, *of_params]


def check_close(found, truth) -> None:
    """Hold results in float64 to others."""
    for got, want in zip(found, truth, strict=True):
        # Gradients through a batch norm of two values vanish but for rounding.
        scale = want.abs().max().clamp_min(1e-3)
        assert (got - want).abs().max() <= 1e-11 * scale
