"""The spaces S1 to S4, on which DARTS is known to fail: the network of DARTS, few candidates.

Candidates are those of the paper's figure 1 and section 3 as its authors' code lists them. What a
genotype keeps of an edge is looked up among the candidates of that edge; the authors' parser looks
for ``none`` among those of the edge whose row is the source, which is the same in these four spaces
only because S1 has no ``none``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyfast_nas.spaces.cell_space import TABLES, CellSpace

__all__ = ["S1", "S2", "S3", "S4"]

_EDGES = 14  # of four nodes
_SKIP, _MAX, _MEAN = "skip_connect", "max_pool_3x3", "avg_pool_3x3"
_SEP, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"


class _FixedRows(CellSpace):
    """Four nodes, and candidates that no option changes."""

    nodes: ClassVar[int] = 4
    rows: ClassVar[Mapping[str, tuple[tuple[str, ...], ...]]]

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the rows of both tables."""
        return dict(self.rows)


@dataclass(frozen=True, kw_only=True)
class S1(_FixedRows):
    """Two candidates on every edge, other ones on each: the two that DARTS rated highest there.

    Example:
        >>> space = S1(channels=4, cells=3)
        >>> space.candidates["normal"][0], space.candidates["reduce"][0]
        (('skip_connect', 'dil_conv_3x3'), ('max_pool_3x3', 'avg_pool_3x3'))

    References:
        Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020,
        section 3 and appendix B.
    """

    name: ClassVar[str] = "s1"
    rows: ClassVar = {
        "normal": (
            (_SKIP, _DIL3),
            (_SKIP, _DIL5),
            (_SKIP, _DIL5),
            (_SKIP, _SEP),
            (_SKIP, _DIL3),
            (_MAX, _SKIP),
            (_SKIP, _SEP),
            (_SKIP, _SEP),
            (_SKIP, _DIL3),
            (_SKIP, _SEP),
            (_MAX, _SKIP),
            (_SKIP, _DIL3),
            (_DIL3, _DIL5),
            (_DIL3, _DIL5),
        ),
        "reduce": (
            (_MAX, _MEAN),
            (_MAX, _DIL3),
            (_MAX, _MEAN),
            (_MAX, _MEAN),
            (_SKIP, _DIL5),
            (_MAX, _MEAN),
            (_MAX, _SEP),
            (_SKIP, _DIL3),
            (_SKIP, _DIL5),
            (_MAX, _MEAN),
            (_MAX, _MEAN),
            (_SKIP, _DIL5),
            (_SKIP, _DIL5),
            (_SKIP, _DIL5),
        ),
    }


@dataclass(frozen=True, kw_only=True)
class S2(_FixedRows):
    """A skip connection and a separable convolution on every edge.

    Example:
        >>> set(S2().candidates["reduce"])
        {('skip_connect', 'sep_conv_3x3')}

    References:
        Zela et al., ICLR 2020, section 3.
    """

    name: ClassVar[str] = "s2"
    rows: ClassVar = dict.fromkeys(TABLES, ((_SKIP, _SEP),) * _EDGES)


@dataclass(frozen=True, kw_only=True)
class S3(_FixedRows):
    """The candidates of `S2`, and ``none``.

    Example:
        >>> S3().size() == S2().size()
        True

    References:
        Zela et al., ICLR 2020, section 3.
    """

    name: ClassVar[str] = "s3"
    rows: ClassVar = dict.fromkeys(TABLES, (("none", _SKIP, _SEP),) * _EDGES)


@dataclass(frozen=True, kw_only=True)
class S4(_FixedRows):
    """Noise, which helps nobody, and a separable convolution on every edge.

    Example:
        >>> S4().candidates["normal"][13]
        ('noise', 'sep_conv_3x3')

    References:
        Zela et al., ICLR 2020, section 3.
    """

    name: ClassVar[str] = "s4"
    rows: ClassVar = dict.fromkeys(TABLES, (("noise", _SEP),) * _EDGES)
