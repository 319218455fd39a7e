"""Single-path sub-graphs of a supernet: drawing several at once, and the gates that run one.

All choice rows of all tables are stacked into one ``[rows, num_ops]`` matrix (a shorter row is
padded with ``-inf``), so that one sampler call serves a whole step.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas import ops
from pyfast_nas.nn import GateOutput, MixedOp, Supernet
from pyfast_nas.typing import Alphas

__all__ = [
    "Assignment",
    "SubGraphs",
    "draw_sub_graphs",
    "logits_of",
    "plackett_luce_log_prob",
    "shared_statistics",
    "single_path_gates",
    "stack_tables",
    "unstack_tables",
]

Assignment = Literal["rank", "shuffle"]


@dataclasses.dataclass(frozen=True)
class SubGraphs:
    """K sub-graphs that run different candidates at every row.

    Attributes:
        logits: Stacked architecture parameters they were drawn from, ``[rows, num_ops]``.
        indices: Drawn candidates, best first, ``[rows, K]``; -1 in a row that a GPU has refused.
        weights: Relaxed weights, ``[rows, K]``; column k belongs to sub-graph k.
        dealt: The candidate that each sub-graph runs at every row, ``[rows, K]``.
        rows: Rows of each table, in the order in which they are stacked.
        on_device: Whether the host never learns which candidates they are.
    """

    logits: Tensor
    indices: Tensor
    weights: Tensor
    dealt: Tensor
    rows: Mapping[str, int]
    on_device: bool = False

    @functools.cached_property
    def picks(self) -> tuple[tuple[int, ...], ...]:
        """For each sub-graph the candidate of every row: one wait for the device."""
        return tuple(map(tuple, self.dealt.t().tolist()))

    def selected(self, k: int) -> Tensor:
        """Return which candidates sub-graph ``k`` runs, bool ``[rows, num_ops]``."""
        return self.dealt[:, k : k + 1] == self._columns

    def ran(self) -> Tensor:
        """Return which candidates any sub-graph runs, bool ``[rows, num_ops]``."""
        return (self.dealt.unsqueeze(2) == self._columns).any(1)

    @functools.cached_property
    def _columns(self) -> Tensor:
        return torch.arange(self.logits.shape[1], device=self.logits.device)

    def gates(self, k: int, weights: Tensor | None = None) -> dict[str, GateOutput]:
        """Return the gates that run sub-graph ``k``; see :func:`single_path_gates`.

        Args:
            k: Number of the sub-graph.
            weights: In place of its relaxed weights, ``[rows]``.
        """
        weights = self.weights[:, k] if weights is None else weights
        picks = self.selected(k) if self.on_device else self.picks[k]
        return single_path_gates(self.rows, picks, weights)

    def mixed_gates(self) -> dict[str, GateOutput]:
        """Return the gates that run all K candidates of every row at once, mixed by their weights.

        A pass with these is one of the multi-path methods, the memory of which grows with K.

        Example:
            >>> drawn = draw_sub_graphs({"cell": torch.zeros(3, 4)}, 2, tau=1.0,
            ...                         seed=torch.tensor([0, 0]))
            >>> drawn.mixed_gates()["cell"].weights.shape
            torch.Size([3, 2])
        """
        counts = list(self.rows.values())
        if self.on_device:
            dense = torch.zeros_like(self.logits, dtype=self.weights.dtype)
            parts = dense.scatter(1, self.dealt.clamp(min=0), self.weights).split(counts)
            flags = self.ran().split(counts)
            gates = [GateOutput(w, selected=f) for w, f in zip(parts, flags, strict=True)]
        else:
            names = iter(zip(*self.picks, strict=True))
            gates = [
                GateOutput(w, tuple(itertools.islice(names, len(w))))
                for w in self.weights.split(counts)
            ]
        return dict(zip(self.rows, gates, strict=True))


def stack_tables(alphas: Alphas) -> Tensor:
    """Stack the rows of all tables, in order, padding shorter rows with ``-inf``.

    Example:
        >>> stack_tables({"a": torch.zeros(1, 2), "b": torch.ones(2, 3)})
        tensor([[0., 0., -inf],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    width = max(logits.shape[1] for logits in alphas.values())
    return torch.cat(
        [F.pad(logits, (0, width - logits.shape[1]), value=-math.inf) for logits in alphas.values()]
    )


def unstack_tables(stacked: Tensor, alphas: Alphas) -> dict[str, Tensor]:
    """Take rows that were stacked apart again, each table as wide as its own.

    Example:
        >>> alphas = {"a": torch.zeros(1, 2), "b": torch.ones(2, 3)}
        >>> parts = unstack_tables(stack_tables(alphas), alphas)
        >>> all(torch.equal(parts[table], rows) for table, rows in alphas.items())
        True
    """
    parts = stacked.split([len(rows) for rows in alphas.values()])
    return {t: part[:, : alphas[t].shape[1]] for t, part in zip(alphas, parts, strict=True)}


def draw_sub_graphs(
    alphas: Alphas,
    paths: int,
    *,
    tau: float,
    seed: Tensor,
    relaxation: Literal["shared", "conditional", "subset"] = "shared",
    assignment: Assignment = "rank",
    on_device: bool = False,
) -> SubGraphs:
    """Draw sub-graphs without replacement: rows are independent, no candidate serves two.

    The host asks once what was drawn, since that decides which modules run, unless the device is
    to skip what was not drawn.

    Args:
        alphas: Architecture parameters, table name -> ``[rows, num_ops]``.
        paths: Sub-graphs to draw (K), at most the candidates of the shortest row.
        tau: Temperature of the relaxed weights.
        seed: Seed and offset, int64 ``[2]``; stream 0 draws candidates, stream 1 deals them out.
        relaxation: One softmax for all ranks, one for each rank over what is left, or one for
            each rank over what is left softly: see `pyfast_nas.ops.gumbel_topk`.
        assignment: ``"rank"``: sub-graph k takes the k-th candidate of every row. ``"shuffle"``:
            every row deals its candidates out by a uniform permutation of its own.
        on_device: Whether the gates leave it to the device to skip what was not drawn.

    Raises:
        ValueError: If an alpha is NaN or +inf, or ``paths`` are more than the candidates of a row;
            on a GPU only where the host asks.

    Example:
        >>> alphas = {"cell": torch.zeros(3, 4)}
        >>> drawn = draw_sub_graphs(alphas, 4, tau=1.0, seed=torch.tensor([0, 0]))
        >>> [sorted(row) for row in zip(*drawn.picks)]
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    stacked = stack_tables(alphas)
    weights, indices = ops.gumbel_topk(stacked, paths, tau=tau, seed=seed, relaxation=relaxation)
    dealt = indices
    if assignment == "shuffle":
        deal = ops.philox_uniform(seed, *indices.shape, stream=1).argsort(dim=1, stable=True)
        weights, dealt = weights.gather(1, deal), indices.gather(1, deal)
    rows = {table: len(logits) for table, logits in alphas.items()}
    drawn = SubGraphs(stacked, indices, weights, dealt, rows, on_device)
    if not on_device and min(drawn.picks[0]) < 0:
        raise ValueError(
            f"draw_sub_graphs: alphas must hold no NaN, no +inf and at least {paths} candidates in "
            f"every row, got others in row {drawn.picks[0].index(-1)}"
        )
    return drawn


def logits_of(logits: Tensor, indices: Tensor) -> Tensor:
    """Return the logits of drawn candidates: NaN where the index says, by -1, that none was.

    An index of -1 must reach no gather or scatter, which on a GPU would end the process.

    Shape:
        logits ``[rows, num_ops]``, indices ``[rows, k]`` -> ``[rows, k]``.

    Example:
        >>> logits_of(torch.tensor([[1.0, 2.0], [3.0, torch.nan]]), torch.tensor([[1], [-1]]))
        tensor([[2.],
                [nan]])
    """
    found = logits.gather(1, indices.clamp(min=0))
    # A factor, so that derivatives are NaN as well.
    return found * torch.ones_like(found).masked_fill(indices < 0, math.nan)


def single_path_gates(
    rows: Mapping[str, int], picks: Sequence[int] | Tensor, weights: Tensor
) -> dict[str, GateOutput]:
    """Return the gates that run one candidate at every row, its output unscaled.

    Args:
        rows: Rows of each table, in the order of ``picks``.
        picks: Candidate of every row; or flags on the device, bool ``[rows, num_ops]``.
        weights: One per row; its value changes nothing, its gradient is that of a factor of
            value one on the row's output.

    Shape:
        weights ``[rows]``.

    Example:
        >>> gates = single_path_gates({"cell": 2}, [3, 0], torch.ones(2))
        >>> gates["cell"].active
        ((3,), (0,))
        >>> flags = torch.tensor([[False, True], [True, False]])
        >>> single_path_gates({"cell": 2}, flags, torch.ones(2))["cell"].weights.shape
        torch.Size([2, 2])
    """
    gates, start = {}, 0
    for table, count in rows.items():
        stop = start + count
        own, of_table = picks[start:stop], weights[start:stop].unsqueeze(1)
        if isinstance(own, Tensor):
            gates[table] = GateOutput(
                of_table.expand(own.shape), straight_through=True, selected=own
            )
        else:
            active = tuple((pick,) for pick in own)
            gates[table] = GateOutput(of_table, active, straight_through=True)
        start = stop
    return gates


def plackett_luce_log_prob(logits: Tensor, indices: Tensor) -> Tensor:
    r"""Return the log-probability of each row's ordered draw without replacement.

    .. math:: \log p(s^1..s^K) = \sum_k \Big(\alpha_{s^k}
              - \log\sum_{i \notin S_{<k}} e^{\alpha_i}\Big)

    Args:
        logits: Architecture parameters; ``-inf`` marks a padded candidate.
        indices: Drawn candidates, in the order of drawing.

    Shape:
        logits ``[rows, num_ops]``, indices ``[rows, k]`` -> ``[rows]``.

    Example:
        >>> logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        >>> plackett_luce_log_prob(logits, torch.tensor([[0, 1]])).exp()
        tensor([0.2000])

    References:
        Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them", ICML 2019, eq. 2.
    """
    taken = torch.zeros_like(logits, dtype=torch.bool)
    total = logits.new_zeros(logits.shape[0])
    for pick in indices.unbind(1):
        left = logits.masked_fill(taken, -math.inf).logsumexp(dim=1)
        total = total + logits_of(logits, pick.unsqueeze(1)).squeeze(1) - left
        taken = taken.scatter(1, pick.clamp(min=0).unsqueeze(1), True)
    return total


def shared_statistics(supernet: Supernet) -> nn.ModuleList:
    """Return the layers with running statistics that every sub-graph runs.

    Example:
        >>> from pyfast_nas import spaces
        >>> space = spaces.DARTS(channels=4, cells=1, track_running_stats=True)
        >>> len(shared_statistics(space.supernet()))  # of the stem and of both inputs of the cell
        3
    """
    inside = {
        layer
        for edge in supernet.modules()
        if isinstance(edge, MixedOp)
        for layer in edge.modules()
    }
    return nn.ModuleList(
        layer
        for layer in supernet.modules()
        if layer not in inside and getattr(layer, "track_running_stats", False)
    )
