"""What every search space can do, and the genotype it speaks in."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import nn

from pyfast_nas.errors import DivergenceError
from pyfast_nas.nn.supernet import Supernet
from pyfast_nas.spaces.genotype import Genotype, GenotypeEdge
from pyfast_nas.typing import Alphas

__all__ = ["Genotype", "GenotypeEdge", "SearchSpace", "probabilities"]


class SearchSpace(Protocol):
    """A set of architectures with a supernet that contains them all.

    Attributes:
        name: The word for it on the command line and in genotypes.
        candidates: Table name -> candidate names of every row.
    """

    name: str

    @property
    def candidates(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Table name -> candidate names of every row."""
        ...

    def supernet(self, generator: torch.Generator | None = None) -> Supernet:
        """Return a fresh supernet, initialised from the generator or torch's own."""
        ...

    def build(self, genotype: Genotype, **sizes: Any) -> nn.Module:
        """Return the plain network that a genotype describes, freshly initialised."""
        ...

    def genotype_of(self, network: Any) -> Genotype:
        """Return the genotype that a network of `build` was built from."""
        ...

    def derive(self, alphas: Alphas) -> Genotype:
        """Return the discrete architecture that the logits prefer."""
        ...

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        """Draw an architecture uniformly."""
        ...

    def check(self, genotype: Genotype) -> None:
        """Raise GenotypeError if the genotype is not one of this space."""
        ...

    def size(self) -> int:
        """Return the number of discrete architectures."""
        ...

    def with_data(
        self, in_channels: int, num_classes: int, image_size: int | tuple[int, int]
    ) -> Self:
        """Return a copy fitted to a data set."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        ...


def probabilities(
    alphas: Alphas, candidates: Mapping[str, tuple[tuple[str, ...], ...]]
) -> Mapping[str, list[list[float]]]:
    """Return the softmax of every row in double precision, as Python floats.

    Args:
        alphas: Logits by table.
        candidates: Candidate names by table; columns past a row's own are left out.

    Raises:
        DivergenceError: If a logit is NaN or plus infinity, or a whole row minus infinity.
        ValueError: If a table is missing or has another shape.

    Example:
        >>> probabilities({"cell": torch.zeros(1, 2)}, {"cell": (("a", "b"),)})
        {'cell': [[0.5, 0.5]]}
    """
    result = {}
    for table, rows in candidates.items():
        if table not in alphas:
            raise ValueError(f"derive: alphas must hold the table {table!r}, got {sorted(alphas)}")
        shape = [len(rows), max(len(row) for row in rows)]
        if list(alphas[table].shape) != shape:
            raise ValueError(
                f"derive: alphas[{table!r}] must have shape {shape}, "
                f"got {list(alphas[table].shape)}"
            )
        result[table] = []
        logits = alphas[table].detach().to("cpu", torch.float64)
        for index, (row, names) in enumerate(zip(logits, rows, strict=True)):
            row = torch.softmax(row[: len(names)], dim=0)
            if not bool(torch.isfinite(row).all()):
                raise DivergenceError(
                    f"derive: alphas[{table!r}][{index}] must be finite, got "
                    f"{logits[index].tolist()!r:.200}; a genotype is never taken from NaN"
                )
            result[table].append(row.tolist())
    return result
