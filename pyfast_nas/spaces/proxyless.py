"""The chain space of ProxylessNAS: 21 inverted bottlenecks of MobileNetV2, seven candidates each.

Widths, candidates and norms are those of the authors' search code; the wider chain is that of
their network for GPUs, which UNAS searches too. Ours: the width factor applies to the last
convolution as well, initial values are those of torch, and images smaller than those of ImageNet
are halved less often (`ProxylessNAS.sizes`).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.nn.chain import BOTTLENECKS, ChainSizes, ChainSupernet
from pyfast_nas.nn.chain_network import ChainNetwork
from pyfast_nas.nn.inheritance import inherit
from pyfast_nas.nn.primitives import check_operations
from pyfast_nas.spaces.base import Genotype, GenotypeEdge, probabilities
from pyfast_nas.spaces.chain_options import check_chain, fitted_strides, scaled
from pyfast_nas.spaces.seeding import seeded
from pyfast_nas.typing import Alphas

__all__ = ["PROXYLESS_GPU", "PROXYLESS_OPERATIONS", "UNAS_CHAIN", "ProxylessNAS"]

PROXYLESS_OPERATIONS = (*BOTTLENECKS, "zero")
# Stem, first block, stages, head.
WIDTHS = {
    "mobile": (32, 16, (24, 40, 80, 96, 192, 320), 1280),
    "gpu": (40, 24, (32, 56, 112, 128, 256, 432), 1728),
}
STRIDES = (2, 2, 2, 1, 2, 1)
TABLE = "blocks"


@dataclass(frozen=True, kw_only=True)
class ProxylessNAS:
    """A chain of inverted bottlenecks that differ in kernel size and expansion.

    A block whose input and output have one shape has a shortcut, and ``zero`` among its candidates,
    which leaves the shortcut alone: the depth is searched too.

    Raises:
        SearchSpaceError: If an option cannot be; the message gives the allowed range.

    Example:
        >>> space = ProxylessNAS(width_factor=0.25, blocks=(1, 2, 1, 1, 1, 1))
        >>> genotype = space.random_genotype(torch.Generator().manual_seed(0))
        >>> space.build(genotype)(torch.ones(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        Cai, Zhu & Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and
        Hardware", ICLR 2019, section 4.1. Vahdat et al., "UNAS", CVPR 2020, section 4.3.
    """

    name: ClassVar[str] = "proxylessnas"

    width: Literal["mobile", "gpu"] = "mobile"
    """Widths of the layers: of the published search, or of the network for GPUs."""
    widths: tuple[int, ...] | None = None
    """Widths of the stages, in place of those that `width` names."""
    width_factor: float = 1.0
    """What all widths are multiplied by."""
    divisor: int = 8
    """All widths are rounded to its multiples: 8 in the published search, 1 in UNAS."""
    blocks: tuple[int, ...] = (4, 4, 4, 4, 4, 1)
    """Blocks of each stage; the first one changes the width."""
    strides: tuple[int, ...] | None = None
    """Stride of each stage; those of the paper, fitted to the image, if not given."""
    stem_stride: int | None = None
    """Stride of the first convolution; 2, or 1 where images are too small, if not given."""
    operations: tuple[str, ...] = PROXYLESS_OPERATIONS
    """Candidates of every block, in index order; zero is only for blocks with a shortcut."""
    num_classes: int = 10
    """Classes to tell apart."""
    in_channels: int = 3
    """Channels of the images."""
    image_size: int | tuple[int, int] = 32
    """Side of the images in pixels, or height and width."""
    track_running_stats: bool = False
    """Keep running statistics in the supernet's batch norms, as the published code does."""

    def __post_init__(self) -> None:
        # Lists, as they come from JSON, become tuples: the space is hashable.
        for option in ("widths", "blocks", "strides", "image_size"):
            if isinstance(value := getattr(self, option), list):
                object.__setattr__(self, option, tuple(value))
        check_chain("ProxylessNAS", self, WIDTHS, stages=len(STRIDES))
        operations = check_operations(
            "ProxylessNAS: operations", self.operations, PROXYLESS_OPERATIONS, "zero"
        )
        object.__setattr__(self, "operations", operations)

    @property
    def sizes(self) -> ChainSizes:
        """Widths and strides of the chain.

        Strides that are not given are those of the paper, which halve the image five times; of
        smaller images the first of them are dropped until four pixels are left at the end.

        Example:
            >>> [ProxylessNAS(image_size=s).sizes.stem_stride for s in (224, 32)]
            [2, 1]
            >>> [ProxylessNAS(image_size=s).sizes.strides.count(2) for s in (224, 32, 8)]
            [4, 3, 1]
        """
        stem, first, stages, head = WIDTHS[self.width]
        side = min(self.image_size) if isinstance(self.image_size, tuple) else self.image_size
        pattern = STRIDES if self.strides is None else self.strides
        stem_stride, *strides = fitted_strides(
            side,
            (2 if self.stem_stride is None else self.stem_stride, *pattern),
            (self.stem_stride is None, *(self.strides is None for _ in pattern)),
        )

        def wide(width: int) -> int:
            return scaled(width, self.width_factor, self.divisor)

        stages = stages if self.widths is None else self.widths
        return ChainSizes(
            in_channels=self.in_channels,
            stem=wide(stem),
            stem_stride=stem_stride,
            first=wide(first),
            widths=_repeated(map(wide, stages), self.blocks),
            strides=tuple(
                itertools.chain.from_iterable(
                    (stride, *[1] * (count - 1))
                    for stride, count in zip(strides, self.blocks, strict=True)
                )
            ),
            head=wide(head),
            num_classes=self.num_classes,
            track_running_stats=self.track_running_stats,
        )

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the rows of the table ``"blocks"``."""
        without = tuple(name for name in self.operations if name != "zero")
        rows = (self.operations if b.has_shortcut else without for b in self.sizes.blocks)
        return {TABLE: tuple(rows)}

    def supernet(self, generator: torch.Generator | None = None) -> ChainSupernet:
        """Return a fresh supernet.

        Args:
            generator: Source of all initial values; None takes torch's global one.
        """
        with seeded(generator):
            return ChainSupernet(self.candidates, self.sizes)

    def build(
        self, genotype: Genotype, *, generator: torch.Generator | None = None
    ) -> ChainNetwork:
        """Return the plain network of a genotype, freshly initialised, in the sizes of the space.

        Args:
            genotype: One of this space.
            generator: Source of all initial values; None takes torch's global one.

        Raises:
            GenotypeError: If the genotype is not one of this space.
        """
        self.check(genotype)
        sizes = dataclasses.replace(self.sizes, track_running_stats=True)
        with seeded(generator):
            return ChainNetwork(_operations(genotype), sizes)

    def inherit(self, genotype: Genotype, supernet: ChainSupernet) -> ChainNetwork:
        """Return the genotype's network with copies of the weights it has in a supernet.

        Its output equals the supernet's under one-hot gates.

        Args:
            genotype: One of this space.
            supernet: A supernet of this space.

        Raises:
            GenotypeError: If the genotype is not one of this space.

        Example:
            >>> space = ProxylessNAS(width_factor=0.25, blocks=(1,) * 6)
            >>> net = space.inherit(space.random_genotype(), space.supernet())
            >>> net(torch.ones(2, 3, 8, 8)).shape
            torch.Size([2, 10])
        """
        self.check(genotype)
        network = ChainNetwork(_operations(genotype), supernet.sizes)
        inherit(network, supernet)
        return network

    def genotype_of(self, network: ChainNetwork) -> Genotype:
        """Return the genotype that a network was built from.

        Example:
            >>> space = ProxylessNAS(width="gpu")
            >>> space.genotype_of(space.build(PROXYLESS_GPU)) == PROXYLESS_GPU
            True
        """
        return self.from_operations(network.operations)

    def derive(self, alphas: Alphas) -> Genotype:
        """Keep the likeliest candidate of each block, ``zero`` too; ties go to the lower index.

        Args:
            alphas: Logits of the table ``"blocks"``.

        Shape:
            the table ``[rows, num_ops]``; columns past a row's own candidates do not count.

        Raises:
            DivergenceError: If a logit is NaN or infinite.

        Example:
            >>> space = ProxylessNAS(blocks=(1,) * 6)
            >>> space.derive({"blocks": torch.eye(6)}).cells["blocks"][1].op
            'mbconv_3x3_e6'

        References:
            Cai, Zhu & Han, ICLR 2019, section 3.1.
        """
        rows = probabilities(alphas, self.candidates)[TABLE]
        return self.from_operations(
            names[row.index(max(row))]
            for row, names in zip(rows, self.candidates[TABLE], strict=True)
        )

    def from_operations(self, operations: Iterable[str]) -> Genotype:
        """Return the genotype of a choice for every block, in order.

        Raises:
            GenotypeError: If it is not one of this space.

        Example:
            >>> space = ProxylessNAS(blocks=(1,) * 6)
            >>> space.from_operations(["mbconv_3x3_e3"] * 6).cells["blocks"][5]
            GenotypeEdge(source=5, target=6, op='mbconv_3x3_e3')
        """
        edges = tuple(GenotypeEdge(row, row + 1, op) for row, op in enumerate(operations))
        genotype = Genotype(self.name, {TABLE: edges}, {TABLE: (len(edges),)})
        self.check(genotype)
        return genotype

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        """Draw uniformly: any candidate of every block.

        Args:
            generator: Source of randomness; None takes torch's global one.
        """
        return self.from_operations(
            names[int(torch.randint(len(names), (), generator=generator))]
            for names in self.candidates[TABLE]
        )

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError, naming the place, if the genotype is not one of this space."""
        if genotype.space != self.name or set(genotype.cells) != {TABLE}:
            raise GenotypeError(
                f"ProxylessNAS: space must be {self.name!r} with cells [{TABLE!r}], got "
                f"{genotype.space!r} with {sorted(genotype.cells)!r:.200}"
            )
        edges, rows = genotype.cells[TABLE], self.candidates[TABLE]
        got = [(edge.source, edge.target) for edge in edges]
        if got != [(row, row + 1) for row in range(len(rows))]:
            raise GenotypeError(
                f"ProxylessNAS: cells.{TABLE} must be a chain of {len(rows)} edges from state 0 "
                f"on, got {got!r:.200}; blocks={list(self.blocks)} says how many there are"
            )
        for index, (edge, names) in enumerate(zip(edges, rows, strict=True)):
            if edge.op not in names:
                raise GenotypeError(
                    f"ProxylessNAS: cells.{TABLE}[{index}].op must be one of {', '.join(names)}, "
                    f"got {edge.op!r}"
                )
        if genotype.outputs[TABLE] != (len(rows),):
            raise GenotypeError(
                f"ProxylessNAS: outputs.{TABLE} must be [{len(rows)}], "
                f"got {list(genotype.outputs[TABLE])!r:.200}"
            )

    def size(self) -> int:
        """Return the number of discrete architectures.

        Example:
            >>> ProxylessNAS().size() == 7**15 * 6**6
            True
        """
        return math.prod(map(len, self.candidates[TABLE]))

    def with_data(
        self, in_channels: int, num_classes: int, image_size: int | tuple[int, int]
    ) -> Self:
        """Return a copy of the space fitted to a data set.

        Args:
            in_channels: Channels of the images.
            num_classes: Number of classes.
            image_size: Side of the images in pixels, or height and width.
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


def _repeated(values: Iterable[int], counts: Sequence[int]) -> tuple[int, ...]:
    pairs = zip(values, counts, strict=True)
    return tuple(itertools.chain.from_iterable([value] * count for value, count in pairs))


def _operations(genotype: Genotype) -> tuple[str, ...]:
    return tuple(edge.op for edge in genotype.cells[TABLE])


def _published(*stages: str) -> Genotype:
    """Return a genotype of the full chain; a block is its kernel and expansion, or Z for zero."""
    blocks = " ".join(stages).split()
    names = ("zero" if b == "Z" else f"mbconv_{b[0]}x{b[0]}_e{b[1]}" for b in blocks)
    return ProxylessNAS(width="gpu").from_operations(names)


# The network of ProxylessNAS for GPUs, and that of UNAS: both of the chain of width "gpu".
PROXYLESS_GPU = _published("53 Z Z Z", "73 Z Z 33", "76 Z Z 53", "56 Z 33 53", "76 76 76 56", "76")
UNAS_CHAIN = _published("53 33 Z Z", "73 Z Z Z", "73 33 33 33", "53 33 33 33", "76 73 73 73", "76")
