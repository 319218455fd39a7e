"""Training of one derived network from scratch, and its test accuracy."""

import dataclasses
import inspect
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas.algorithms.base import cosine
from pyfast_nas.data.augment import mixup
from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.data.loader import BatchStream, Normalize
from pyfast_nas.data.sources import load_data
from pyfast_nas.engine.config import TrainConfig, run_device
from pyfast_nas.engine.export import write_network
from pyfast_nas.engine.metrics import Means, MetricBuffer
from pyfast_nas.engine.preparation import data_record, fitted_space, package_record
from pyfast_nas.engine.presets import preset
from pyfast_nas.engine.progress import Progress, Silent
from pyfast_nas.engine.randomness import seeded
from pyfast_nas.engine.rates import timing_since
from pyfast_nas.engine.run_files import RunFiles
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces.base import Genotype, SearchSpace

__all__ = ["TrainResult", "evaluate", "train"]

_EVALUATION_BATCH = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A trained network and how good it is.

    Attributes:
        accuracy: Share of the test samples that are classified right, from 0 to 1.
        loss: Mean cross-entropy over the test samples.
        parameters: Trainable numbers, the auxiliary classifier left out.
        module: The network, in evaluation mode.
        history: One row an epoch: ``epoch``, ``train/loss``, ``train/accuracy``.
        paths: Files that were written, by name.
    """

    accuracy: float
    loss: float
    parameters: int
    module: nn.Module
    history: tuple[dict[str, Any], ...]
    paths: Mapping[str, Path]


def train(
    genotype: Genotype,
    data: Any,
    *,
    space: SearchSpace | str | None = None,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> TrainResult:
    """Train the network of a genotype from scratch on all training samples.

    Args:
        genotype: What to build, or the path of its JSON file.
        data: Anything :func:`pyfast_nas.data.load_data` takes.
        space: Where the genotype is from; by default the space of the name it carries.
        config: Options together.
        progress: Display that receives events.
        options: Options one by one, the fields of :class:`TrainConfig`; they go before ``config``.

    Raises:
        ConfigError: If an option is unknown or out of range.
        DataError: If the data are not what they ought to be.
        GenotypeError: If the genotype is not one of the space.
        DivergenceError: If the loss becomes NaN or infinite.

    Example:
        >>> from pyfast_nas import data, spaces
        >>> genotype = spaces.Toy().optimum()
        >>> result = train(genotype, data.toy_data(640), epochs=2, batch_size=64)
        >>> result.accuracy > 0.8
        True

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, appendix A.
    """
    config = TrainConfig.from_options(config, options)
    if not isinstance(genotype, Genotype):
        genotype = Genotype.load(genotype)
    data = load_data(data)
    config = config.resolved(data.name, data.image_size, genotype.space)
    of_name = preset(data.name, space_name=genotype.space).space_options
    space = fitted_space("train", genotype.space if space is None else space, data, **of_name)
    space.check(genotype)
    sizes = _sizes(space, config)
    device = run_device(config.device)
    if config.batch_size > len(data.train_y):
        raise ConfigError(
            f"train: batch_size must be at most {len(data.train_y)}, the training samples, "
            f"got {shown(config.batch_size)}"
        )
    files = RunFiles(config.output, overwrite=config.overwrite, function="train")
    files.write_json(
        "config.json",
        {**package_record(), "train": dataclasses.asdict(config), "space": space.to_config()}
        | {"data": data_record(data)},
    )
    files.write("genotype.json", genotype.to_json())
    started = time.perf_counter()
    with seeded(config.seed, device):
        module = space.build(genotype, **sizes).to(device)
        history = _fit(module, data, config, device, files, progress or Silent())
        if config.auxiliary:
            # It helps in training only: result and files are the network that is used.
            module.auxiliary = None
        normalize = Normalize(data, device)
        accuracy, loss = evaluate(module, data.test_x, data.test_y, normalize, device)
    parameters = sum(value.numel() for value in module.parameters())
    write_network(files, module, normalize(data.train_x[:2].to(device)))
    result = {"accuracy": accuracy, "loss": loss, "parameters": parameters}
    files.write_json("result.json", result)
    seconds = time.perf_counter() - started
    files.append("timing.jsonl", {"kind": "total", "phase": "train", "seconds": seconds})
    if progress is not None:
        progress.update({"phase": "train", "kind": "end", "seconds": seconds, **result})
    names = ("config.json", "genotype.json", "network.pt2", "result.json", "weights.npz")
    paths = {name: files.folder / name for name in names} if files.folder is not None else {}
    return TrainResult(module=module, history=tuple(history), paths=paths, **result)


@torch.no_grad()
def evaluate(
    module: nn.Module, x: Tensor, labels: Tensor, normalize: Normalize, device: torch.device
) -> tuple[float, float]:
    """Return accuracy, from 0 to 1, and mean cross-entropy of a network over raw samples.

    The network is left in evaluation mode.

    Shape:
        x ``[samples, ...]``, labels ``[samples]``.
    """
    module.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for part, wanted in zip(
        x.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True
    ):
        logits, wanted = module(normalize(part.to(device))), wanted.to(device)
        totals[0] += (logits.argmax(1) == wanted).sum()
        totals[1] += F.cross_entropy(logits, wanted, reduction="sum")
    accuracy, loss = (totals / len(labels)).tolist()
    return accuracy, loss


def _sizes(space: SearchSpace, config: TrainConfig) -> dict[str, Any]:
    """Return the options of the space's ``build``.

    Raises:
        ConfigError: If one is given that networks of the space do not have.
    """
    sizes = {"channels": config.channels, "cells": config.cells}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if config.auxiliary:
        sizes["auxiliary"] = True
    known = inspect.signature(space.build).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
        for name in (*sizes, *(["drop_path"] if config.drop_path else [])):
            if name not in known:
                raise ConfigError(
                    f"train: {name} must be left out or 0, since networks of the {space.name} "
                    f"space have none, got {shown(getattr(config, name))}"
                )
    return sizes


def _fit(
    module: nn.Module,
    data: ImageData,
    config: TrainConfig,
    device: torch.device,
    files: RunFiles,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train by SGD with momentum along a cosine; return one row an epoch."""
    stream = BatchStream(
        data.train_x.to(device),
        data.train_y.to(device),
        torch.arange(len(data.train_y), device="cpu"),
        config.batch_size,
        Normalize(data, device),
        seed=config.seed,
        augment=config.augment,
        flip=data.flip,
        cutout_size=config.cutout,
    )
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    steps = config.epochs * len(stream)
    event = {"phase": "train", "steps": steps, "epochs": config.epochs}
    progress.update({**event, "kind": "start", "steps_per_epoch": len(stream)})
    buffer, history, step = MetricBuffer("train"), [], 0
    module.train()
    for epoch in range(config.epochs):
        started, means = time.perf_counter(), Means()
        for group in optimizer.param_groups:
            group["lr"] = cosine(config.learning_rate, 0.0, epoch, config.epochs)
        if config.drop_path:
            module.drop_path = config.drop_path * epoch / config.epochs
        for place in range(1, len(stream) + 1):
            step += 1
            optimizer.zero_grad(set_to_none=True)
            loss, metrics = _loss(module, stream, data.num_classes, config)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip, foreach=True)
            optimizer.step()
            buffer.add(step, metrics)
            if step % config.log_interval == 0 or place == len(stream):
                for _, row in buffer.fetch():
                    means.add(row)
                timing = timing_since(started, place, config.batch_size, device)
                row = {"kind": "step", "epoch": epoch + 1, "step": step, **means.values()}
                left = (steps - step) / timing["steps_per_second"]
                progress.update({**event, **timing, **row, "seconds_left": left})
        row = {"kind": "epoch", "epoch": epoch + 1, **means.values()}
        timing = timing_since(started, len(stream), config.batch_size, device)
        timing |= {"kind": "epoch", "epoch": epoch + 1}
        history.append(row)
        files.append("metrics.jsonl", row)
        files.append("timing.jsonl", timing)
        progress.update({**event, **timing, **row})
    return history


def _loss(
    module: nn.Module, stream: BatchStream, num_classes: int, config: TrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the next batch and its metrics."""
    x, labels = stream.next()
    targets = labels
    if config.mixup:
        x, targets = mixup(
            x, labels, strength=config.mixup, num_classes=num_classes, generator=stream.draws
        )
    outputs = module(x)
    logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = F.cross_entropy(logits, targets)
    hits = (logits.detach().argmax(1) == labels).float().mean()
    metrics = {"train/loss": loss.detach(), "train/accuracy": hits}
    for auxiliary in others:
        loss = loss + config.auxiliary * F.cross_entropy(auxiliary, targets)
    return loss, metrics
