"""The search: one loop, the same for every algorithm, space and data set."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pyfast_nas._ext import kernels_in_use
from pyfast_nas.algorithms import ALGORITHMS
from pyfast_nas.algorithms.base import SearchAlgorithm
from pyfast_nas.algorithms.cost_aware import find_costs
from pyfast_nas.algorithms.options import require_read
from pyfast_nas.data.image_data import ImageData
from pyfast_nas.data.loader import DeviceLoader
from pyfast_nas.data.sources import load_data
from pyfast_nas.engine.callbacks import Callback
from pyfast_nas.engine.config import SearchConfig, run_device
from pyfast_nas.engine.course import run_epochs
from pyfast_nas.engine.curvature import CurvatureMonitor
from pyfast_nas.engine.evaluation import evaluate_against_random
from pyfast_nas.engine.health import health
from pyfast_nas.engine.pareto import pareto_record
from pyfast_nas.engine.preparation import (
    data_record,
    fitted_space,
    package_record,
    preset_algorithm,
)
from pyfast_nas.engine.presets import preset
from pyfast_nas.engine.progress import Progress, Silent
from pyfast_nas.engine.randomness import seeded
from pyfast_nas.engine.run_files import RunFiles
from pyfast_nas.engine.scores import TableScores
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces.base import Genotype, SearchSpace, probabilities
from pyfast_nas.typing import LossFn

__all__ = ["SearchResult", "search"]

_LOG = logging.getLogger("pyfast_nas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found, and how it got there.

    Attributes:
        genotype: The architecture, derived from the alphas.
        alphas: Architecture parameters after :attr:`epoch`, on the CPU.
        epoch: Epoch whose architecture it is: the last one, unless a callback chose an earlier one.
        history: One row an epoch, as in ``metrics.jsonl``.
        evaluation: Content of ``evaluation.json``, or ``None`` without a comparison.
        table: Value, rank and regret in a table of measured architectures, or ``None`` without one.
        pareto: Content of ``pareto.json``, or ``None`` without a cost.
        warnings: What was amiss, one sentence each.
        trained: False for a search of no epoch, whose genotype is that of the initial alphas.
        config: All options, resolved.
        record: Content of ``config.json``.
        space: The space, fitted to the data.
        output: Folder of the run, or ``None``.
    """

    genotype: Genotype
    alphas: Mapping[str, Tensor]
    epoch: int
    history: tuple[dict[str, Any], ...]
    evaluation: Mapping[str, Any] | None
    table: Mapping[str, Any] | None
    pareto: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    trained: bool
    config: SearchConfig
    record: Mapping[str, Any]
    space: SearchSpace
    output: Path | None

    def build(self, **sizes: Any) -> nn.Module:
        """Return the plain, untrained network of the genotype; see the space's ``build``."""
        return self.space.build(self.genotype, **sizes)

    def report(self) -> Path:
        """Write ``report.html`` and the pictures of the cells; return the page's path.

        Raises:
            ConfigError: If the search wrote no files.
        """
        if self.output is None:
            raise ConfigError("report: output must be given to search(), got None")
        # The page is drawn a room above; only this door to it is here.
        from pyfast_nas.viz.report import write_report

        return write_report(self.output)


