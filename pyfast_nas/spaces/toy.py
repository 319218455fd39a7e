"""A space of sixteen architectures whose best one is known: what search algorithms are tested on.

Labels are the sign of a mean shift of eight noisy features. Of the four candidates of each of two
parallel rows only the identity carries the label undiluted.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pyfast_nas.errors import GenotypeError, SearchSpaceError
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.supernet import Supernet
from pyfast_nas.spaces.base import Genotype, GenotypeEdge, probabilities
from pyfast_nas.spaces.seeding import seeded
from pyfast_nas.typing import Alphas

__all__ = ["TOY_OPERATIONS", "Toy", "ToyNetwork", "ToySupernet"]

ROWS = 2
FEATURES = 8


class Reversed(nn.Module):
    """The batch in reverse order: right values, wrong labels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the reversed batch."""
        return x.flip(0)


class Noise(nn.Module):
    """``scale * x`` plus fresh standard normal noise from torch's generator."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the noisy input."""
        noise = torch.randn_like(x)
        return noise if self.scale == 0 else self.scale * x + noise


_FACTORIES = {
    "identity": nn.Identity,
    "reversed": Reversed,
    "noise": lambda: Noise(0.0),
    "faint": lambda: Noise(0.3),
}
TOY_OPERATIONS = tuple(_FACTORIES)


class Score(nn.Module):
    """Class logits (0, <o, w>): their cross-entropy is softplus(-y * score) for y = -1, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((FEATURES,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the two class logits ``[N, 2]`` of features ``[N, 8]``."""
        score = x @ self.weight
        return torch.stack([torch.zeros_like(score), score], dim=-1)


class ToySupernet(Supernet):
    """Two parallel rows of four candidates and one linear score.

    Example:
        >>> Toy().supernet()(torch.ones(4, 8)).shape
        torch.Size([4, 2])
    """

    def __init__(self, candidates: Mapping[str, tuple[tuple[str, ...], ...]]) -> None:
        super().__init__(candidates)
        self.edges = nn.ModuleList(
            MixedOp({name: _FACTORIES[name]() for name in row}) for row in candidates["cell"]
        )
        self.score = Score()

    def placed_edges(self) -> Iterator[tuple[str, int, MixedOp]]:
        """Yield every mixed operation with the table and the row whose weights it takes."""
        return (("cell", row, edge) for row, edge in enumerate(self.edges))

    def mix(self, x: Tensor, gates: Mapping[str, GateOutput]) -> Tensor:
        """Return the class logits under the given gates."""
        return self.score(mix_edges(list(self.edges), [x] * ROWS, gates["cell"]))


class ToyNetwork(nn.Module):
    """The plain network of one toy architecture."""

    def __init__(self, operations: tuple[str, ...]) -> None:
        super().__init__()
        self.operations = operations
        self.ops = nn.ModuleList(_FACTORIES[name]() for name in operations)
        self.score = Score()

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits ``[N, 2]`` of features ``[N, 8]``."""
        return self.score(torch.stack([op(x) for op in self.ops]).sum(0))


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The toy space.

    Example:
        >>> len(set(Toy().enumerate())), Toy().optimum() in set(Toy().enumerate())
        (16, True)
    """

    name: ClassVar[str] = "toy"

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Candidate names of the two rows of the table ``"cell"``."""
        return {"cell": (TOY_OPERATIONS,) * ROWS}

    def supernet(self, generator: torch.Generator | None = None) -> ToySupernet:
        """Return a fresh supernet.

        Args:
            generator: Source of the initial logits; None takes torch's global one.
        """
        with seeded(generator):
            return ToySupernet(self.candidates)

    def build(self, genotype: Genotype) -> ToyNetwork:
        """Return the plain network of a genotype.

        Raises:
            GenotypeError: If the genotype is not one of this space.
        """
        self.check(genotype)
        return ToyNetwork(tuple(edge.op for edge in genotype.cells["cell"]))

    def genotype_of(self, network: ToyNetwork) -> Genotype:
        """Return the genotype that a network was built from."""
        return self._genotype(network.operations)

    def derive(self, alphas: Alphas) -> Genotype:
        """Keep the likeliest candidate of each row; ties go to the lower index.

        Raises:
            DivergenceError: If a logit is NaN or infinite.

        Example:
            >>> Toy().derive({"cell": torch.zeros(2, 4)}) == Toy().optimum()
            True
        """
        rows = probabilities(alphas, self.candidates)["cell"]
        return self._genotype(TOY_OPERATIONS[row.index(max(row))] for row in rows)

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        """Draw one of the sixteen uniformly."""
        drawn = torch.randint(len(TOY_OPERATIONS), (ROWS,), generator=generator).tolist()
        return self._genotype(TOY_OPERATIONS[index] for index in drawn)

    def enumerate(self) -> Iterator[Genotype]:
        """Yield all sixteen architectures."""
        return map(self._genotype, itertools.product(TOY_OPERATIONS, repeat=ROWS))

    def optimum(self) -> Genotype:
        """Return the best architecture: the identity in both rows."""
        return self._genotype(("identity",) * ROWS)

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError, naming the place, if the genotype is not one of this space."""
        if genotype.space != self.name or set(genotype.cells) != {"cell"}:
            raise GenotypeError(
                f"Toy: space must be {self.name!r} with cells ['cell'], got {genotype.space!r} "
                f"with {sorted(genotype.cells)!r:.200}"
            )
        for index, edge in enumerate(genotype.cells["cell"]):
            if edge.op not in TOY_OPERATIONS:
                raise GenotypeError(
                    f"Toy: cells.cell[{index}].op must be one of {', '.join(TOY_OPERATIONS)}, "
                    f"got {edge.op!r}"
                )
        got = [(edge.source, edge.target) for edge in genotype.cells["cell"]]
        want = [(0, row + 1) for row in range(ROWS)]
        if got != want or genotype.outputs["cell"] != tuple(range(1, ROWS + 1)):
            raise GenotypeError(
                f"Toy: cells.cell must be the edges {want} with outputs [1, 2], got {got!r:.200} "
                f"with {list(genotype.outputs['cell'])!r:.200}"
            )

    def size(self) -> int:
        """Return the number of architectures, sixteen."""
        return len(TOY_OPERATIONS) ** ROWS

    def with_data(
        self, in_channels: int, num_classes: int, image_size: int | tuple[int, int]
    ) -> Self:
        """Return the space itself if the data has two classes; the features are always eight.

        Raises:
            SearchSpaceError: If the data has another number of classes.
        """
        if num_classes != 2:
            raise SearchSpaceError(f"Toy: num_classes must be 2, got {num_classes!r:.200}")
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON values: the name alone."""
        return {"name": self.name}

    def _genotype(self, operations) -> Genotype:
        edges = tuple(GenotypeEdge(0, row + 1, op) for row, op in enumerate(operations))
        return Genotype(self.name, {"cell": edges}, {"cell": tuple(range(1, ROWS + 1))})
