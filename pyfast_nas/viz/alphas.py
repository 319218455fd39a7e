"""The sections of the report page about architecture parameters."""

import math
from collections.abc import Mapping

from pyfast_nas.viz.cell import input_name
from pyfast_nas.viz.heat import LEVELS, Scale, heat_map, heat_strip
from pyfast_nas.viz.markup import escape
from pyfast_nas.viz.run_folder import RunFolder

__all__ = ["alphas_over_time", "final_alphas"]

_SHORT = {"c_{k-2}": "cₖ₋₂", "c_{k-1}": "cₖ₋₁"}


def final_alphas(run: RunFolder) -> str:
    """Draw one table of probabilities per kind of cell, as they stand at the end.

    Example:
        >>> from pathlib import Path
        >>> final_alphas(RunFolder(path=Path("."), config={}))
        ''
    """
    final = {table: run.final_probabilities(table) for table in _histories(run)}
    if not final:
        return ""
    scale = Scale.of(row for _, rows in final.values() for row in rows)
    widest = max(len(names) for table in final for names in run.candidates(table))
    parts = [
        "<p>Probability of each candidate on each edge (softmax of the logits). A frame marks what "
        "the genotype keeps, bold type the best of a row.</p>",
        _scale_key(scale, widest),
        '<div class="charts">',
    ]
    for table, (epoch, rows) in final.items():
        picture = heat_map(
            rows,
            row_names=_edge_names(run, table),
            column_names=run.candidates(table),
            chosen=_kept(run, table),
            scale=scale,
            title=f"Final probabilities of the {table} cell",
        )
        parts.append(
            f"<figure><figcaption>{escape(table)}, epoch {epoch}</figcaption>"
            f'<div class="wide">{picture}</div></figure>'
        )
    return "\n".join([*parts, "</div>"])


def alphas_over_time(run: RunFolder) -> str:
    """Draw one strip per edge: how the probabilities of its candidates went.

    Example:
        >>> from pathlib import Path
        >>> alphas_over_time(RunFolder(path=Path("."), config={}))
        ''
    """
    histories = {table: h for table, h in _histories(run).items() if len(h) > 1}
    if not histories:
        return ""
    scale = Scale.of(row for h in histories.values() for _epoch, rows in h for row in rows)
    widest = max(len(names) for table in histories for names in run.candidates(table))
    parts = [
        "<p>One strip per edge: epochs run to the right, candidates downwards in the order of the "
        "tables above. Framed strips are edges of the genotype; the name beside is the candidate "
        "that leads at the end.</p>",
        _scale_key(scale, widest),
    ]
    for table, history in histories.items():
        epochs = [epoch for epoch, _rows in history]
        kept, names = _kept(run, table), run.candidates(table)
        parts.append(
            f'<h3>{escape(table)}, epochs {epochs[0]} to {epochs[-1]}</h3><div class="strips">'
        )
        for row, edge in enumerate(_edge_names(run, table)):
            series = [rows[row] for _epoch, rows in history]
            last = series[-1]
            leader = kept[row] if kept[row] is not None else last.index(max(last))
            strip = heat_strip(
                epochs,
                series,
                scale=scale,
                title=f"{edge}: {names[row][leader]} ends at {last[leader]:.3f}",
            )
            style = ' class="kept"' if kept[row] is not None else ""
            parts.append(
                f"<figure{style}><figcaption><span>{escape(edge)}</span>"
                f"<span>{escape(names[row][leader])}</span></figcaption>{strip}</figure>"
            )
        parts.append("</div>")
    return "\n".join(parts)


def _edge_names(run: RunFolder, table: str) -> list[str]:
    names = []
    for row, edge in enumerate(run.edges(table)):
        if edge is None:
            names.append(f"row {row}")
            continue
        first = min(target for _s, target in filter(None, run.edges(table)))
        ends = [
            _SHORT.get(name := input_name(state, first), name)
            if state < first
            else str(state - first)
            for state in edge
        ]
        names.append(" → ".join(ends))
    return names


def _kept(run: RunFolder, table: str) -> list[int | None]:
    """Column of the operation that the genotype keeps on each row."""
    edges = run.genotype.cells.get(table, ()) if run.genotype is not None else ()
    left = [(edge.source, edge.target, edge.op) for edge in edges]
    kept: list[int | None] = []
    for ends, names in zip(run.edges(table), run.candidates(table), strict=True):
        found = next((e for e in left if ends == e[:2] and e[2] in names), None)
        kept.append(names.index(found[2]) if found else None)
    return kept


def _scale_key(scale: Scale, candidates: int) -> str:
    steps = [f"d{step}" for step in range(LEVELS, 0, -1)] + ["h0"]
    steps += [f"u{step}" for step in range(1, LEVELS + 1)]
    boxes = "".join(
        f'<rect class="{s}" x="{i}" width="1" height="1"/>' for i, s in enumerate(steps)
    )
    low, high = math.exp(-scale.down) / candidates, math.exp(scale.up) / candidates
    return (
        f'<p class="scale"><span>{low:.3f}</span><svg viewBox="0 0 {len(steps)} 1" '
        f'preserveAspectRatio="none" role="img" aria-label="colour scale">{boxes}</svg>'
        f"<span>{high:.3f}</span><span>probability; the middle is {1 / candidates:.3f}, "
        f"an even choice among {candidates}</span></p>"
    )


def _histories(run: RunFolder) -> Mapping[str, list[tuple[int, list[list[float]]]]]:
    return {table: history for table in run.tables if (history := run.probabilities(table))}