def search(
    space: SearchSpace | str,
    data: Any,
    *,
    algorithm: SearchAlgorithm | str = "darts",
    config: SearchConfig | None = None,
    progress: Progress | None = None,
    loss: LossFn = F.cross_entropy,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> SearchResult:
    """Search an architecture: alternate weight and architecture updates, then derive.

    Every random number follows from ``seed``; the global random state is left as it was.

    Args:
        space: A search space, or the name of one, whose size then suits the data set.
        data: Anything :func:`pyfast_nas.data.load_data` takes.
        algorithm: A search algorithm, or the name of one, with a rate that suits the data set.
        config: Options together.
        progress: Display that receives events.
        loss: ``(outputs, labels) -> scalar``, the mean over the batch.
        callbacks: What looks on at the end of every epoch, such as
            :class:`~pyfast_nas.engine.curvature.CurvatureMonitor`; the first that decides something
            decides.
        options: Options one by one, the fields of :class:`SearchConfig`; they go before ``config``.

    Raises:
        ConfigError: If an option is unknown or out of range, or ``output`` holds files.
        DataError: If the data are not what they ought to be.
        SearchSpaceError: If the space cannot take such data.
        DivergenceError: If a loss, a gradient or an alpha becomes NaN or infinite.

    Example:
        >>> result = search("toy", "toy", algorithm="darts", epochs=1, seed=0)
        >>> sorted(result.alphas), len(result.history)
        (['cell'], 1)
    """
    config = SearchConfig.from_options(config, options)
    progress = progress or Silent()
    data = load_data(data)
    name = space if isinstance(space, str) else getattr(space, "name", "")
    config = config.resolved(data.name, data.image_size, name)
    sizes = preset(data.name, space_name=name)
    of_name = {"channels": sizes.channels, "cells": sizes.cells, **sizes.space_options}
    space = fitted_space("search", space, data, **of_name)
    if isinstance(algorithm, str):
        algorithm = preset_algorithm(algorithm, data.name)
    if not isinstance(algorithm, SearchAlgorithm):
        raise ConfigError(
            "search: algorithm must be a search algorithm or one of "
            f"{', '.join(sorted(ALGORITHMS))}, got {type(algorithm).__name__}"
        )
    scores = None
    if config.table is not None:
        scores = TableScores(config.table, space, data.name, config.table_columns)
        config = dataclasses.replace(config, table_columns=scores.columns)
        callbacks = (scores, *callbacks)
    if config.curvature_interval:
        if not hasattr(algorithm, "bilevel_problem"):
            raise ConfigError(
                f"search: curvature_interval must be 0 with {algorithm.name!r}, which has no loss "
                f"to differentiate twice in its alphas, got {config.curvature_interval}"
            )
        if config.curvature_action == "go_back" and not algorithm.weight_decay:
            raise ConfigError(
                "search: weight_decay must be greater than 0 with curvature_action='go_back', "
                "which makes it larger by a factor, got 0"
            )
        monitor = CurvatureMonitor(
            interval=config.curvature_interval, action=config.curvature_action
        )
        callbacks = (*callbacks, monitor)
    RunFiles.require_free(config.output, overwrite=config.overwrite)
    device = run_device(config.device)
    seeds = torch.randint(
        2**62, (4,), generator=Generator("cpu").manual_seed(config.seed), device="cpu"
    ).tolist()
    loader = DeviceLoader(
        data,
        config.batch_size,
        augment=config.augment,
        generator=Generator("cpu").manual_seed(seeds[0]),
        device=device,
        valid_fraction=config.valid_fraction,
    )
    record = _record(space, data, algorithm, config, loader, device)
    for note in (*data.notes, f"kernels in use: {record['kernels']}"):
        _LOG.info("search: %s", note)
    started = time.perf_counter()
    with seeded(config.seed, device):
        supernet = space.supernet().to(device)
        is_own = config.pareto_cost == "auto"
        if not is_own:
            costs = find_costs(config.pareto_cost, supernet, space, "search: pareto_cost")
        algorithm.prepare(
            supernet,
            space=space,
            epochs=config.epochs,
            steps_per_epoch=len(loader),
            generator=Generator(device).manual_seed(seeds[1]),
            loss=loss,
        )
        if is_own:
            costs = getattr(algorithm, "cost_table", None)
        if costs is None:
            of_front = dict.fromkeys(("pareto_samples", "pareto_images"), False)
            require_read(config, of_front, "no cost")
        # Whatever is refused is refused before anything is written.
        files = RunFiles(config.output, overwrite=config.overwrite)
        files.write_json("config.json", record)
        size = sum(parameter.numel() for parameter in supernet.parameters())
        event = {"phase": "search", "kind": "start", "epochs": config.epochs, "parameters": size}
        progress.update({**event, "steps_per_epoch": len(loader), "config": record})
        course = run_epochs(algorithm, space, loader, config, files, progress, callbacks)
        genotype, alphas = course.found[course.chosen]
        history, warnings = course.history, list(course.warnings.values())
        table = None if scores is None else scores.record(genotype)
        files.write("genotype.json", genotype.to_json())
        files.write_json(
            "result.json",
            {
                **record,
                "genotype": genotype.to_dict(),
                "epoch": course.chosen,
                "rule": f"the architecture parameters after {course.rule}",
                "trained": bool(history),
                "probabilities": probabilities(alphas, space.candidates),
                **health(space, alphas, genotype),
                **({} if table is None else {"table": table}),
                "warnings": warnings,
            },
        )
        _finish_phase("search", started, files, progress)
        pareto, evaluation = None, None
        if costs is not None:
            started = time.perf_counter()
            progress.update({"phase": "pareto", "kind": "start", "unit": costs.unit})
            pareto = pareto_record(
                course,
                space=space,
                supernet=supernet,
                costs=costs,
                valid=loader.valid,
                samples=config.pareto_samples,
                images=config.pareto_images,
                generator=Generator("cpu").manual_seed(seeds[3]),
                scores=scores,
            )
            files.write_json("pareto.json", pareto)
            _finish_phase("pareto", started, files, progress)
        if config.compare:
            started = time.perf_counter()
            draws = Generator("cpu").manual_seed(seeds[2])
            evaluation = evaluate_against_random(genotype, data, space, config, draws, progress)
            files.write_json("evaluation.json", evaluation)
            _finish_phase("evaluation", started, files, progress, **evaluation)
    return SearchResult(
        genotype=genotype,
        alphas=alphas,
        history=tuple(history),
        evaluation=evaluation,
        table=table,
        pareto=pareto,
        warnings=tuple(warnings),
        epoch=course.chosen,
        trained=bool(history),
        config=config,
        record=record,
        space=space,
        output=files.folder,
    )


def _record(
    space: SearchSpace,
    data: ImageData,
    algorithm: SearchAlgorithm,
    config: SearchConfig,
    loader: DeviceLoader,
    device: torch.device,
) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        **package_record(),
        "algorithm": algorithm.to_config(),
        "space": space.to_config(),
        "data": {
            **data_record(data),
            "train": loader.train_samples,
            "valid": loader.valid_samples,
            "split": loader.split,
        },
        "search": dataclasses.asdict(config),
        "device": str(device),
        "kernels": kernels_in_use(str(device)),
    }


def _finish_phase(
    phase: str, started: float, files: RunFiles, progress: Progress, **content: Any
) -> None:
    seconds = time.perf_counter() - started
    files.append("timing.jsonl", {"kind": "total", "phase": phase, "seconds": seconds})
    progress.update({"phase": phase, "kind": "end", "seconds": seconds, **content})
