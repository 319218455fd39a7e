"""The drop-in for models that we did not write: their weighted sums through fused nodes, in place.

Mixed sums are replaced first, then the cells that are made of them: a cell whose own ``forward``
has to run still runs fused edges.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pyfast_nas.nn.acceleration_report import AccelerateReport, count
from pyfast_nas.nn.cell_forms import EdgeCell, cell_guesses
from pyfast_nas.nn.fusion import Recipes
from pyfast_nas.nn.judgement import Verdict, judge, judge_cell
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.replacement import Replaced, form_of, put_back, replace
from pyfast_nas.nn.settings import signature

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module) -> AccelerateReport:
    """Run the weighted sums of a model's candidate operations in fused nodes, in place.

    Looks for modules with a ``forward(x, weights)`` and a list of candidates, such as the mixed
    operation of a DARTS supernet, that of PC-DARTS on part of the channels, and a whole cell of
    NAS-Bench-201; then for cells that are made of such mixed operations and have a ``forward(x,
    weights)`` or ``forward(s0, s1, weights)``, and runs all edges into a node in one fused node, a
    cell that gives one state in one operator. Names of classes and attributes do not matter. What a
    ``forward`` computes does not follow from structure: a copy of each module is compared with the
    fused form on random input (outputs, gradients, running statistics; training and evaluation) and
    what differs is left alone and named.

    Parameters stay the same objects and state dict keys do not change; ``train()``, ``eval()``,
    ``to()``, hooks, `copy.deepcopy` and `torch.save` go on working. A candidate with a hook runs
    as a module as long as it has it, and a cell edge by edge as long as an edge has one. The
    model's own ``forward`` runs wherever no fused node serves: on other devices than the CPU, in
    half precision and under autocast, under `torch.compile`, with other arguments.

    Args:
        model: Any model; `restore` undoes it.

    Returns:
        What was replaced, what was not, and why. Print it.

    Raises:
        TypeError: If ``model`` is not a module.

    Example:
        >>> class Edge(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ops = nn.ModuleList([nn.Identity(), nn.MaxPool2d(3, 1, 1)])
        ...     def forward(self, x, weights):
        ...         return sum(w * op(x) for w, op in zip(weights, self.ops))
        >>> model = nn.ModuleDict({"edge": Edge()})
        >>> print(accelerate(model))
        replaced 1 module
          2 of 2 candidates in a fused node: edge
        >>> restore(model)
        1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    report = AccelerateReport({}, {}, {}, ())
    _replace_sums(model, report)
    _replace_cells(model, report)
    return dataclasses.replace(report, notes=tuple(_notes(model, report)))


def restore(model: nn.Module) -> int:
    """Undo `accelerate` and return how many modules run their own ``forward`` again.

    Args:
        model: A model, or a copy of one.

    Example:
        >>> restore(nn.Linear(1, 1))
        0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    return put_back(model)


def _replace_sums(model: nn.Module, report: AccelerateReport) -> None:
    """Replace what sums candidates, and write down what was done."""
    seen: dict[object, Verdict] = {}
    for name, module in list(model.named_modules()):
        if any(_is_inside(name, other) for other in report.replaced):
            continue
        if isinstance(module, Replaced):
            if not _is_cell(module):
                report.replaced[name] = "replaced before, its candidates"
            continue
        if isinstance(module, MixedOp | torch.jit.ScriptModule):
            continue
        verdict = _known(module, judge, seen)
        if verdict.form is None:
            if verdict.why:
                report.left_alone[_called(name)] = verdict.why
        elif _apply(module, name, verdict, report):
            total = verdict.fused + len(verdict.plain)
            report.replaced[name] = f"{verdict.fused} of {count(range(total), 'candidate')}"
            for candidate, why in verdict.plain.items():
                report.plain[f"{name}.{candidate}" if name else candidate] = why


def _replace_cells(model: nn.Module, report: AccelerateReport) -> None:
    """Replace cells whose edges are replaced, and write down what was done."""
    seen: dict[object, Verdict] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, Replaced):
            if _is_cell(module):
                report.cells[name] = "replaced before"
            continue
        if next(cell_guesses(module), None) is None:
            continue
        verdict = _known(module, judge_cell, seen)
        if verdict.form is None:
            if verdict.why:
                report.left_alone[_called(name)] = f"{verdict.why}; its edges run one by one"
        elif _apply(module, name, verdict, report):
            report.cells[name] = _in_words(verdict)


def _known(
    module: nn.Module, judge: Callable[[nn.Module], Verdict], seen: dict[object, Verdict]
) -> Verdict:
    """Return the verdict on a module; modules built alike are judged once."""
    key = signature(module)
    if key is None:
        return judge(module)
    if key not in seen:
        seen[key] = judge(module)
    return seen[key]


def _apply(module: nn.Module, name: str, verdict: Verdict, report: AccelerateReport) -> bool:
    """Replace a module and say whether that could be done."""
    try:
        replace(module, verdict.form, Recipes(verdict.hints))
    except TypeError as error:  # a class with slots of its own
        report.left_alone[_called(name)] = f"its class cannot be extended: {error}"
        return False
    return True


def _in_words(verdict: Verdict) -> str:
    """Say what of a cell runs in fused nodes."""
    fused = [name for name in verdict.form.aligned if name not in verdict.plain]
    parts = [", ".join((count(range(verdict.form.nodes), "node"), *fused))]
    parts += [f"{name} as a module ({why})" for name, why in verdict.plain.items()]
    return "; ".join(parts)


def _is_cell(module: Replaced) -> bool:
    return isinstance(form_of(module), EdgeCell)


def _called(name: str) -> str:
    return name or "the model"


def _notes(model: nn.Module, report: AccelerateReport) -> Iterator[str]:
    if ours := sum(isinstance(module, MixedOp) for module in model.modules()):
        yield f"{count(range(ours), 'pyfast_nas MixedOp')} run in fused nodes anyway"
    elif not report.replaced and not report.left_alone:
        yield "no module has a list of candidates and a forward(x, weights)"
    devices = {p.device.type for p in model.parameters()} - {"cpu", "cuda"}
    if report.replaced and devices:
        yield f"on {', '.join(sorted(devices))} the model's own forward runs: no fused node there"


def _is_inside(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(other + "."))
