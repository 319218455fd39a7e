r"""Parameters, multiply-adds and memory accesses of networks and of every candidate of a supernet.

A pass on torch's ``meta`` device shows every operator with its shapes and computes nothing. Counted
are convolutions, matrix products, pooling windows and identities; norms, activations and sums are
taken as parts of the layer beside them.

With :math:`y` the side of the output, :math:`s` the stride, :math:`C_i, C_o` the channels and
:math:`n` the parameters of a convolution with window :math:`k` in :math:`g` groups, it costs

.. math::
    C_i C_o k^2 y^2 / g \text{ multiply-adds},\qquad
    C_i (s y)^2 + C_o y^2 + n \text{ accesses to memory};

a pooling no multiply-adds and :math:`C (s y)^2 + C y^2` accesses, an identity :math:`2 C y^2`.
Operations are multiply-adds and the :math:`C k^2 y^2` values that a pooling compares or adds.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from pyfast_nas.costs.passes import check_shape, evaluating, takes
from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.primitives import SkipConnect
from pyfast_nas.nn.supernet import Supernet

__all__ = ["UNITS", "EdgeCosts", "count", "count_edges", "count_network"]

UNITS = ("parameters", "multiply-adds", "operations", "memory-access")

_Counts = dict[nn.Module | None, list[int]]  # by owner, in the last three units


def count(supernet: Supernet, input_shape: Sequence[int]) -> dict[str, CostTable]:
    """Count what every candidate of a supernet costs for one input, and what is always there.

    Nothing of the supernet moves, neither statistics nor modes nor random streams.

    Args:
        supernet: Says by ``placed_edges()`` where its candidates are.
        input_shape: Shape of a batch, ``(N, C, H, W)``; what is counted is for one of its inputs.

    Returns:
        By unit of `UNITS` a table.

    Raises:
        ConfigError: If the shape is none.
        SearchSpaceError: If the supernet does not say where its candidates are, does not take
            such a batch, or leaves one out in a pass under its own gates.

    Example:
        >>> from pyfast_nas import spaces
        >>> tables = count(spaces.NASBench201().supernet(), (1, 3, 32, 32))
        >>> tables["parameters"].of({"cell": torch.ones(6, 5)})
        1692826.0
        >>> [round(cost) for cost in tables["multiply-adds"].rows["cell"][0].tolist()]
        [0, 0, 3932160, 35389440, 0]

    References:
        Xie, Zheng, Liu & Lin, "SNAS", ICLR 2019, section 2.4 and the authors' code (accesses).
    """
    edges, fixed = count_edges(supernet, input_shape)
    shapes = {t: (len(rows), max(map(len, rows))) for t, rows in supernet.candidates.items()}
    tables = {}
    for unit in UNITS:
        costs = {t: torch.zeros(shape, dtype=torch.float64) for t, shape in shapes.items()}
        for edge in edges:
            costs[edge.table][edge.row, : len(edge.costs[unit])] += edge.costs[unit]
        tables[unit] = CostTable(unit, fixed[unit], costs, supernet.candidates)
    return tables


class EdgeCosts(NamedTuple):
    """What the candidates of one mixed operation cost.

    Attributes:
        table: Table of its weights.
        row: Its row there.
        costs: Unit -> cost of every candidate, float64 ``[num_ops]``.
    """

    table: str
    row: int
    costs: dict[str, Tensor]


def count_edges(
    supernet: Supernet, input_shape: Sequence[int]
) -> tuple[list[EdgeCosts], dict[str, int]]:
    """Count as `count` does, but each place of the network for itself.

    Args:
        supernet: Says by ``placed_edges()`` where its candidates are.
        input_shape: Shape of a batch, ``(N, C, H, W)``; what is counted is for one of its inputs.

    Returns:
        The edges in the supernet's order, and by unit what is always there.

    Raises:
        ConfigError: If the shape is none.
        SearchSpaceError: If the supernet does not say where its candidates are, does not take
            such a batch, or leaves one out in a pass under its own gates.

    Example:
        >>> from pyfast_nas import spaces
        >>> edges, fixed = count_edges(spaces.DARTS(cells=3).supernet(), (1, 3, 32, 32))
        >>> len(edges), edges[0].costs["parameters"].tolist()[3:6]
        (42, [0.0, 800.0, 1312.0])
    """
    edges = list(supernet.placed_edges())
    if not edges:
        raise SearchSpaceError(
            f"count: {type(supernet).__name__}.placed_edges must name every mixed operation, "
            f"got none"
        )
    counts = _counts(supernet, input_shape, [m for _, _, edge in edges for m in _parts(edge)])
    found = []
    for table, row, edge in edges:
        for module, name, is_zero in zip(_parts(edge), edge.names, edge.is_zero, strict=True):
            if module not in counts and not is_zero:
                raise SearchSpaceError(
                    f"count: {type(supernet).__name__} must run every candidate, got a pass "
                    f"without {name!r} of row {row} of {table!r}"
                )
        columns = [[_parameters(m.parameters()), *counts.get(m, (0, 0, 0))] for m in _parts(edge)]
        costs = torch.tensor(columns, dtype=torch.float64).unbind(1)
        found.append(EdgeCosts(table, row, dict(zip(UNITS, costs, strict=True))))
    chosen = sum(int(edge.costs["parameters"].sum()) for edge in found)
    fixed = [_parameters(supernet.weight_parameters()) - chosen, *counts[None]]
    return found, dict(zip(UNITS, fixed, strict=True))


def count_network(network: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Count what a network costs for one input, in evaluation mode; nothing of it moves.

    Args:
        network: Any module that takes a batch.
        input_shape: Shape of a batch, ``(N, C, H, W)``; what is counted is for one of its inputs.

    Returns:
        By unit of `UNITS` a number.

    Raises:
        ConfigError: If the shape is none.
        SearchSpaceError: If the network does not take such a batch.

    Example:
        >>> count_network(nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 8, 8))
        {'parameters': 224, 'multiply-adds': 3456, 'operations': 3456, 'memory-access': 544}
    """
    passed = _counts(network, input_shape)[None]
    return dict(zip(UNITS, [_parameters(network.parameters()), *passed], strict=True))


