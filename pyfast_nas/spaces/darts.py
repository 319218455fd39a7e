"""The cell space of DARTS for images: two cells of four nodes, eight candidates on every edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.primitives import check_operations
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.spaces.cell_space import TABLES, CellSpace
from pyfast_nas.spaces.sizes import check_count

__all__ = ["DARTS", "DARTS_OPERATIONS", "DARTS_V1", "DARTS_V2"]

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


@dataclass(frozen=True, kw_only=True)
class DARTS(CellSpace):
    """The DARTS space of convolutional cells.

    Raises:
        SearchSpaceError: If an option cannot be; the message gives the allowed range.

    Example:
        >>> import torch
        >>> space = DARTS(channels=4, cells=3)
        >>> genotype = space.random_genotype(torch.Generator().manual_seed(0))
        >>> space.build(genotype, channels=4, cells=3)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1.
    """

    name: ClassVar[str] = "darts"

    nodes: int = 4
    """Intermediate nodes of a cell."""
    multiplier: int | None = None
    """How many of the last nodes a cell concatenates; all of them if not given."""
    operations: tuple[str, ...] = DARTS_OPERATIONS
    """Candidates of every edge, in index order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("DARTS", "nodes", self.nodes)
        if self.multiplier is not None:
            check_count("DARTS", "multiplier", self.multiplier, self.nodes)
        operations = check_operations("DARTS: operations", self.operations)
        # A list, as it comes from JSON, becomes a tuple: the space is hashable.
        object.__setattr__(self, "operations", operations)

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the rows of both tables."""
        rows = (self.operations,) * len(edge_list(self.nodes))
        return dict.fromkeys(TABLES, rows)

    @property
    def outputs(self) -> tuple[int, ...]:
        """States that a cell concatenates: the last ``multiplier`` nodes."""
        kept = self.multiplier or self.nodes
        return tuple(range(self.nodes + 2 - kept, self.nodes + 2))


def _published() -> tuple[Genotype, Genotype]:
    conv, dil, skip = "sep_conv_3x3", "dil_conv_3x3", "skip_connect"
    top, mean = "max_pool_3x3", "avg_pool_3x3"

    def nodes(*ops_and_sources: str | int) -> list[tuple[str, int]]:
        return list(zip(ops_and_sources[::2], ops_and_sources[1::2], strict=True))

    return (
        DARTS().from_pairs(
            normal=nodes(conv, 1, conv, 0, skip, 0, conv, 1, skip, 0, conv, 1, conv, 0, skip, 2),
            reduce=nodes(top, 0, top, 1, skip, 2, top, 0, top, 0, skip, 2, skip, 2, mean, 0),
        ),
        DARTS().from_pairs(
            normal=nodes(conv, 0, conv, 1, conv, 0, conv, 1, conv, 1, skip, 0, skip, 0, dil, 2),
            reduce=nodes(top, 0, top, 1, skip, 2, top, 1, top, 0, skip, 2, skip, 2, top, 1),
        ),
    )


# The cells published with the paper: first order and second order.
DARTS_V1, DARTS_V2 = _published()
