"""The cell space of NAS-Bench-201: one cell of six edges, five candidates on each, 15,625 cells."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.inheritance import inherit
from pyfast_nas.nn.staged import STAGE_PRIMITIVES, StagedSupernet
from pyfast_nas.nn.staged_network import StagedNetwork
from pyfast_nas.spaces.base import Genotype, GenotypeEdge, probabilities
from pyfast_nas.spaces.seeding import seeded
from pyfast_nas.spaces.sizes import check_count, check_image
from pyfast_nas.typing import Alphas

__all__ = ["NAS_BENCH_201_OPERATIONS", "NASBench201"]

NAS_BENCH_201_OPERATIONS = tuple(STAGE_PRIMITIVES)
NODES = 3  # the input not among them
EDGES = edge_list(NODES, inputs=1)
_FORM = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
_PATTERN = re.compile(re.escape(_FORM).replace(r"\{\}", "([a-z0-9_]{1,64})"))


@dataclass(frozen=True, kw_only=True)
class NASBench201:
    """The NAS-Bench-201 space: three stages of one cell, its accuracies published for every cell.

    Raises:
        SearchSpaceError: If an option cannot be; the message gives the allowed range.

    Example:
        >>> space = NASBench201(channels=4, cells=1)
        >>> genotype = space.random_genotype(torch.Generator().manual_seed(0))
        >>> space.build(genotype, channels=4, cells=1)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 10])

    References:
        Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
        Search", ICLR 2020, section 2.
    """

    name: ClassVar[str] = "nas-bench-201"

    channels: int = 16
    """Channels of the first stage; they double twice."""
    cells: int = 5
    """Cells of each of the three stages."""
    num_classes: int = 10
    """Classes to tell apart."""
    in_channels: int = 3
    """Channels of the images."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or height and width."""
    track_running_stats: bool = False
    """Keep running statistics in the supernet's batch norms, as the published code can."""

    def __post_init__(self) -> None:
        for option in ("channels", "cells", "num_classes", "in_channels"):
            check_count("NASBench201", option, getattr(self, option))
        # A list, as it comes from JSON, becomes a tuple: the space is hashable.
        image_size = check_image("NASBench201", self.image_size, "cifar")
        object.__setattr__(self, "image_size", image_size)

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the six rows of the table ``"cell"``."""
        return {"cell": (NAS_BENCH_201_OPERATIONS,) * len(EDGES)}

    def supernet(self, generator: torch.Generator | None = None) -> StagedSupernet:
        """Return a fresh supernet.

        Args:
            generator: Source of all initial values; None takes torch's global one.
        """
        with seeded(generator):
            return StagedSupernet(
                self.candidates,
                channels=self.channels,
                cells=self.cells,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                track_running_stats=self.track_running_stats,
            )

    def build(
        self,
        genotype: Genotype,
        *,
        channels: int = 16,
        cells: int = 5,
        generator: torch.Generator | None = None,
    ) -> StagedNetwork:
        """Return the plain network of a genotype, freshly initialised.

        Args:
            genotype: One of this space.
            channels: Channels of the first stage.
            cells: Cells of a stage.
            generator: Source of all initial values; None takes torch's global one.

        Raises:
            GenotypeError: If the genotype is not one of this space.
            SearchSpaceError: If a size is out of range.
        """
        self.check(genotype)
        check_count("NASBench201.build", "channels", channels)
        check_count("NASBench201.build", "cells", cells)
        with seeded(generator):
            return StagedNetwork(
                *_cell(genotype),
                channels=channels,
                cells=cells,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
            )

    def inherit(self, genotype: Genotype, supernet: StagedSupernet) -> StagedNetwork:
        """Return the genotype's network in the supernet's sizes, with copies of its weights.

        Its output equals the supernet's under one-hot gates: batch norms and biases are those of
        the search.

        Args:
            genotype: One of this space.
            supernet: A supernet of this space.

        Raises:
            GenotypeError: If the genotype is not one of this space.

        Example:
            >>> space = NASBench201(channels=2, cells=1)
            >>> net = space.inherit(space.random_genotype(), space.supernet())
            >>> net(torch.ones(2, 3, 8, 8)).shape
            torch.Size([2, 10])
        """
        self.check(genotype)
        network = StagedNetwork(*_cell(genotype), **supernet.sizes, searching=True)
        inherit(network, supernet)
        return network

    def genotype_of(self, network: StagedNetwork) -> Genotype:
        """Return the genotype that a network was built from.

        Example:
            >>> space = NASBench201()
            >>> genotype = space.random_genotype()
            >>> space.genotype_of(space.build(genotype, channels=2, cells=1)) == genotype
            True
        """
        edges = tuple(GenotypeEdge(*edge) for edge in network.edges)
        genotype = Genotype(self.name, {"cell": edges}, {"cell": network.outputs})
        self.check(genotype)
        return genotype

    def derive(self, alphas: Alphas) -> Genotype:
        """Keep the likeliest candidate of each edge, ``none`` too; ties go to the lower index.

        Args:
            alphas: Logits of the table ``"cell"``.

        Shape:
            the table ``[6, 5]``.

        Raises:
            DivergenceError: If a logit is NaN or infinite.

        Example:
            >>> space = NASBench201()
            >>> space.to_string(space.derive({"cell": torch.eye(6, 5)}))
            '|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|'

        References:
            Dong & Yang, ICLR 2020, section 5.
        """
        rows = probabilities(alphas, self.candidates)["cell"]
        return _genotype(NAS_BENCH_201_OPERATIONS[row.index(max(row))] for row in rows)

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        """Draw one of all cells uniformly.

        Args:
            generator: Source of randomness; None takes torch's global one.
        """
        count = len(NAS_BENCH_201_OPERATIONS)
        drawn = torch.randint(count, (len(EDGES),), generator=generator).tolist()
        return _genotype(NAS_BENCH_201_OPERATIONS[index] for index in drawn)

    def enumerate(self) -> Iterator[Genotype]:
        """Yield all 15,625 cells."""
        return map(_genotype, itertools.product(NAS_BENCH_201_OPERATIONS, repeat=len(EDGES)))

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError, naming the place, if the genotype is not one of this space."""
        if genotype.space != self.name or set(genotype.cells) != {"cell"}:
            raise GenotypeError(
                f"NASBench201: space must be {self.name!r} with cells ['cell'], got "
                f"{genotype.space!r} with {sorted(genotype.cells)!r:.200}"
            )
        for index, edge in enumerate(genotype.cells["cell"]):
            if edge.op not in NAS_BENCH_201_OPERATIONS:
                raise GenotypeError(
                    f"NASBench201: cells.cell[{index}].op must be one of "
                    f"{', '.join(NAS_BENCH_201_OPERATIONS)}, got {edge.op!r}"
                )
        got = tuple((edge.source, edge.target) for edge in genotype.cells["cell"])
        if got != EDGES:
            raise GenotypeError(
                f"NASBench201: cells.cell must be the edges {list(EDGES)}, got {list(got)!r:.200}"
            )
        if genotype.outputs["cell"] != (NODES,):
            raise GenotypeError(
                f"NASBench201: outputs.cell must be [{NODES}], "
                f"got {list(genotype.outputs['cell'])!r:.200}"
            )

    def size(self) -> int:
        """Return the number of cells, as they are written: some compute the same.

        Example:
            >>> NASBench201().size()
            15625
        """
        return len(NAS_BENCH_201_OPERATIONS) ** len(EDGES)

    def with_data(
        self, in_channels: int, num_classes: int, image_size: int | tuple[int, int]
    ) -> Self:
        """Return a copy of the space fitted to a data set.

        Args:
            in_channels: Channels of the images.
            num_classes: Number of classes.
            image_size: Side of the images in pixels, or height and width.

        Raises:
            SearchSpaceError: If the images cannot be halved twice.
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

    def to_string(self, genotype: Genotype) -> str:
        """Return a genotype as the benchmark writes it: operation and source, node after node.

        Raises:
            GenotypeError: If the genotype is not one of this space.

        Example:
            >>> text = "|none~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
            >>> NASBench201().to_string(NASBench201().from_string(text)) == text
            True
        """
        self.check(genotype)
        return _FORM.format(*(edge.op for edge in genotype.cells["cell"]))

    def strings(self) -> Iterator[str]:
        """Yield all 15,625 cells as the benchmark writes them."""
        for operations in itertools.product(NAS_BENCH_201_OPERATIONS, repeat=len(EDGES)):
            yield _FORM.format(*operations)

    def from_string(self, text: str) -> Genotype:
        """Read a genotype as the benchmark writes it.

        Args:
            text: As `to_string` returns it.

        Raises:
            GenotypeError: If the text is not a cell of this space.

        Example:
            >>> NASBench201().from_string("|skip_connect~0|")
            Traceback (most recent call last):
            ...
            pyfast_nas.errors.GenotypeError: NASBench201: a cell must be written |op~0|+|op~0|op~1|\
+|op~0|op~1|op~2|, got '|skip_connect~0|'
        """
        found = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise GenotypeError(
                f"NASBench201: a cell must be written {_FORM.format(*['op'] * len(EDGES))}, "
                f"got {text!r:.200}"
            )
        genotype = _genotype(found.groups())
        self.check(genotype)
        return genotype


def _genotype(operations) -> Genotype:
    pairs = zip(EDGES, operations, strict=True)
    edges = tuple(GenotypeEdge(source, target, op) for (source, target), op in pairs)
    return Genotype(NASBench201.name, {"cell": edges}, {"cell": (NODES,)})


def _cell(genotype: Genotype) -> tuple[tuple[tuple[int, int, str], ...], tuple[int, ...]]:
    edges = tuple((e.source, e.target, e.op) for e in genotype.cells["cell"])
    return edges, genotype.outputs["cell"]