def _parts(edge: MixedOp) -> list[nn.Module]:
    return [edge.candidate(column) for column in range(edge.num_ops)]


def _parameters(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _counts(
    model: nn.Module, input_shape: Sequence[int], owners: Iterable[nn.Module] = ()
) -> _Counts:
    """Count one input's share of a pass by owner; what no owner does stands at None."""
    owners, (_, *sides) = list(owners), check_shape(input_shape, "count")
    # A batch of one has no variance: what is linear in the batch is known from two larger ones.
    with takes(input_shape, "count"):
        two, three = (_pass(model, (batch, *sides), owners) for batch in (2, 3))
    return {o: [2 * a - b for a, b in zip(two[o], three[o], strict=True)] for o in two}


def _pass(model: nn.Module, shape: Sequence[int], owners: Sequence[nn.Module]) -> _Counts:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    x = torch.empty(shape, device="meta", dtype=next(dtypes, torch.get_default_dtype()))
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    counter = _Counter()
    with (
        torch.random.fork_rng(devices=()),
        torch.no_grad(),
        evaluating(model),
        _hooked(model, counter, owners),
        counter,
    ):
        functional_call(model, on_meta, (x,))
    return counter.counts


@contextlib.contextmanager
def _hooked(model: nn.Module, counter: "_Counter", owners: Sequence[nn.Module]) -> Iterator[None]:
    """Tell the counter which owner runs; hooks go off in the order of their registration."""
    handles = []
    try:
        for module in model.modules():
            if isinstance(module, nn.Identity | SkipConnect):
                handles.append(module.register_forward_hook(counter.add_identity))
        for owner in owners:
            handles.append(owner.register_forward_pre_hook(counter.enter))
            handles.append(owner.register_forward_hook(counter.leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _convolution(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride, *rest):
    is_transposed = rest[2]
    done = (x if is_transposed else y).numel() * weight[0].numel()
    read = x.numel() if is_transposed else _stepped_over(y, x, stride)
    return done, done, read + y.numel() + weight.numel() + (0 if bias is None else bias.numel())


def _pooling(y: Tensor | tuple[Tensor, Tensor], x: Tensor, window, stride=(), *rest):
    y = y if isinstance(y, Tensor) else y[0]  # maxima come with their places
    return 0, y.numel() * math.prod(window), _stepped_over(y, x, stride or window) + y.numel()


def _stepped_over(y: Tensor, x: Tensor, stride: Sequence[int]) -> int:
    """Count the inputs that all windows step over together: all of them, but never the padding."""
    sides = [n * step for n, step in zip(y.shape[-len(stride) :], stride, strict=True)]
    return math.prod((*x.shape[: -len(stride)], *sides))


def _product(y: Tensor, a: Tensor, b: Tensor, added: Tensor | None = None):
    done = y.numel() * a.shape[-1]
    return done, done, sum(t.numel() for t in (a, b, y, added) if t is not None)


def _product_and_sum(y: Tensor, added: Tensor, a: Tensor, b: Tensor, **factors):
    return _product(y, a, b, added)


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., tuple[int, int, int]]] = {
    _aten.convolution: _convolution,
    _aten.max_pool2d_with_indices: _pooling,
    _aten.avg_pool2d: _pooling,
    _aten.mm: _product,
    _aten.bmm: _product,
    _aten.addmm: _product_and_sum,
    _aten.baddbmm: _product_and_sum,
}
# What torch takes ten times as long for as for all the rest: here only shapes are asked for.
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.relu: torch.empty_like,
    _aten.addcmul_: lambda total, *terms, **factors: total,
    _aten.native_batch_norm: lambda x, *rest: (torch.empty_like(x), x, x),
}


class _Counter(TorchDispatchMode):
    """Adds up what the operators of a pass cost, for the owner that runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: _Counts = {None: [0, 0, 0]}
        self.running: list[nn.Module | None] = [None]

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)
        self.counts.setdefault(module, [0, 0, 0])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def add_identity(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.add(0, 0, 2 * output.numel())

    def add(self, *found: int) -> None:
        counts = self.counts[self.running[-1]]
        counts[:] = [before + more for before, more in zip(counts, found, strict=True)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outcome = _SHAPES.get(func.overloadpacket, func)(*args, **(kwargs or {}))
        if rule := _RULES.get(func.overloadpacket):
            self.add(*rule(outcome, *args, **(kwargs or {})))
        return outcome
