"""What we set out to reach, beside what was measured."""

import dataclasses
from collections.abc import Callable, Sequence

from pyfast_nas.bench.record import on_gpu
from pyfast_nas.bench.steps import LARGE, SECOND_ORDER
from pyfast_nas.bench.summary import Record, best_rival, ours_of
from pyfast_nas.viz.units import number

__all__ = ["FOREIGN", "SUPERNET", "TARGETS", "Target", "figures", "rows_of"]

# Cases whose figures are quoted elsewhere; a GPU is given four times the batch.
SUPERNET = "DARTS, C = 16, 8 cells, batch 16"
PRODUCT = "exact, DARTS, C = 16, 8 cells, batch 8"
FOREIGN = "NAS-Bench-201, C = 16, N = 5, batch 16"
NEUMANN = "Neumann update, 1,399 tensors"
DIFFERENCE = "central difference, 1,399 tensors"
LARGER = ("batch 16", "batch 64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One figure and its two marks.

    Attributes:
        what: What is measured.
        must: Mark that has to be met, on a CPU and on a GPU.
        reach: Mark that would be good, likewise.
        figure: Takes all rows of a device, gives the figure or None where it was not measured.
        unit: ``"x"`` for a ratio, where more is better, or ``"MiB"``, where less is.
    """

    what: str
    must: tuple[float, float]
    reach: tuple[float, float]
    figure: Callable[[Sequence[Record]], float | None]
    unit: str = "x"


def rows_of(rows: Sequence[Record], operator: str, case: str, mode: str) -> list[Record]:
    """Timed rows of a case, at the most threads it was run with; of a GPU at its larger batch."""
    case = case.replace(*LARGER) if on_gpu(rows) else case
    found = [
        row
        for row in rows
        if (row["operator"], row["case"], row["mode"]) == (operator, case, mode) and row["timing"]
    ]
    threads = max((row["threads"] for row in found), default=0)
    return [row for row in found if row["threads"] == threads]


def _ratio(operator: str, case: str, mode: str, rival: str = "") -> Callable:
    """Time of the best rival, of those whose name starts with ``rival``, over ours."""

    def figure(rows: Sequence[Record]) -> float | None:
        found = rows_of(rows, operator, case, mode)
        ours, other = ours_of(found), best_rival(found, start=rival)
        return other["timing"]["p50"] / ours["timing"]["p50"] if ours and other else None

    return figure


def _kept(rows: Sequence[Record]) -> float | None:
    ours = ours_of(rows_of(rows, "supernet", SUPERNET, "both"))
    return ours["kept_bytes"] / ours["images"] / 2**20 if ours and "kept_bytes" in ours else None


def _large_step(rows: Sequence[Record]) -> float | None:
    case = f"{SECOND_ORDER}: {SUPERNET.replace('batch 16', f'batch {LARGE * 16}')}"
    weighed = (row.get("resident_bytes") for row in rows if row["case"] == case)
    return next((found / 2**20 for found in weighed if found), None)


def _smallest(*parts: Callable) -> Callable:
    def figure(rows: Sequence[Record]) -> float | None:
        values = [part(rows) for part in parts]
        return None if None in values else min(values)

    return figure


TARGETS = (
    Target(
        what="DARTS supernet, forward + backward, against eager NCHW",
        must=(5.0, 5.0),
        reach=(10.0, 12.0),
        figure=_ratio("supernet", SUPERNET, "both", "eager"),
    ),
    Target(
        what="against eager channels-last",
        must=(2.8, 4.0),
        reach=(4.0, 8.0),
        figure=_ratio("supernet", SUPERNET, "both", "channels-last"),
    ),
    Target(
        what="against the best torch.compile setting that runs",
        must=(2.5, 1.5),
        reach=(4.0, 3.0),
        figure=_ratio("supernet", SUPERNET, "both", "compile"),
    ),
    Target(
        what="second-order step by central differences, against eager NCHW",
        must=(4.0, 5.0),
        reach=(7.0, 10.0),
        figure=_ratio("step", f"{SECOND_ORDER}: {SUPERNET}", "step", "eager"),
    ),
    Target(
        what="the same at sixteen times the batch: resident memory beyond what is there before",
        must=(4e9 / 2**20,) * 2,
        reach=(2e9 / 2**20,) * 2,
        figure=_large_step,
        unit="MiB",
    ),
    Target(
        what="exact product with second derivatives, against eager double backward",
        must=(1.0, 1.0),
        reach=(8.0, 8.0),
        figure=_ratio("product", PRODUCT, "step", "eager"),
    ),
    Target(
        what="saved for backward, an image",
        must=(8.0, 15.0),
        reach=(2.0, 3.0),
        figure=_kept,
        unit="MiB",
    ),
    Target(
        what="NAS-Bench-201 supernet, forward + backward, against torch.compile of the whole",
        must=(1.0, 1.0),
        reach=(1.5, 2.0),
        figure=_ratio("supernet", FOREIGN, "both", "compile-whole"),
    ),
    Target(
        what="MSG-DAS step, K = 2, against the eager DARTS step",
        must=(6.0, 6.0),
        reach=(15.0, 15.0),
        figure=_ratio("step", f"MSG-DAS, K = 2: {SUPERNET}", "step", "eager"),
    ),
    Target(
        what="mixed_sum, forward + backward, 8 x [64,16,32,32], against the best rival",
        must=(1.0, 1.0),
        reach=(1.5, 1.3),
        figure=_ratio("mixed_sum", "8 x [64x16x32x32]", "both"),
    ),
    Target(
        what="gumbel_topk without gradient, 1,024 to 65,536 rows, against the best rival",
        must=(6.0, 4.0),
        reach=(14.0, 10.0),
        figure=_smallest(
            _ratio("gumbel_topk", "1024x8_k2", "forward"),
            _ratio("gumbel_topk", "65536x16_k2", "forward"),
        ),
    ),
    Target(
        what="the same at [14, 8]",
        must=(1.5, 2.0),
        reach=(5.0, 5.0),
        figure=_ratio("gumbel_topk", "14x8_k2", "forward"),
    ),
    Target(
        what="Neumann and finite-difference vectors in flat storage, against torch._foreach_",
        must=(1.8, 1.3),
        reach=(5.0, 3.0),
        figure=_smallest(
            _ratio("tensor_list", f"{NEUMANN} in flat storage", "step", "foreach"),
            _ratio("tensor_list", f"{DIFFERENCE} in flat storage", "step", "foreach"),
        ),
    ),
    Target(
        what="the same where every tensor lies by itself",
        must=(1.8, 1.3),
        reach=(5.0, 3.0),
        figure=_smallest(
            _ratio("tensor_list", NEUMANN, "step", "foreach"),
            _ratio("tensor_list", DIFFERENCE, "step", "foreach"),
        ),
    ),
)


def figures(rows: Sequence[Record]) -> list[list[str]]:
    """Return what, figure, both marks and the verdict of every target, for the rows of a device.

    Example:
        >>> figures([])[0][1:]
        ['', '5 x', '10 x', 'not measured']
    """
    kind = int(on_gpu(rows))
    lines = []
    for target in TARGETS:
        value, marks = target.figure(rows), (target.must[kind], target.reach[kind])
        words = [f"{number(mark)} {target.unit}" for mark in marks]
        shown = "" if value is None else f"{value:.2f} {target.unit}"
        lines.append([target.what, shown, *words, _verdict(target, value, *marks)])
    return lines


def _verdict(target: Target, value: float | None, must: float, reach: float) -> str:
    if value is None:
        return "not measured"
    sign = 1 if target.unit == "x" else -1
    if sign * value >= sign * reach:
        return "reached"
    return "met" if sign * value >= sign * must else "missed"
