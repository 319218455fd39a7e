"""A run folder made by hand: what the pages and pictures are drawn from."""

import json
import math
from pathlib import Path

import pytest
import torch

from pyfast_nas.spaces import DARTS


class Runs:
    """Writes run folders; every keyword is one thing that a test wants different."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    def make(
        self,
        name="run",
        *,
        space=None,
        epochs=3,
        drift=0.4,
        verdict="tie",
        evaluation=True,
        notes=(),
        accuracies=((0.95, 0.96, 0.955), (0.94, 0.96, 0.95)),
        warnings=(),
        measured=None,
    ) -> Path:
        folder = self.parent / name
        folder.mkdir()
        space = space or DARTS(channels=4, cells=3, in_channels=1, image_size=8)
        generator = torch.Generator().manual_seed(0)
        alphas = {
            table: 1e-3 * torch.randn(len(rows), len(rows[0]), generator=generator)
            for table, rows in space.candidates.items()
        }
        lines = [{"epoch": 0, "alphas": _rows(alphas)}]
        metrics, timing = [], []
        for epoch in range(1, epochs + 1):
            for table in alphas:
                moved = torch.randn(alphas[table].shape, generator=generator)
                alphas[table] = alphas[table] + drift * moved
            lines.append({"epoch": epoch, "alphas": _rows(alphas)})
            metrics.append(
                {
                    "kind": "epoch",
                    "epoch": epoch,
                    "train/loss": 2.0 * math.exp(-epoch / 3),
                    "valid/loss": 2.2 * math.exp(-epoch / 3),
                    "train/accuracy": 1 - math.exp(-epoch / 2),
                    "valid/accuracy": 0.9 - math.exp(-epoch / 2),
                    "entropy": 1 - 0.1 * epoch,
                    "margin": 0.05 * epoch,
                    "skip_count": dict.fromkeys(alphas, 1),
                }
            )
            timing.append(
                {"kind": "epoch", "epoch": epoch, "seconds": 2.0, "memory_bytes": 300 << 20}
                | {"images_per_second": 600.0, "steps_per_second": 9.0}
            )
        timing.append({"kind": "total", "phase": "search", "seconds": 75.0})
        genotype = space.derive(alphas)
        config = {
            "package": "pyfast_nas",
            "version": "0.1.0",
            "algorithm": {"name": "darts", "alpha_lr": 3e-4},
            "space": space.to_config(),
            "data": {"name": "digits", "train": 720, "valid": 720, "test": 357, "num_classes": 10}
            | {"image": [1, 8, 8], "notes": list(notes)},
            "search": {"epochs": epochs, "batch_size": 64, "seed": 0},
            "kernels": {"mixed_sum": "compiled", "gumbel_topk": "compiled"},
            "versions": {"torch": "2.13.0"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        result = {"warnings": list(warnings)} | ({} if measured is None else {"table": measured})
        (folder / "result.json").write_text(json.dumps(result))
        for file, rows in (("alphas", lines), ("metrics", metrics), ("timing", timing)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{file}.jsonl").write_text(text)
        genotype.save(folder / "genotype.json")
        if evaluation:
            groups = {
                key: [
                    {"seed": seed, "accuracy": value, "loss": 0.2, "parameters": 41234}
                    for seed, value in enumerate(values)
                ]
                for key, values in zip(("searched", "random"), accuracies, strict=True)
            }
            content = {"epochs": 5, "channels": 8, "cells": 3, **groups, "verdict": verdict}
            content |= {"difference": 0.005, "standard_error": 0.0066}
            content["sentence"] = f"The verdict is: {verdict}."
            (folder / "evaluation.json").write_text(json.dumps(content))
        return folder


def _rows(alphas):
    return {table: values.tolist() for table, values in alphas.items()}


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)
