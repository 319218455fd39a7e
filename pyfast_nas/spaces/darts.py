"""The cell space of DARTS for images: two cells of four nodes, eight candidates on every edge."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from pyfast_nas.errors import GenotypeError, SearchSpaceError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.inheritance import inherit
from pyfast_nas.nn.network import CellNetwork
from pyfast_nas.nn.primitives import check_operations
from pyfast_nas.nn.supernet import CellSupernet
from pyfast_nas.spaces.all_edges import count_full_cells, draw_edges, likeliest_edges
from pyfast_nas.spaces.base import Genotype, GenotypeEdge, probabilities
from pyfast_nas.spaces.seeding import seeded
from pyfast_nas.spaces.sizes import check_auxiliary, check_count, check_image, check_stem
from pyfast_nas.spaces.two_inputs import (
    check_tables,
    count_cells,
    draw_pairs,
    edges_of_pairs,
    strongest_pairs,
)
from pyfast_nas.typing import Alphas

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
TABLES = ("normal", "reduce")


@dataclass(frozen=True, kw_only=True)
class DARTS:
    """The DARTS space of convolutional cells.

    Raises:
        SearchSpaceError: If an option cannot be; the message gives the allowed range.

    Example:
        >>> space = DARTS(channels=4, cells=3)
        >>> genotype = space.random_genotype(torch.Generator().manual_seed(0))
        >>> space.build(genotype, channels=4, cells=3)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1.
    """

    name: ClassVar[str] = "darts"

    channels: int = 16
    """Channels of the super-net's first cells; they double at each reduction cell."""
    cells: int = 8
    """Cells of the super-net; those at a third and at two thirds halve the image."""
    num_classes: int = 10
    """Classes to tell apart."""
    in_channels: int = 3
    """Channels of the images."""
    nodes: int = 4
    """Intermediate nodes of a cell."""
    multiplier: int | None = None
    """How many of the last nodes a cell concatenates; all of them if not given."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or height and width."""
    stem: str = "cifar"
    """"cifar" (one 3x3 convolution) or "imagenet" (three of stride 2)."""
    operations: tuple[str, ...] = DARTS_OPERATIONS
    """Candidates of every edge, in index order."""
    track_running_stats: bool = False
    """Keep running statistics in the super-net's batch norms, as the published code does."""
    edges: str = "two"
    """Edges of an architecture: "two" of each node, none of them ``none``, or "all", as in SNAS."""

    def __post_init__(self) -> None:
        if self.edges not in ("two", "all"):
            raise SearchSpaceError(f"DARTS: edges must be 'two' or 'all', got {self.edges!r:.200}")
        for option in ("channels", "cells", "num_classes", "in_channels", "nodes"):
            check_count("DARTS", option, getattr(self, option))
        if self.multiplier is not None:
            check_count("DARTS", "multiplier", self.multiplier, self.nodes)
        check_stem("DARTS", self.stem, self.channels)
        image_size = check_image("DARTS", self.image_size, self.stem)
        operations = check_operations("DARTS: operations", self.operations)
        # Lists, as they come from JSON, become tuples: the space is hashable.
        object.__setattr__(self, "image_size", image_size)
        object.__setattr__(self, "operations", operations)

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the rows of both tables."""
        rows = (self.operations,) * len(edge_list(self.nodes))
        return dict.fromkeys(TABLES, rows)

    def supernet(self, generator: torch.Generator | None = None) -> CellSupernet:
        """Return a fresh super-net.

        Args:
            generator: Source of all initial values; None takes torch's global one.
        """
        with seeded(generator):
            return CellSupernet(
                self.candidates,
                channels=self.channels,
                cells=self.cells,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                multiplier=self.multiplier,
                stem=self.stem,
                track_running_stats=self.track_running_stats,
            )

    def build(
        self,
        genotype: Genotype,
        *,
        channels: int = 36,
        cells: int = 20,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> CellNetwork:
        """Return the plain network of a genotype, freshly initialised.

        Args:
            genotype: One of this space.
            channels: Channels of the first cells.
            cells: Number of cells.
            auxiliary: Whether to add the second classifier that helps in training.
            drop_path: Initial rate of dropped paths; later set by the attribute ``drop_path``.
            generator: Source of all initial values; None takes torch's global one.

        Raises:
            GenotypeError: If the genotype is not one of this space.
            SearchSpaceError: If a size is out of range.
        """
        self.check(genotype)
        check_count("DARTS.build", "channels", channels)
        check_count("DARTS.build", "cells", cells)
        check_stem("DARTS.build", self.stem, channels)
        if auxiliary:
            check_auxiliary("DARTS.build", self.image_size, self.stem, cells)
        if not 0 <= drop_path < 1:
            raise SearchSpaceError(
                f"DARTS.build: drop_path must be from 0 to below 1, got {drop_path!r:.200}"
            )
        with seeded(generator):
            return CellNetwork(
                *_tables(genotype),
                channels=channels,
                cells=cells,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                stem=self.stem,
                auxiliary=auxiliary,
                drop_path=drop_path,
            )

    def inherit(self, genotype: Genotype, supernet: CellSupernet) -> CellNetwork:
        """Return the genotype's network in the super-net's sizes, with copies of its weights.

        Its output equals the super-net's under one-hot gates, with ``none`` on the edges that
        are not kept: batch norms are those of the search, and pools keep theirs.

        Args:
            genotype: One of this space.
            supernet: A super-net of this space.

        Raises:
            GenotypeError: If the genotype is not one of this space.

        Example:
            >>> space = DARTS(channels=2, cells=2)
            >>> net = space.inherit(space.random_genotype(), space.supernet())
            >>> net(torch.ones(2, 3, 8, 8)).shape
            torch.Size([2, 10])
        """
        self.check(genotype)
        network = CellNetwork(*_tables(genotype), **supernet.sizes, searching=True)
        inherit(network, supernet)
        return network

    def genotype_of(self, network: CellNetwork) -> Genotype:
        """Return the genotype that a network was built from.

        Example:
            >>> DARTS().genotype_of(DARTS().build(DARTS_V2, channels=2, cells=2)) == DARTS_V2
            True
        """
        cells = {t: tuple(GenotypeEdge(*edge) for edge in network.edges[t]) for t in TABLES}
        genotype = Genotype(self.name, cells, network.outputs)
        self.check(genotype)
        return genotype

    def derive(self, alphas: Alphas) -> Genotype:
        """Keep the two strongest edges of every node, and on each the strongest operation.

        The strength of an edge is its largest softmax weight but that of ``none``; ties go to
        the lower index; the two edges of a node are listed by decreasing strength. With
        ``edges="all"`` every edge keeps its likeliest operation, be it ``none``.

        Args:
            alphas: Logits of the tables ``"normal"`` and ``"reduce"``.

        Shape:
            each table ``[rows, num_ops]``.

        Raises:
            DivergenceError: If a logit is NaN or infinite.

        Example:
            >>> space = DARTS(nodes=1)
            >>> genotype = space.derive({t: torch.zeros(2, 8) for t in ("normal", "reduce")})
            >>> [(edge.op, edge.source) for edge in genotype.cells["normal"]]
            [('max_pool_3x3', 0), ('max_pool_3x3', 1)]

        References:
            Liu, Simonyan & Yang, ICLR 2019, section 2.4.
        """
        rows = probabilities(alphas, self.candidates)
        if self.edges == "all":
            return self._with_edges(
                {t: likeliest_edges(rows[t], self.nodes, self.operations) for t in TABLES}
            )
        return self.from_pairs(
            **{table: strongest_pairs(rows[table], self.nodes, self.operations) for table in TABLES}
        )

    def from_pairs(
        self, *, normal: Sequence[tuple[str, int]], reduce: Sequence[tuple[str, int]]
    ) -> Genotype:
        """Return the genotype given as the papers print it: (operation, source), two per node.

        Args:
            normal: Pairs of the normal cell, node after node.
            reduce: Pairs of the reduction cell.

        Raises:
            GenotypeError: If they are not one of this space.

        Example:
            >>> pairs = [("skip_connect", 0), ("sep_conv_3x3", 1)]
            >>> DARTS(nodes=1).from_pairs(normal=pairs, reduce=pairs).outputs["normal"]
            (2,)
        """
        return self._with_edges(
            {"normal": edges_of_pairs(normal), "reduce": edges_of_pairs(reduce)}
        )

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        """Draw uniformly: two different sources per node, any operation but ``none`` on each.

        With ``edges="all"`` any operation on every edge.

        Args:
            generator: Source of randomness; None takes torch's global one.
        """
        if self.edges == "all":
            return self._with_edges(
                {t: draw_edges(self.nodes, self.operations, generator) for t in TABLES}
            )
        return self.from_pairs(
            **{table: draw_pairs(self.nodes, self.operations, generator) for table in TABLES}
        )

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError, naming the place, if the genotype is not one of this space."""
        if genotype.space != self.name:
            raise GenotypeError(
                f"DARTS: space must be {self.name!r}, got {genotype.space!r}; "
                f"the genotype is of another space"
            )
        names = dict.fromkeys(TABLES, self.operations)
        all_edges = self.edges == "all"
        check_tables(genotype, "DARTS", names, self.nodes, self._outputs, all_edges=all_edges)

    def size(self) -> int:
        """Return the number of discrete architectures: all pairs of a normal and a reduction cell.

        Example:
            >>> DARTS().size() == 1_037_664_180**2
            True
        """
        count = count_full_cells if self.edges == "all" else count_cells
        return count(self.nodes, self.operations) ** len(TABLES)

    def with_data(
        self, in_channels: int, num_classes: int, image_size: int | tuple[int, int]
    ) -> Self:
        """Return a copy of the space fitted to a data set.

        Args:
            in_channels: Channels of the images.
            num_classes: Number of classes.
            image_size: Side of the images in pixels, or height and width.

        Raises:
            SearchSpaceError: If the images cannot be halved as often as the network does.
        """
        return dataclasses.replace(
            self, in_channels=in_channels, num_classes=num_classes, image_size=image_size
        )

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON values, the name among them."""
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }
        return {"name": self.name, **fields}

    def _with_edges(self, cells: Mapping[str, Sequence[GenotypeEdge]]) -> Genotype:
        genotype = Genotype(self.name, cells, dict.fromkeys(TABLES, self._outputs))
        self.check(genotype)
        return genotype

    @property
    def _outputs(self) -> tuple[int, ...]:
        kept = self.multiplier or self.nodes
        return tuple(range(self.nodes + 2 - kept, self.nodes + 2))


def _tables(genotype: Genotype) -> tuple[dict[str, list[tuple[int, int, str]]], dict]:
    edges = {t: [(e.source, e.target, e.op) for e in cell] for t, cell in genotype.cells.items()}
    return edges, dict(genotype.outputs)


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
