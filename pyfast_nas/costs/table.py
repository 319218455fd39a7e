"""Cost of every candidate at every row of a supernet, and what a choice among them costs.

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

from pyfast_nas.costs.table_rules import (
    FORMAT,
    VERSION,
    Candidates,
    check_size,
    check_text,
    named,
    read_document,
    shapes_of,
    tensors,
)
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.spaces.choices import choices_of
from pyfast_nas.spaces.genotype import Genotype
from pyfast_nas.spaces.strict_json import parse
from pyfast_nas.spaces.text_files import read_text, write_text

__all__ = ["CostTable"]


@dataclass(frozen=True, eq=False)
class CostTable:
    r"""Costs of the candidates of every row, in one unit, and of what is always there.

    Args:
        unit: What is counted: ``"ms"``, ``"multiply-adds"``, ``"parameters"``, ...
        fixed: Cost of the layers that no choice changes.
        rows: Table name -> cost of every candidate, summed over the places that share the row;
            columns past a row's own candidates are zero.
        candidates: Candidate names by table, as of a space; a table without them fits every
            supernet of its shape.
        about: What the costs are of, in a few words: the batch and the device of a latency.

    Shape:
        each table ``[rows, num_ops]``, held as float64.

    Raises:
        DataError: If there is no cost, one is no number of reasonable size, or a name is none.

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
    candidates: Candidates | None = None
    about: str = ""

    def __post_init__(self) -> None:
        check_text("unit", self.unit, 1)
        check_text("about", self.about, 0)
        rows = tensors(self.rows)
        object.__setattr__(self, "fixed", check_size(self.fixed, rows))
        object.__setattr__(self, "rows", MappingProxyType(rows))
        object.__setattr__(self, "candidates", named(self.candidates, rows))

    def expected(self, weights: Mapping[str, Tensor]) -> Tensor:
        r"""Return the cost under mixing weights, differentiable in them.

        .. math:: \mathbb{E}[C] = C_0 + \sum_e \sum_i p_{e,i} C_{e,i}

        Args:
            weights: Table name -> probability of every candidate; sampled weights will do.

        Shape:
            each table ``[rows, num_ops]`` -> ``[]``, on the device of the weights and in their
            dtype, in float32 where that is shorter.

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
            dtype = torch.promote_types(weights[table].dtype, torch.float32)
            row_weights = weights[table].to(dtype)
            part = (row_weights * costs.to(row_weights)).sum()
            total = part if total is None else total + part
        return self.fixed + total

    def of(self, choice: Genotype | Mapping[str, Tensor], candidates: Any = None) -> float:
        """Return the cost of a discrete architecture.

        Args:
            choice: What runs at every row, flags ``[rows, num_ops]`` by table; or a genotype.
            candidates: With a genotype, candidate names by table, as of a space; by default
                those of the table.

        Raises:
            GenotypeError: If the candidates have no such edge or operation.
            ValueError: If there are no names for a genotype.
        """
        if isinstance(choice, Genotype):
            candidates = self.candidates if candidates is None else candidates
            if candidates is None:
                raise ValueError(
                    "CostTable.of: candidates must be names by table where the table has none, "
                    "such as those of the genotype's space, got None"
                )
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
            ConfigError: If the ridge is negative or not finite.
            DataError: If there is no network, or a value is not finite.

        Example:
            >>> flags = [{"cell": torch.tensor([[a, not a]])} for a in (True, False)]
            >>> table = CostTable.fit(flags, [3.0, 5.0], unit="ms", ridge=0.0)
            >>> [round(table.of(choice), 6) for choice in flags]
            [3.0, 5.0]

        References:
            Vahdat et al., "UNAS", CVPR 2020, section 3.2.
        """
        if not 0 <= ridge < math.inf:
            raise ConfigError(
                f"CostTable.fit: ridge must be a finite number at least 0, got {ridge!r:.100}"
            )
        targets = torch.as_tensor(values, dtype=torch.float64)
        if not choices or targets.shape != (len(choices),) or not targets.isfinite().all():
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

    def check(self, candidates: Candidates, option: str, source: str = "") -> None:
        """Raise unless the table is one of these candidates.

        Args:
            candidates: Candidate names by table, as of a space or a supernet.
            option: What messages call the table.
            source: Where it is from, for messages.

        Raises:
            ConfigError: If tables, rows or columns differ, or the names, where the table has them.

        Example:
            >>> costs = CostTable("ms", 0.0, {"cell": [[1.0, 2.0]]}, {"cell": [["skip", "conv"]]})
            >>> costs.check({"cell": [["skip", "pool"]]}, "cost")
            Traceback (most recent call last):
            ...
            pyfast_nas.errors.ConfigError: cost must be a table of the candidates ('skip', 'pool') \
in row 0 of 'cell', got ('skip', 'conv')
        """
        of = f" from {source!r:.200}" if source else ""
        wanted = shapes_of(candidates)
        found = {table: tuple(costs.shape) for table, costs in self.rows.items()}
        if found != wanted:
            raise ConfigError(
                f"{option} must be a table with a cost for every candidate, {wanted}, got "
                f"{found!r:.200}{of}"
            )
        for table, rows in (self.candidates or {}).items():
            for row, (own, names) in enumerate(zip(rows, candidates[table], strict=True)):
                if own != tuple(names):
                    raise ConfigError(
                        f"{option} must be a table of the candidates {tuple(names)!r:.200} in row "
                        f"{row} of {table!r}, got {own!r:.200}{of}"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        candidates, about = self.candidates, self.about
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": self.unit,
            **({"about": about} if about else {}),
            "fixed": self.fixed,
            "rows": {table: costs.tolist() for table, costs in self.rows.items()},
            **({"candidates": _lists(candidates)} if candidates is not None else {}),
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
        return cls(**read_document(document))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a table from a JSON file.

        Raises:
            DataError: If the file cannot be read or holds no table.
        """
        where = f"cost table {os.fspath(path)!r:.200}"
        try:
            text = read_text(path, "CostTable", DataError)
        except OSError as error:
            raise DataError(f"{where}: {error.strerror}; name the file of the table") from None
        if not text.strip():
            raise DataError(
                f"{where} is empty; write it again, with inspect --cost --output or CostTable.save"
            )
        try:
            return cls.from_dict(parse(text, "Cost table", DataError))
        except DataError as error:
            raise DataError(f"{error} (in {os.fspath(path)!r:.200})") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file so that it is at every instant the old or the new one."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")


def _lists(candidates: Candidates) -> dict[str, list[list[str]]]:
    return {table: [list(row) for row in rows] for table, rows in candidates.items()}
