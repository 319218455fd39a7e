"""Random search with weight sharing: the baseline that every search is held against.

Li & Talwalkar, "Random Search and Reproducibility for Neural Architecture Search", UAI 2019,
arXiv 1902.07638.

As printed (section 3.3): every weight step trains one architecture drawn uniformly; at the end
random architectures are scored with the shared weights on one validation batch, the best few of
them on more, and the best of these is taken. Ours: a training step draws a candidate at every row,
also at rows that a genotype would leave out; the score is the loss, on the last batches seen.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.base import SharedWeightSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.algorithms.sub_graphs import draw_sub_graphs
from pyfast_nas.errors import DivergenceError
from pyfast_nas.nn import GateOutput, Supernet, frozen_statistics
from pyfast_nas.spaces import Genotype
from pyfast_nas.spaces.choices import choices_of
from pyfast_nas.typing import Batch, Metrics

__all__ = ["RandomSearch", "genotype_gates"]


@dataclasses.dataclass(kw_only=True, eq=False)
class RandomSearch(SharedWeightSearch):
    """Train uniformly drawn architectures with shared weights, then take the best of a sample.

    The architecture parameters never move. Each step draws one seed from the generator, and
    :meth:`prepare` one for the sample, so that :meth:`derive` scores the same sample at any time.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = RandomSearch(samples=4)
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> sorted(algorithm.step(batch, batch))
        ['train/accuracy', 'train/loss']
        >>> algorithm.derive().space
        'toy'

    References:
        Li & Talwalkar, UAI 2019, section 3.3.
    """

    name: ClassVar[str] = "random"

    samples: Annotated[int, Range(at_least=1)] = 100
    """Random architectures scored at the end, on the last validation batch."""

    finalists: Annotated[int, Range(at_least=1)] = 10
    """Best of them that are scored again, on all validation batches that were kept."""

    score_batches: Annotated[int, Range(at_least=1)] = 8
    """Validation batches kept for scoring: the last ones seen."""

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search and make the optimizer; see the base class."""
        super().prepare(supernet, **run)
        self.kept: collections.deque[Batch] = collections.deque(maxlen=self.score_batches)
        self.sample_seed = ops.draw_seed(self.generator)
        self.uniform = {
            table: logits.where(logits.isneginf(), 0.0) for table, logits in self._logits().items()
        }

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Train one uniformly drawn architecture on ``train``; keep ``valid`` for scoring."""
        self.start_step()
        self.kept.append(valid)
        seed = ops.draw_seed(self.generator, self.device)
        drawn = draw_sub_graphs(self.uniform, 1, tau=1.0, seed=seed)
        with self._weight_update():
            loss, _, metrics = self._evaluate("train", train, drawn.gates(0))
            loss.backward()
        self.finish_step()
        return metrics

    def derive(self) -> Genotype:
        """Return the sampled architecture with the lowest validation loss, the first of equals.

        Without a step behind it, the first architecture of the sample.

        Raises:
            DivergenceError: If no architecture has a finite loss.
            RuntimeError: If :meth:`prepare` was not called.
        """
        self._require_prepared("derive")
        generator = torch.Generator().manual_seed(int(self.sample_seed[0]))
        sample = [self.space.random_genotype(generator) for _ in range(self.samples)]
        if not self.kept:
            return sample[0]
        for batches, places in (([self.kept[-1]], self.finalists), (self.kept, 1)):
            losses = torch.stack([self._score(genotype, batches) for genotype in sample]).tolist()
            order = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
            if not order:
                raise DivergenceError(
                    f"derive: the validation loss must be finite, got {losses[0]} for each of "
                    f"{len(losses)} architectures after step {self.steps}"
                )
            sample = [sample[index] for index in sorted(order, key=losses.__getitem__)[:places]]
        return sample[0]

    def _score(self, genotype: Genotype, batches: Iterable[Batch]) -> Tensor:
        """Mean validation loss with the shared weights; leaves no trace."""
        gates = genotype_gates(genotype, self.supernet)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), frozen_statistics(self.supernet):
            return torch.stack([self._evaluate("valid", b, gates)[0] for b in batches]).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {
            "kept": [tuple(batch) for batch in self.kept],
            "sample_seed": self.sample_seed.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`."""
        super().load_state_dict(state)
        self.kept.clear()
        self.kept.extend(tuple(t.to(self.device) for t in batch) for batch in state["kept"])
        self.sample_seed = state["sample_seed"]


def genotype_gates(genotype: Genotype, supernet: Supernet) -> dict[str, GateOutput]:
    """Return the gates under which a supernet computes what a genotype's cells compute.

    Edges that the genotype leaves out weigh zero; see `pyfast_nas.spaces.choices.choices_of`.

    Raises:
        GenotypeError: If the supernet has no such edge or candidate.

    Example:
        >>> from pyfast_nas import spaces
        >>> gates = genotype_gates(spaces.Toy().optimum(), spaces.Toy().supernet())
        >>> gates["cell"].active
        ((0,), (0,))
    """
    device = next(iter(supernet.alphas.values())).device
    gates = {}
    for table, flags in choices_of(genotype, supernet.candidates).items():
        rows, kept = supernet.candidates[table], flags.any(1)
        active = [
            (row.index(True),) if True in row else (names.index("none") if "none" in names else 0,)
            for row, names in zip(flags.tolist(), rows, strict=True)
        ]
        gates[table] = GateOutput(kept.float().unsqueeze(1).to(device), tuple(active))
    return gates
