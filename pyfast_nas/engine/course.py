"""The course of a search: its epochs, what was measured in them, which of them is the result."""

import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyfast_nas.algorithms.base import SearchAlgorithm
from pyfast_nas.algorithms.step_graph import StepGraph
from pyfast_nas.data.loader import DeviceLoader
from pyfast_nas.engine.callbacks import Callback, EpochEnd, GoBack, Stop
from pyfast_nas.engine.config import SearchConfig, run_device
from pyfast_nas.engine.health import alpha_rows, collapsed, health, require_finite
from pyfast_nas.engine.metrics import Means, MetricBuffer
from pyfast_nas.engine.progress import Progress
from pyfast_nas.engine.rates import timing_since
from pyfast_nas.engine.run_files import RunFiles
from pyfast_nas.spaces.base import Genotype, SearchSpace

__all__ = ["Course", "run_epochs"]

_LOG = logging.getLogger("pyfast_nas")


@dataclasses.dataclass
class Course:
    """What a search has been through.

    Attributes:
        history: One row an epoch.
        found: Architecture and architecture parameters at the start and after each epoch.
        chosen: Epoch whose architecture is the result.
        warnings: Kind of warning -> its latest words.
    """

    history: list[dict[str, Any]]
    found: list[tuple[Genotype, dict[str, Tensor]]]
    chosen: int = 0
    warnings: dict[str, str] = dataclasses.field(default_factory=dict)

    def end_epoch(self, row: dict[str, Any], algorithm: SearchAlgorithm) -> None:
        """Take an epoch that is done."""
        self.history.append(row)
        self.found.append(_found(algorithm))
        self.chosen = len(self.history)

    def go_back(self, epoch: int) -> None:
        """Forget the epochs after this one."""
        del self.history[epoch:], self.found[epoch + 1 :]
        self.chosen = epoch

    @property
    def rule(self) -> str:
        """Which epoch the result is from, in words."""
        last = self.chosen == len(self.history)
        return "the last epoch" if last else f"epoch {self.chosen} of {len(self.history)}"

    def warn(self, sentence: str) -> None:
        """Keep a sentence for the result, and log it once: a number that grew is no new warning."""
        kind = re.sub(r"\d+", "#", sentence)
        if kind not in self.warnings:
            _LOG.warning("search: %s", sentence)
        self.warnings[kind] = sentence


def _found(algorithm: SearchAlgorithm) -> tuple[Genotype, dict[str, Tensor]]:
    alphas = {table: value.detach().cpu() for table, value in algorithm.alphas.items()}
    return algorithm.derive(), alphas


def run_epochs(
    algorithm: SearchAlgorithm,
    space: SearchSpace,
    loader: DeviceLoader,
    config: SearchConfig,
    files: RunFiles,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> Course:
    """Make all steps, and write down how they went.

    Args:
        algorithm: What searches, after its ``prepare``.
        space: Where it searches.
        loader: Pairs of batches.
        config: Options, resolved.
        files: Where the lines of metrics go.
        progress: Display that receives events.
        callbacks: What looks on at the end of every epoch.

    Raises:
        DivergenceError: If a loss, a gradient or an alpha becomes NaN or infinite.
    """
    device = run_device(config.device)
    buffer, course = MetricBuffer("search"), Course([], [_found(algorithm)])
    steps = config.epochs * len(loader)
    event = {"phase": "search", "epochs": config.epochs, "steps": steps}
    graph = StepGraph(algorithm) if config.graph else None
    make_step = algorithm.step if graph is None else graph.step
    if graph is not None and graph.reason and device.type == "cuda":
        _LOG.info("search: steps run without a CUDA graph: %s", graph.reason)
    if not config.epochs:
        course.warn("no epoch was run: the genotype is that of the initial alphas")
    _append_alphas(files, 0, algorithm, space)
    while len(course.history) < config.epochs:
        epoch = len(course.history) + 1
        started, means = time.perf_counter(), Means()
        for place, (train, valid) in enumerate(loader, start=1):
            step = (epoch - 1) * len(loader) + place
            buffer.add(step, make_step(train, valid))
            if step % config.log_interval and place < len(loader):
                continue
            # Here, and only here, the host waits for the device.
            interval = Means()
            for _, row in buffer.fetch():
                interval.add(row)
                means.add(row)
            require_finite(algorithm.alphas, space.candidates, step)
            row = {"kind": "step", "step": step, "epoch": epoch, **interval.values()}
            files.append("metrics.jsonl", row)
            timing = timing_since(started, place, 2 * config.batch_size, device)
            left = (steps - step) / timing["steps_per_second"]
            progress.update({**event, **timing, **row, "seconds_left": left})
        genotype = algorithm.derive()
        sick = collapsed(genotype, config.collapse_limit)
        amiss = [*sick, *algorithm.alarms()]
        if graph is not None and graph.failed:
            amiss.append(f"steps ran without a CUDA graph, which failed: {graph.reason}")
        row = {"kind": "epoch", "epoch": epoch, **means.values()}
        row |= health(space, algorithm.alphas, genotype)
        if hasattr(algorithm, "alpha_steps"):
            row["alpha_steps"] = algorithm.alpha_steps
        timing = timing_since(started, len(loader), 2 * config.batch_size, device)
        course.end_epoch(row, algorithm)
        _append_alphas(files, epoch, algorithm, space)
        end = EpochEnd(epoch=epoch, algorithm=algorithm, genotype=genotype, valid=valid, row=row)
        decisions = [made for look in callbacks if (made := look(end)) is not None]
        amiss += [decision.reason for decision in decisions]
        for sentence in amiss:
            course.warn(sentence)
        if amiss:
            row["warnings"] = amiss
        files.append("metrics.jsonl", row)
        files.append("timing.jsonl", {"kind": "epoch", "epoch": epoch, **timing})
        progress.update({**event, "epoch": epoch, **timing, **row})
        if sick and config.stop_on_collapse:
            course.warn(f"stopped in epoch {epoch} of {config.epochs} because a cell collapsed")
            break
        # The first to speak decides.
        if decisions and isinstance(decisions[0], Stop):
            course.chosen = decisions[0].epoch
            break
        if decisions and isinstance(decisions[0], GoBack):
            course.go_back(decisions[0].epoch)
    return course


def _append_alphas(
    files: RunFiles, epoch: int, algorithm: SearchAlgorithm, space: SearchSpace
) -> None:
    rows = alpha_rows(algorithm.alphas, space.candidates)
    files.append("alphas.jsonl", {"epoch": epoch, "alphas": rows})
