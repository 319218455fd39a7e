"""A cell as text for drawing programs: Graphviz DOT and Mermaid."""

from pyfast_nas.spaces.base import Genotype
from pyfast_nas.viz.cell import family_of, read_cell
from pyfast_nas.viz.markup import printable

__all__ = ["to_dot", "to_mermaid"]


def to_dot(genotype: Genotype, table: str) -> str:
    """Write one cell as a Graphviz digraph.

    Example:
        >>> from pyfast_nas.spaces.base import Genotype, GenotypeEdge
        >>> edges = (GenotypeEdge(source=0, target=1, op="skip_connect"),)
        >>> genotype = Genotype(space="toy", cells={"cell": edges}, outputs={"cell": (1,)})
        >>> print(to_dot(genotype, "cell").splitlines()[4].strip())
        "input" -> "0" [label="skip_connect", color="#2a7a30"];
    """
    cell = read_cell(genotype, table, "to_dot")

    def quoted(text: str) -> str:
        return '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"digraph {quoted(table)} {{", "  rankdir=LR;"]
    lines.append('  node [shape=box, style="rounded,filled", fillcolor="#f0f1f3"];')
    lines.append(
        f"  {{ rank=source; {' '.join(quoted(cell.names[s]) + ';' for s in cell.inputs)} }}"
    )
    for source, target, op in cell.edges:
        ends = f"{quoted(cell.names[source])} -> {quoted(cell.names[target])}"
        lines.append(f'  {ends} [label={quoted(op)}, color="{family_of(op).line[0]}"];')
    for source in cell.concatenated:
        lines.append(f"  {quoted(cell.names[source])} -> {quoted(cell.names[cell.output])};")
    return "\n".join([*lines, "}", ""])


def to_mermaid(genotype: Genotype, table: str) -> str:
    """Write one cell as a Mermaid flowchart.

    Example:
        >>> from pyfast_nas.spaces.base import Genotype, GenotypeEdge
        >>> edges = (GenotypeEdge(source=0, target=1, op="skip_connect"),)
        >>> genotype = Genotype(space="toy", cells={"cell": edges}, outputs={"cell": (1,)})
        >>> print(to_mermaid(genotype, "cell").splitlines()[-2].strip())
        s0 -->|"skip_connect"| s1
    """
    cell = read_cell(genotype, table, "to_mermaid")

    def quoted(text: str) -> str:
        # Mermaid has entities of its own; a raw quote or angle bracket would end the label.
        safe = "".join(
            c if c.isalnum() or c in " _-+.,:(){}" else f"#{ord(c)};" for c in printable(text)
        )
        return f'"{safe}"'

    lines = ["flowchart LR"]
    lines += [f"  s{state}[{quoted(name)}]" for state, name in cell.names.items()]
    lines += [f"  s{s} -->|{quoted(op)}| s{t}" for s, t, op in cell.edges]
    lines += [f"  s{s} --> s{cell.output}" for s in cell.concatenated]
    return "\n".join([*lines, ""])
