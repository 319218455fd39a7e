"""A genotype in words, for a terminal of any character set."""

import contextlib

from pyfast_nas.errors import GenotypeError
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.spaces.nas_bench_201 import NASBench201
from pyfast_nas.viz.cell import input_name
from pyfast_nas.viz.markup import printable

__all__ = ["describe"]


def describe(genotype: Genotype) -> str:
    """Write each node of each cell as the sum of its edges.

    Example:
        >>> from pyfast_nas.spaces import DARTS_V2
        >>> print(describe(DARTS_V2).splitlines()[1].strip())
        0 = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1})
    """
    lines = []
    for table, edges in genotype.cells.items():
        inputs = min((edge.target for edge in edges), default=0)

        def name(state: int, inputs: int = inputs) -> str:
            return input_name(state, inputs) if state < inputs else str(state - inputs)

        lines.append("cell" if table == "cell" else f"{table} cell")
        for target in dict.fromkeys(edge.target for edge in edges):
            terms = [
                f"{printable(edge.op)}({name(edge.source)})"
                for edge in edges
                if edge.target == target
            ]
            lines.append(f"  {name(target)} = {' + '.join(terms)}")
        lines.append(f"  output of nodes {', '.join(map(name, genotype.outputs[table]))}")
    if genotype.space == NASBench201.name:
        with contextlib.suppress(GenotypeError):  # it may be none of the space
            lines.append(NASBench201().to_string(genotype))
    return "\n".join(lines)
