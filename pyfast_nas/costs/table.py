"""Cost of every candidate at every row of a super-net, and what a choice among them costs.

A network costs what its fixed layers cost and what each chosen candidate adds. A row that several
places of the network share, as all normal cells share theirs, holds the sum over these places.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from pyfast_nas.errors import DataError
from pyfast_nas.spaces.choices import choices_of
from pyfast_nas.spaces.genotype import Genotype

__all__ = ["CostTable"]

FORMAT, VERSION = "pyfast_nas.cost_table", 1


@dataclass(frozen=True, eq=False)
class CostTable:
    r"""Costs of the candidates of every row, in one unit, and of what is always there.

    Args:
        unit: What is counted: ``"ms"``, ``"multiply-adds"``, ``"parameters"``, ...
        fixed: Cost of the layers that no choice changes.
        rows: Table name -> cost of every candidate, summed over the places that share the row;
            columns past a row's own candidates are zero.

    Shape:
        each table ``[rows, num_ops]``, held as float64.

    Raises:
        DataError: If a cost is not finite.

    Example:
        >>> costs = CostTable("ms", 1.0, {"cell": torch.tensor([[0.0, 2.0], [0.5, 4.0]])})
        >>> costs.expected({"cell": torch.full((2, 2), 0.5)})
        tensor(4.2500)
        >>> costs.of({"cell": torch.tensor([[False, True], [True, False]])})
        3.5

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, eq. 7 (the expectation).
    """

    unit: str
    fixed: float
    rows: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        rows = {t: torch.as_tensor(c).detach().to(torch.float64) for t, c in self.rows.items()}
        for table, costs in rows.items():
            if costs.dim() != 2:
                raise DataError(
                    f"CostTable: rows[{table!r}] must have shape [rows, num_ops], "
                    f"got {list(costs.shape)}"
                )
        if not all(map(_is_finite, (torch.tensor(self.fixed), *rows.values()))):
            raise DataError("CostTable: every cost must be finite, got one that is not")
        object.__setattr__(self, "fixed", float(self.fixed))
        object.__setattr__(self, "rows", MappingProxyType(rows))

    def expected(self, weights: Mapping[str, Tensor]) -> Tensor:
        r"""Return the cost under mixing weights, differentiable in them.

        .. math:: \mathbb{E}[C] = C_0 + \sum_e \sum_i p_{e,i} C_{e,i}

        Args:
            weights: Table name -> probability of every candidate; sampled weights will do.

        Shape:
            each table ``[rows, num_ops]`` -> ``[]``, in the dtype and on the device of the weights.

        Raises:
            ValueError: If a table is missing or has another shape.
        """
        total: Tensor | None = None
        for table, costs in self.rows.items():
            if table not in weights or weights[table].shape != costs.shape:
                got = list(weights[table].shape) if table in weights else sorted(weights)
                raise ValueError(
                    f"CostTable.expected: weights must hold {table!r} of shape "
                    f"{list(costs.shape)}, got {got!r:.200}"
                )
            part = (weights[table] * costs.to(weights[table])).sum()
            total = part if total is None else total + part
        return self.fixed + total

    def of(self, choice: Genotype | Mapping[str, Tensor], candidates: Any = None) -> float:
        """Return the cost of a discrete architecture.

        Args:
            choice: What runs at every row, flags ``[rows, num_ops]`` by table; or a genotype.
            candidates: With a genotype, candidate names by table, as of a space.

        Raises:
            GenotypeError: If the candidates have no such edge or operation.
        """
        if isinstance(choice, Genotype):
            choice = choices_of(choice, candidates)
        return float(
            self.expected({t: flags.to("cpu", torch.float64) for t, flags in choice.items()})
        )

    @classmethod
    def fit(
        cls,
        choices: Sequence[Mapping[str, Tensor]],
        values: Sequence[float] | Tensor,
        *,
        unit: str,
        ridge: float = 1.0,
    ) -> Self:
        r"""Fit a table to the costs of whole networks, in closed form.

        .. math:: \theta = (X^\top X + \lambda I)^{-1} X^\top t

        with a row of X for each network: its flattened choices and a one, whose coefficient, the
        fixed cost, is shrunk as the others are.

        Args:
            choices: What each network runs, flags ``[rows, num_ops]`` by table.
            values: Cost of each network.
            unit: Unit of the costs.
            ridge: The factor lambda; at 0 the shortest of the best solutions.

        Raises:
            DataError: If there is no network, or a value is not finite.

        Example:
            >>> flags = [{"cell": torch.tensor([[a, not a]])} for a in (True, False)]
            >>> table = CostTable.fit(flags, [3.0, 5.0], unit="ms", ridge=0.0)
            >>> [round(table.of(choice), 6) for choice in flags]
            [3.0, 5.0]

        References:
            Vahdat et al., "UNAS", CVPR 2020, section 3.2.
        """
        targets = torch.as_tensor(values, dtype=torch.float64)
        if not choices or targets.shape != (len(choices),) or not _is_finite(targets):
            raise DataError(
                f"CostTable.fit: values must be {len(choices)} finite numbers, one for each of at "
                f"least one network, got shape {list(targets.shape)}"
            )
        shapes = {table: flags.shape for table, flags in choices[0].items()}
        flat = [torch.cat([c[t].flatten().to(torch.float64) for t in shapes]) for c in choices]
        x = torch.cat([torch.stack(flat), torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)
        if ridge:
            gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64)
            theta = torch.linalg.solve(gram, x.T @ targets)
        else:
            theta = torch.linalg.lstsq(x, targets, driver="gelsd").solution
        parts = theta[:-1].split([math.prod(shape) for shape in shapes.values()])
        rows = {t: p.view(shapes[t]) for t, p in zip(shapes, parts, strict=True)}
        return cls(unit, float(theta[-1]), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": self.unit,
            "fixed": self.fixed,
            "rows": {table: costs.tolist() for table, costs in self.rows.items()},
        }

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """Read a table from JSON values.

        Raises:
            DataError: If they are not those of a table.

        Example:
            >>> CostTable.from_dict({"format": "else"})
            Traceback (most recent call last):
            ...
            pyfast_nas.errors.DataError: CostTable: format must be 'pyfast_nas.cost_table' of \
version 1, got 'else' of version None
        """
        found = document if isinstance(document, dict) else {}
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise DataError(
                f"CostTable: format must be {FORMAT!r} of version {VERSION}, got "
                f"{found.get('format')!r:.100} of version {found.get('version')!r:.100}"
            )
        try:
            rows = {str(t): torch.tensor(c, dtype=torch.float64) for t, c in found["rows"].items()}
            return cls(str(found["unit"]), float(found["fixed"]), rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"CostTable: must hold unit, fixed and rows, got {error}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a table from a JSON file.

        Raises:
            DataError: If the file cannot be read or holds no table.
        """
        name = os.fspath(path)
        try:
            with open(name, encoding="utf-8") as file:
                return cls.from_dict(json.load(file))
        except OSError as error:
            raise DataError(
                f"cost table {name!r:.200}: {error.strerror}; name the file of the table"
            ) from None
        except ValueError as error:
            raise DataError(f"cost table {name!r:.200}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)
            file.write("\n")


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())
