"""The found architecture and random ones, trained alike: what a search has to be held against."""

from collections.abc import Mapping
from typing import Any

from torch import Generator

from pyfast_nas.data.image_data import ImageData
from pyfast_nas.engine.compare import compare
from pyfast_nas.engine.config import SearchConfig, TrainConfig
from pyfast_nas.engine.progress import Progress
from pyfast_nas.engine.train import train
from pyfast_nas.spaces.base import Genotype, SearchSpace

__all__ = ["evaluate_against_random"]


def evaluate_against_random(
    genotype: Genotype,
    data: ImageData,
    space: SearchSpace,
    config: SearchConfig,
    generator: Generator,
    progress: Progress,
) -> dict[str, Any]:
    """Train the found architecture from several seeds, and random ones once each; compare.

    Args:
        genotype: What the search found.
        data: What to train and test on.
        space: Where random architectures are drawn from.
        config: Resolved options of the search.
        generator: CPU generator of the random architectures.
        progress: Display that receives events.

    Returns:
        The content of ``evaluation.json``.
    """
    rivals = [space.random_genotype(generator) for _ in range(config.compare)]
    networks = [("searched", index, genotype) for index in range(config.compare_seeds)]
    networks += [("random", index, rival) for index, rival in enumerate(rivals)]
    event = {"phase": "evaluation", "networks": len(networks), "epochs": config.train_epochs}
    progress.update({**event, "kind": "start"})
    rows: dict[str, list[dict[str, Any]]] = {"searched": [], "random": []}
    for place, (group, index, candidate) in enumerate(networks):
        seed = (config.seed + index) % 2**63
        result = train(
            candidate,
            data,
            space=space,
            config=_train_config(config, seed),
            progress=_Relay(progress, {**event, "group": group, "index": place}),
        )
        row = {
            "seed": seed,
            "accuracy": result.accuracy,
            "loss": result.loss,
            "parameters": result.parameters,
        }
        progress.update({**event, "kind": "network", "group": group, "index": place, **row})
        rows[group].append(row | ({"genotype": candidate.to_dict()} if group == "random" else {}))
    comparison = compare(
        [row["accuracy"] for row in rows["searched"]],
        [row["accuracy"] for row in rows["random"]],
        test_samples=len(data.test_y),
    )
    evaluation = {
        "epochs": config.train_epochs,
        "channels": config.train_channels,
        "cells": config.train_cells,
        **rows,
        "difference": comparison.difference,
        "standard_error": comparison.standard_error,
        "verdict": comparison.verdict,
        "sentence": comparison.sentence,
    }
    return evaluation


def _train_config(config: SearchConfig, seed: int) -> TrainConfig:
    return TrainConfig(
        channels=config.train_channels,
        cells=config.train_cells,
        epochs=config.train_epochs,
        batch_size=config.train_batch_size,
        augment=config.augment,
        device=config.device,
        seed=seed,
    )


class _Relay:
    """Passes the steps of one training on as steps of the evaluation."""

    def __init__(self, progress: Progress, event: Mapping[str, Any]):
        self._progress = progress
        self._event = event

    def update(self, event: Mapping[str, Any]) -> None:
        """Take one event of the training."""
        if event["kind"] == "step":
            self._progress.update({**event, **self._event})
