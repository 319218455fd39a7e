"""Architectures of a search held against what they cost, scored with the weights they share."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.random_search import genotype_gates
from pyfast_nas.costs import CostTable, pareto_front
from pyfast_nas.data.loader import BatchStream
from pyfast_nas.engine.course import Course
from pyfast_nas.engine.scores import TableScores
from pyfast_nas.nn import Supernet, frozen_statistics
from pyfast_nas.spaces.base import Genotype, SearchSpace
from pyfast_nas.typing import Alphas, Batch

__all__ = ["draw_genotypes", "pareto_record", "shared_accuracies"]

_PATIENCE = 16  # draws for each architecture that is wanted; a decided search has few to draw


def pareto_record(
    course: Course,
    *,
    space: SearchSpace,
    supernet: Supernet,
    costs: CostTable,
    valid: BatchStream,
    samples: int,
    images: int,
    generator: Generator,
    scores: TableScores | None = None,
) -> dict[str, Any]:
    """Judge what the epochs derived and what the final probabilities give, for accuracy and cost.

    Neither weights nor statistics nor random streams but ``generator`` move.

    Args:
        course: What the search has been through.
        space: Where it searched.
        supernet: Network with the shared weights.
        costs: Of the candidates of ``supernet``.
        valid: Where validation images come from; its place is kept.
        samples: Architectures to draw, fewer where the probabilities do not give so many.
        images: Validation images, in whole batches.
        generator: CPU generator of the drawn architectures and of the images.
        scores: Table whose test accuracy shall stand beside each.

    Returns:
        The content of ``pareto.json``: architectures from the cheapest to the costliest.
    """
    final, alphas = course.found[course.chosen]
    derived = {_edges(final): (final, [])}
    for epoch, (genotype, _) in enumerate(course.found[1:], start=1):
        derived.setdefault(_edges(genotype), (genotype, []))[1].append(epoch)
    found = list(derived.values())
    besides = [genotype for genotype, _ in found]
    drawn = draw_genotypes(space, alphas, samples, ops.draw_seed(generator), besides=besides)
    found += [(genotype, []) for genotype in drawn]
    count = min(max(images // valid.batch_size, 1), len(valid))
    batches = valid.plain_batches(count, generator)
    accuracies = shared_accuracies([genotype for genotype, _ in found], supernet, batches)
    prices = [costs.of(genotype, space.candidates) for genotype, _ in found]
    rows = [
        {
            "hash": genotype.hash,
            "genotype": genotype.to_dict(),
            "source": "final" if genotype is final else "epoch" if epochs else "sample",
            "epochs": epochs,
            "accuracy": accuracy,
            "cost": price,
            "on_front": on_front,
            **({} if scores is None else {"test": scores.row(genotype)["table/test"]}),
        }
        for (genotype, epochs), accuracy, price, on_front in zip(
            found, accuracies, prices, pareto_front(prices, accuracies), strict=True
        )
    ]
    rows.sort(key=lambda row: (row["cost"], -row["accuracy"], row["hash"]))
    return {
        "unit": costs.unit,
        **({"about": costs.about} if costs.about else {}),
        "images": count * valid.batch_size,
        **({} if scores is None else {"column": scores.columns[1]}),
        "architectures": rows,
    }


def draw_genotypes(
    space: SearchSpace,
    alphas: Alphas,
    count: int,
    seed: Tensor,
    *,
    besides: Collection[Genotype] = (),
) -> list[Genotype]:
    """Draw distinct architectures: each derived from logits with Gumbel noise added.

    Where a space takes the largest logit of every row, as NAS-Bench-201 does, that is a draw from
    the softmax of the row.

    Args:
        space: Where they come from.
        alphas: Logits by table, on the CPU.
        count: How many, at most; fewer if no more turn up in sixteen times as many draws.
        seed: Seed and offset, int64 ``[2]``, on the CPU.
        besides: What shall not be among them.

    Raises:
        DivergenceError: If a logit is NaN or infinite.

    Example:
        >>> from pyfast_nas.spaces import Toy
        >>> alphas = {"cell": torch.zeros(2, 4)}
        >>> len(draw_genotypes(Toy(), alphas, 100, torch.tensor([0, 0])))
        16
    """
    known, drawn = {_edges(genotype) for genotype in besides}, []
    for noisy in _noisy(alphas, seed, _PATIENCE * count):
        if len(drawn) == count or len(known) == space.size():
            break
        genotype = space.derive(noisy)
        if (edges := _edges(genotype)) not in known:
            known.add(edges)
            drawn.append(genotype)
    return drawn


def shared_accuracies(
    genotypes: Sequence[Genotype], supernet: Supernet, batches: Sequence[Batch]
) -> list[float]:
    """Return the accuracy of each architecture with the weights of a supernet.

    Only what an architecture runs is computed. Batch norms take the statistics of each batch, as in
    the search; what is not finite counts as wrong. Nothing moves.

    Args:
        genotypes: Architectures of the supernet's space.
        supernet: Network with the shared weights.
        batches: Images and classes, on its device.

    Raises:
        GenotypeError: If the supernet has no such edge or candidate.
    """
    device = batches[0][0].device
    with (
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        frozen_statistics(supernet),
    ):
        # Fetched together: the host waits for the device once.
        hits = torch.stack([_hits(genotype, supernet, batches) for genotype in genotypes])
    total = sum(len(labels) for _, labels in batches)
    return [count / total for count in hits.tolist()]


def _hits(genotype: Genotype, supernet: Supernet, batches: Sequence[Batch]) -> Tensor:
    gates, counts = genotype_gates(genotype, supernet), []
    for x, labels in batches:
        outputs = supernet(x, gates)
        counts.append(((outputs.argmax(1) == labels) & outputs.isfinite().all(1)).sum())
    return torch.stack(counts).sum()


def _noisy(alphas: Alphas, seed: Tensor, draws: int) -> Iterator[dict[str, Tensor]]:
    rows = [len(logits) for logits in alphas.values()]
    columns = max(logits.shape[1] for logits in alphas.values())
    for draw in range(draws):
        shift = torch.tensor([0, draw], device=seed.device)
        noise = ops.gumbel_noise(seed + shift, sum(rows), columns)
        yield {
            table: logits + part[:, : logits.shape[1]].to(logits.dtype)
            for (table, logits), part in zip(alphas.items(), noise.split(rows), strict=True)
        }


def _edges(genotype: Genotype) -> frozenset[tuple[Any, ...]]:
    """What a genotype computes: the order of its edges is no part of that."""
    return frozenset(
        (table, edge.source, edge.target, edge.op)
        for table, edges in genotype.cells.items()
        for edge in edges
    )
