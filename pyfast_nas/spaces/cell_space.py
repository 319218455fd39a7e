"""What spaces of two cells share: a normal and a reduction cell of nodes that sum their edges.

A space says which candidates every edge has; edges may differ in them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from pyfast_nas.errors import GenotypeError, SearchSpaceError
from pyfast_nas.nn.inheritance import inherit
from pyfast_nas.nn.network import CellNetwork
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

__all__ = ["TABLES", "CellSpace"]

TABLES = ("normal", "reduce")


@dataclass(frozen=True, kw_only=True)
class CellSpace:
    """Base of the spaces of convolutional cells in the network of DARTS.

    A subclass has a ``name`` and ``nodes``, intermediate nodes of a cell, and says in `candidates`
    what every edge chooses from.

    Raises:
        SearchSpaceError: If an option cannot be; the message gives the allowed range.

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1.
    """

    name: ClassVar[str]

    channels: int = 16
    """Channels of the supernet's first cells; they double at each reduction cell."""
    cells: int = 8
    """Cells of the supernet; those at a third and at two thirds halve the image."""
    num_classes: int = 10
    """Classes to tell apart."""
    in_channels: int = 3
    """Channels of the images."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or height and width."""
    stem: str = "cifar"
    """"cifar" (one 3x3 convolution) or "imagenet" (three of stride 2)."""
    track_running_stats: bool = False
    """Keep running statistics in the supernet's batch norms, as the published code does."""
    edges: str = "two"
    """Edges of an architecture: "two" of each node, none of them ``none``, or "all", as in SNAS."""

    def __post_init__(self) -> None:
        if self.edges not in ("two", "all"):
            raise SearchSpaceError(
                f"{self._class}: edges must be 'two' or 'all', got {self.edges!r:.200}"
            )
        for option in ("channels", "cells", "num_classes", "in_channels"):
            check_count(self._class, option, getattr(self, option))
        check_stem(self._class, self.stem, self.channels)
        image_size = check_image(self._class, self.image_size, self.stem)
        # A list, as it comes from JSON, becomes a tuple: the space is hashable.
        object.__setattr__(self, "image_size", image_size)

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the rows of both tables."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[int, ...]:
        """States that a cell concatenates: by default all nodes."""
        return tuple(range(2, self.nodes + 2))

    def supernet(self, generator: torch.Generator | None = None) -> CellSupernet:
        """Return a fresh supernet.

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
                multiplier=len(self.outputs),
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
        check_count(f"{self._class}.build", "channels", channels)
        check_count(f"{self._class}.build", "cells", cells)
        check_stem(f"{self._class}.build", self.stem, channels)
        if auxiliary:
            check_auxiliary(f"{self._class}.build", self.image_size, self.stem, cells)
        if not 0 <= drop_path < 1:
            raise SearchSpaceError(
                f"{self._class}.build: drop_path must be from 0 to below 1, got {drop_path!r:.200}"
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
        """Return the genotype's network in the supernet's sizes, with copies of its weights.

        Its output equals the supernet's under one-hot gates, with ``none`` on the edges that
        are not kept: batch norms are those of the search, and pools keep theirs.

        Args:
            genotype: One of this space.
            supernet: A supernet of this space.

        Raises:
            GenotypeError: If the genotype is not one of this space.

        Example:
            >>> from pyfast_nas.spaces import DARTS
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
            >>> from pyfast_nas.spaces import DARTS, DARTS_V2
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
            >>> from pyfast_nas.spaces import DARTS
            >>> space = DARTS(nodes=1)
            >>> genotype = space.derive({t: torch.zeros(2, 8) for t in ("normal", "reduce")})
            >>> [(edge.op, edge.source) for edge in genotype.cells["normal"]]
            [('max_pool_3x3', 0), ('max_pool_3x3', 1)]

        References:
            Liu, Simonyan & Yang, ICLR 2019, section 2.4.
        """
        rows, names = probabilities(alphas, self.candidates), self.candidates
        if self.edges == "all":
            return self._with_edges({t: likeliest_edges(rows[t], names[t]) for t in TABLES})
        return self.from_pairs(
            **{table: strongest_pairs(rows[table], names[table]) for table in TABLES}
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
            >>> from pyfast_nas.spaces import DARTS
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
                {t: draw_edges(names, generator) for t, names in self.candidates.items()}
            )
        return self.from_pairs(
            **{table: draw_pairs(self.candidates[table], generator) for table in TABLES}
        )

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError, naming the place, if the genotype is not one of this space."""
        if genotype.space != self.name:
            raise GenotypeError(
                f"{self._class}: space must be {self.name!r}, got {genotype.space!r}; "
                f"the genotype is of another space"
            )
        all_edges = self.edges == "all"
        check_tables(genotype, self._class, self.candidates, self.outputs, all_edges=all_edges)

    def size(self) -> int:
        """Return the number of discrete architectures: all pairs of a normal and a reduction cell.

        Example:
            >>> from pyfast_nas.spaces import DARTS
            >>> DARTS().size() == 1_037_664_180**2
            True
        """
        count = count_full_cells if self.edges == "all" else count_cells
        return math.prod(map(count, self.candidates.values()))

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
        genotype = Genotype(self.name, cells, dict.fromkeys(TABLES, self.outputs))
        self.check(genotype)
        return genotype

    @property
    def _class(self) -> str:
        """Who speaks in messages."""
        return type(self).__name__


def _tables(genotype: Genotype) -> tuple[dict[str, list[tuple[int, int, str]]], dict]:
    edges = {t: [(e.source, e.target, e.op) for e in cell] for t, cell in genotype.cells.items()}
    return edges, dict(genotype.outputs)
