r"""Binary gates of ProxylessNAS: values zero and one, and the gradient of the probabilities.

The value of a factor :math:`g + p - \mathrm{sg}(p)` is the gate's to the bit, and its derivative by
:math:`p` is the identity.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.sub_graphs import (
    SubGraphs,
    logits_of,
    stack_tables,
    unstack_tables,
)
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.typing import Alphas

__all__ = ["BinaryGates", "hold_the_others", "pair_gates", "path_gates"]


class BinaryGates(NamedTuple):
    """One drawn path, and the probabilities it counts for.

    Attributes:
        gates: Table name -> what runs.
        probabilities: Table name -> probability of every candidate, zero where it has no part.
    """

    gates: dict[str, GateOutput]
    probabilities: dict[str, Tensor]


def path_gates(logits: Alphas, drawn: SubGraphs, *, recompute: bool) -> BinaryGates:
    """Return the gates of one path, with a gradient for all candidates of each row.

    Args:
        logits: Architecture parameters with a gradient, minus infinity where there is no candidate.
        drawn: One path.
        recompute: Whether backward runs what forward leaves out; else forward runs everything.

    Example:
        >>> from pyfast_nas.algorithms.sub_graphs import draw_sub_graphs
        >>> logits = {"cell": torch.zeros(1, 4, requires_grad=True)}
        >>> drawn = draw_sub_graphs(logits, 1, tau=1.0, seed=torch.tensor([0, 0]))
        >>> binary = path_gates(logits, drawn, recompute=False)
        >>> binary.gates["cell"].weights.tolist(), binary.probabilities["cell"].tolist()
        ([[0.0, 1.0, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, eqs. 2-4.
    """
    p = stack_tables(logits).softmax(dim=1)
    selected = drawn.selected(0)
    weights = unstack_tables(_factors(selected, p), logits)
    flags = unstack_tables(selected, logits)
    gates, row = {}, 0
    for table, of_table in weights.items():
        if not recompute:
            gates[table] = GateOutput(of_table)
        elif drawn.on_device:
            gates[table] = GateOutput(of_table, selected=flags[table], recompute=True)
        else:
            active = tuple((pick,) for pick in drawn.picks[0][row : row + len(of_table)])
            gates[table] = GateOutput(of_table, active, recompute=True)
        row += len(of_table)
    return BinaryGates(gates, unstack_tables(p, logits))


def pair_gates(logits: Alphas, drawn: SubGraphs, seed: Tensor) -> BinaryGates:
    r"""Return the gates of two candidates a row, of which one counts, both with a gradient.

    .. math:: \tilde p = \mathrm{softmax}(\alpha_a, \alpha_b)

    Args:
        logits: Architecture parameters with a gradient, minus infinity where there is no candidate.
        drawn: Two paths; which of a row's two candidates is active is drawn from the restricted
            softmax, by stream 1 of the seed.
        seed: Seed and offset, int64 ``[2]``.

    Example:
        >>> from pyfast_nas.algorithms.sub_graphs import draw_sub_graphs
        >>> logits, seed = {"cell": torch.zeros(1, 4, requires_grad=True)}, torch.tensor([0, 0])
        >>> drawn = draw_sub_graphs(logits, 2, tau=1.0, seed=seed)
        >>> binary = pair_gates(logits, drawn, seed)
        >>> binary.gates["cell"].active, binary.probabilities["cell"].tolist()
        (((1, 2),), [[0.0, 0.5, 0.5, 0.0]])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 3.2.1.
    """
    stacked, pairs = stack_tables(logits), drawn.indices.clamp(min=0)
    restricted = logits_of(stacked, drawn.indices).softmax(dim=1)
    first = ops.philox_uniform(seed, len(pairs), 1, stream=1) < restricted[:, :1].detach()
    weights = _factors(torch.cat([first, ~first], dim=1), restricted)
    nothing = torch.zeros_like(stacked.detach())
    gates, row = {}, 0
    if drawn.on_device:
        flags = unstack_tables(drawn.ran(), logits)
        for table, of_table in unstack_tables(nothing.scatter(1, pairs, weights), logits).items():
            gates[table] = GateOutput(of_table, selected=flags[table])
    else:
        named = tuple(zip(*drawn.picks, strict=True))
        for table, count in drawn.rows.items():
            gates[table] = GateOutput(weights[row : row + count], named[row : row + count])
            row += count
    return BinaryGates(gates, unstack_tables(nothing.scatter(1, pairs, restricted), logits))


@torch.no_grad()
def hold_the_others(alphas: Alphas, before: Alphas, pairs: Tensor) -> None:
    r"""Take back what a step did beside its pairs, so that no other probability moves.

    .. math:: \alpha_i = \alpha'_i
              - \log\frac{e^{\alpha'_a} + e^{\alpha'_b}}{e^{\alpha_a} + e^{\alpha_b}},
              \quad i \in \{a, b\}

    Args:
        alphas: What the step has made of the architecture parameters; changed in place.
        before: What they were before it.
        pairs: Two candidates of each row, of all tables one below the other.

    Shape:
        each table ``[rows, num_ops]``, pairs ``[all rows, 2]``.

    Example:
        >>> before = {"cell": torch.tensor([[0.3, -0.2, 0.1, 0.5]])}
        >>> after = {"cell": torch.tensor([[9.0, -0.231, 9.0, 0.531]])}
        >>> hold_the_others(after, before, torch.tensor([[3, 1]]))
        >>> p, q = (rows["cell"].softmax(1)[0, [0, 2]] for rows in (before, after))
        >>> torch.allclose(p, q)
        True

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 3.2.1 and the authors' code.
    """
    row = 0
    for table, alpha in alphas.items():
        own = pairs[row : row + len(alpha)]
        old, new = logits_of(before[table], own), logits_of(alpha, own)
        shift = new.logsumexp(1, keepdim=True) - old.logsumexp(1, keepdim=True)
        alpha.copy_(before[table].scatter(1, own.clamp(min=0), new - shift))
        row += len(alpha)


def _factors(selected: Tensor, p: Tensor) -> Tensor:
    return selected.to(p.dtype) + (p - p.detach())
