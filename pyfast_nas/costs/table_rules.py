"""What a table of costs must be: its JSON document, its numbers and its names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast_nas.errors import DataError

__all__ = ["LARGEST", "check_size", "check_text", "named", "read_document", "shapes_of", "tensors"]

FORMAT, VERSION = "pyfast_nas.cost_table", 1
LARGEST = 1e30  # far beyond any cost; readers of runs and float32 have room above it
LONGEST = 200  # characters of a unit, and of what costs are of

Candidates = Mapping[str, Sequence[Sequence[str]]]


def read_document(document: Any) -> dict[str, Any]:
    """Return the fields of a table from JSON values.

    Raises:
        DataError: If a field is missing or of another kind; sizes and numbers are not looked at.

    Example:
        >>> head = {"format": FORMAT, "version": VERSION, "unit": "ms", "fixed": 1}
        >>> sorted(read_document(head | {"rows": {"cell": [[0, 2.5]]}}))
        ['about', 'candidates', 'fixed', 'rows', 'unit']
    """
    found = document if isinstance(document, dict) else {}
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"CostTable: format must be {FORMAT!r} of version {VERSION}, got "
            f"{found.get('format')!r:.100} of version {found.get('version')!r:.100}"
        )
    fields = {"about": "", "candidates": None} | found
    for key, is_right, wanted in (
        ("unit", _is_text, "text"),
        ("about", _is_text, "text"),
        ("fixed", _is_number, "a number"),
        ("rows", lambda rows: _is_tables(rows, _is_number), "lists of numbers by row and table"),
        (
            "candidates",
            lambda rows: rows is None or _is_tables(rows, _is_text),
            "lists of names by row and table",
        ),
    ):
        if key not in fields or not is_right(fields[key]):
            got = type(fields.get(key)).__name__
            got = "something else in it" if got == "dict" else got
            raise DataError(f"CostTable: {key} must be {wanted}, got {got}")
    return {key: fields[key] for key in ("unit", "fixed", "rows", "candidates", "about")}


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_tables(value: Any, is_entry: Any) -> bool:
    """Say whether a value holds lists of lists of entries by name."""
    return type(value) is dict and all(
        type(rows) is list and all(type(row) is list and all(map(is_entry, row)) for row in rows)
        for rows in value.values()
    )


def check_text(field: str, text: Any, least: int) -> None:
    """Raise DataError unless a text is as long as one of a table may be."""
    if not isinstance(text, str) or not least <= len(text) <= LONGEST:
        raise DataError(
            f"CostTable: {field} must be text of {least} to {LONGEST} characters, got {text!r:.100}"
        )


def tensors(rows: Any) -> dict[str, Tensor]:
    """Return costs as float64 by table.

    Raises:
        DataError: If there is none, or one is no matrix of numbers.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise DataError("CostTable: rows must hold the costs of at least one table, got none")
    result = {}
    for table, costs in rows.items():
        try:
            costs = torch.as_tensor(costs, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise DataError(
                f"CostTable: rows[{table!r:.100}] must be rows of equally many numbers of "
                f"reasonable size, got something else"
            ) from None
        if costs.dim() != 2 or not costs.numel():
            raise DataError(
                f"CostTable: rows[{table!r:.100}] must have shape [rows, num_ops], "
                f"got {list(costs.shape)}"
            )
        result[table] = costs
    return result


def check_size(fixed: Any, rows: Mapping[str, Tensor]) -> float:
    """Return the fixed cost as a float.

    Raises:
        DataError: If it is no number, or the sizes of all costs do not add up to less than
            `LARGEST`, as where one is NaN.
    """
    try:
        fixed = float(fixed)
        total = abs(fixed) + sum(float(costs.abs().sum()) for costs in rows.values())
    except OverflowError:
        total = float("inf")
    except (TypeError, ValueError):
        raise DataError(f"CostTable: fixed must be a number, got {fixed!r:.100}") from None
    if not total < LARGEST:
        raise DataError(
            f"CostTable: costs must be finite and below {LARGEST:g} together, got {total:g}"
        )
    return fixed


def named(
    candidates: Candidates | None, rows: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[str, ...], ...]] | None:
    """Return candidate names as tuples.

    Raises:
        DataError: If they are not names of the columns of these rows.
    """
    if candidates is None:
        return None
    found = {table: tuple(tuple(row) for row in names) for table, names in candidates.items()}
    shapes = {table: tuple(costs.shape) for table, costs in rows.items()}
    if shapes_of(found) != shapes:
        raise DataError(
            f"CostTable: candidates must have the shapes of the rows, {shapes!r:.200}, got "
            f"{shapes_of(found)!r:.200}"
        )
    return found


def shapes_of(candidates: Candidates) -> dict[str, tuple[int, int]]:
    """Return rows and columns of tables of these candidates.

    Example:
        >>> shapes_of({"cell": [["none", "skip_connect"], ["none"]]})
        {'cell': (2, 2)}
    """
    return {
        table: (len(rows), max(map(len, rows), default=0)) for table, rows in candidates.items()
    }
