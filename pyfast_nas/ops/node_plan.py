"""A fused node as numbers and a flat list of tensors, which is what an operator can take."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from pyfast_nas.ops.candidates import Candidate, Norm, Stage

__all__ = ["Plan", "biases_of", "params_of"]

_KINDS = ("skip", "max_pool", "avg_pool", "conv")


class Plan(NamedTuple):
    """What the kernel does, in numbers: nine for each candidate, one epsilon for each norm.

    ``edge, kind, stages``, then for each of two stages ``kernel size (0: none), dilation, norm``
    with norm 0 for none, 1 for plain and 2 for affine, plus 4 where the statistics are given, plus
    8 where the stage has a shifted matrix, plus 16 where the window is that of the matrix. Backward
    takes the ``allow_tf32`` of forward, whose maps it computes again. ``biased`` says for each
    stage of the candidates whether it has a bias, which no kernel reads.
    """

    layout: tuple[int, ...]
    eps: tuple[float, ...]
    strides: tuple[int, ...]
    allow_tf32: bool = False
    biased: tuple[bool, ...] = ()

    @classmethod
    def of(
        cls, candidates: Sequence[Candidate], strides: Sequence[int], allow_tf32: bool = False
    ) -> "Plan":
        """Return the numbers of these candidates."""
        layout: list[int] = []
        eps: list[float] = []
        for candidate in candidates:
            layout += (candidate.edge, _KINDS.index(candidate.kind), len(candidate.stages))
            stages = candidate.stages or (Stage(None, None, candidate.norm),)
            for stage in (*stages, Stage(None, None, None))[:2]:
                size, form = _window(stage)
                layout += (size, stage.dilation, _norm_code(stage.norm) + form)
            eps += (norm.eps for norm in candidate.norms())
        biased = [stage.bias is not None for each in candidates for stage in each.stages]
        return cls(tuple(layout), tuple(eps), tuple(strides), allow_tf32, tuple(biased))

    def arguments(self) -> tuple[list[int], list[float], list[int], bool]:
        """Return all of it as the operator takes it."""
        return list(self.layout), list(self.eps), list(self.strides), self.allow_tf32

    def channels(self, channels: int, params: Sequence[Tensor]) -> int:
        """Return the channels that the node gives.

        Args:
            channels: Those of the input that the first candidate reads.
            params: The node's parameters.
        """
        at = 0
        if _KINDS[self.layout[1]] == "conv":
            for stage in range(self.layout[2]):
                size, _, code = self.layout[3 + 3 * stage : 6 + 3 * stage]
                at += size > 0 and not code & 16
                channels = params[at].shape[0]
                if code & 8:
                    at += 1
                    channels += params[at].shape[0]
                at += 3 if code & 2 else 1
        return channels

    def with_given_statistics(self) -> "Plan":
        """Return the plan of the same node where the statistics of every norm are given."""
        layout = [
            number | 4 if at % 9 in (5, 8) and number & 7 else number
            for at, number in enumerate(self.layout)
        ]
        return self._replace(layout=tuple(layout))

    def rebuild(
        self, params: Sequence[Tensor], given: Tensor | None, biases: Sequence[Tensor] = ()
    ) -> list[Candidate]:
        """Return the candidates with ``params`` and ``biases`` for their tensors."""
        left, left_biases, biased = iter(params), iter(biases), iter(self.biased)
        norms = iter(enumerate(self.eps))

        def norm(code: int) -> Norm | None:
            if code & 7 == 0:
                return None
            index, eps = next(norms)
            gamma, beta = (next(left), next(left)) if code & 2 else (None, None)
            mean, var = given[index] if code & 4 else (None, None)
            return Norm(gamma, beta, mean, var, eps)

        def stage(size: int, dilation: int, code: int) -> Stage:
            taps, matrix = next(left) if size and not code & 16 else None, next(left)
            shifted = next(left) if code & 8 else None
            bias = next(left_biases) if next(biased, False) else None
            return Stage(taps, matrix, norm(code), dilation, shifted, bias)

        candidates = []
        for at in range(0, len(self.layout), 9):
            edge, kind, stages, *rest = self.layout[at : at + 9]
            if _KINDS[kind] == "conv":
                parts = tuple(stage(*rest[3 * i : 3 * i + 3]) for i in range(stages))
                candidates.append(Candidate("conv", edge, parts))
            else:
                candidates.append(Candidate(_KINDS[kind], edge, norm=norm(rest[2])))
        return candidates


def _window(stage: Stage) -> tuple[int, int]:
    """Return the size of a stage's window and what its code says beside the norm."""
    if stage.taps is not None:
        return stage.taps.shape[-1], 0
    if stage.matrix is not None and stage.matrix.shape[-1] > 1:
        return stage.matrix.shape[-1], 16
    return 0, 0 if stage.shifted is None else 8


def _norm_code(norm: Norm | None) -> int:
    if norm is None:
        return 0
    return (1 if norm.gamma is None else 2) + (0 if norm.mean is None else 4)


def params_of(candidates: Sequence[Candidate]) -> Iterator[Tensor]:
    """Yield the parameters in the order in which the kernel takes them."""
    for candidate in candidates:
        for stage in candidate.stages:
            if stage.taps is not None:
                yield stage.taps
            yield stage.matrix
            if stage.shifted is not None:
                yield stage.shifted
            if stage.norm.gamma is not None:
                yield from (stage.norm.gamma, stage.norm.beta)
        if candidate.norm is not None and candidate.norm.gamma is not None:
            yield from (candidate.norm.gamma, candidate.norm.beta)


def biases_of(candidates: Sequence[Candidate]) -> list[Tensor]:
    """Return the biases that stages have, in their order."""
    return [s.bias for each in candidates for s in each.stages if s.bias is not None]
