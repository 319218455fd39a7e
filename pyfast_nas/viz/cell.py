"""What every picture of a cell needs: its states by name, and the families of operations."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyfast_nas.spaces.base import Genotype

__all__ = ["FAMILIES", "Cell", "Family", "family_of", "input_name", "read_cell"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Candidate operations of one kind, drawn in one colour (light page, dark page)."""

    key: str
    name: str
    line: tuple[str, str]
    fill: tuple[str, str]


FAMILIES = (
    Family(
        key="sep",
        name="separable convolution",
        line=("#1d5fa8", "#7db4f0"),
        fill=("#e4eefa", "#17304d"),
    ),
    Family(
        key="dil",
        name="dilated convolution",
        line=("#6b3fa0", "#c5a5ef"),
        fill=("#efe8f8", "#30234a"),
    ),
    Family(
        key="mbconv",
        name="inverted bottleneck",
        line=("#a3245f", "#f09ac0"),
        fill=("#fae6ef", "#441a2e"),
    ),
    Family(key="pool", name="pooling", line=("#a85200", "#f0ab5f"), fill=("#fcefdd", "#43290c")),
    Family(
        key="skip",
        name="skip connection",
        line=("#2a7a30", "#82cf88"),
        fill=("#e4f3e5", "#16371a"),
    ),
    Family(key="none", name="none", line=("#6a6a6a", "#a8a8a8"), fill=("#eeeeee", "#333333")),
    Family(
        key="other",
        name="other operation",
        line=("#00707a", "#6fd0d8"),
        fill=("#dff3f4", "#0c393d"),
    ),
)
_BY_KEY = {family.key: family for family in FAMILIES}


def family_of(op: str) -> Family:
    """Say which kind of operation a candidate name stands for.

    Example:
        >>> family_of("sep_conv_5x5").name
        'separable convolution'
    """
    for key, marks in (
        ("sep", ("sep_conv",)),
        ("dil", ("dil_conv",)),
        ("mbconv", ("mbconv",)),
        ("pool", ("pool",)),
        ("skip", ("skip", "identity")),
    ):
        if any(mark in op for mark in marks):
            return _BY_KEY[key]
    return _BY_KEY["none" if op in {"none", "zero"} else "other"]


def input_name(state: int, inputs: int) -> str:
    """Name an input state of a cell that has so many.

    Example:
        >>> input_name(0, 2), input_name(0, 1)
        ('c_{k-2}', 'input')
    """
    if inputs == 2:
        return ("c_{k-2}", "c_{k-1}")[state]
    return "input" if inputs == 1 else f"in_{state}"


@dataclass(frozen=True)
class Cell:
    """One cell, ready to be drawn: states by number, and what to call them."""

    inputs: Sequence[int]
    edges: Sequence[tuple[int, int, str]]
    concatenated: Sequence[int]
    output: int  # a state of its own, one past the last
    names: dict[int, str]


def read_cell(genotype: Genotype, table: str, function: str) -> Cell:
    """Read one cell of a genotype.

    Args:
        genotype: The architecture.
        table: Which of its cells.
        function: Who speaks in messages.

    Raises:
        ValueError: If the genotype has no such cell.

    Example:
        >>> from pyfast_nas.spaces import DARTS_V2
        >>> read_cell(DARTS_V2, "normal", "example").names[0]
        'c_{k-2}'
    """
    if table not in genotype.cells:
        known = ", ".join(map(repr, genotype.cells))
        raise ValueError(f"{function}: table must be one of {known}, got {table!r}")
    edges = [(edge.source, edge.target, edge.op) for edge in genotype.cells[table]]
    outputs = list(genotype.outputs[table])
    targets = {target for _s, target, _o in edges}
    states = sorted({state for s, t, _o in edges for state in (s, t)} | set(outputs))
    # States are numbered inputs first, so everything below the first target is an input,
    # drawn also where no edge was kept that starts there.
    inputs = list(range(min(targets, default=len(states))))
    names = {state: f"{state - len(inputs)}" for state in states if state not in inputs}
    names |= {state: input_name(state, len(inputs)) for state in inputs}
    output = max(names) + 1
    names[output] = "output"
    return Cell(inputs, edges, outputs, output, dict(sorted(names.items())))
