"""Milliseconds that networks and the candidates of a supernet take on the device where they are.

Everything is timed alone, on a batch in evaluation mode without gradients, with the device idle
before and after each call; the median counts. Candidates are the plain `torch.nn` layers of a
derived network, of the supernet's sizes: neither our kernels nor what only a search needs runs.

The fixed part is timed too, as the network in which candidates hand out what they gave before: the
stem, the layers around the cells, the sums of all edges of a node, the classifier. It is no
difference of two large times. The sum is more than a whole network takes where layers overlap, as
launches on a GPU do; `measure_network` of a derived network says by how much.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyfast_nas import _ext
from pyfast_nas.costs.deployed import deployed
from pyfast_nas.costs.passes import check_shape, evaluating, takes
from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import ConfigError, SearchSpaceError
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.primitives import Zero
from pyfast_nas.nn.recognition import foreign_settings
from pyfast_nas.nn.supernet import Supernet

__all__ = ["measure_latency", "measure_network"]


def measure_latency(
    supernet: Supernet,
    input_shape: Sequence[int],
    *,
    warmup: int = 3,
    repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """Time every candidate of a supernet on its device, and the rest of the network.

    Candidates of one structure at inputs of one shape are timed once. A cost of a row is the sum
    over its places in the network; ``none`` takes no time, what an empty call takes is taken off
    from the others. The supernet itself is only read: a copy runs.

    Args:
        supernet: Says by ``placed_edges()`` where its candidates are.
        input_shape: Shape of a batch, ``(N, C, H, W)``.
        warmup: Calls before the first that is timed.
        repeats: Timed calls, whose median counts.
        clock: Returns seconds.

    Returns:
        A table in ``"ms"`` for a whole batch, which says what batch that is, and where it ran.

    Raises:
        ConfigError: If there is no call to time, or the shape is none.
        SearchSpaceError: If the supernet does not say where its candidates are, or does not take
            such a batch.

    Example:
        >>> from pyfast_nas import spaces
        >>> space = spaces.NASBench201(channels=4, cells=1)
        >>> costs = measure_latency(space.supernet(), (2, 3, 8, 8), warmup=1, repeats=3)
        >>> none, skip, conv, *_ = costs.rows["cell"][0].tolist()
        >>> none, skip < conv, costs.fixed > 0
        (0.0, True, True)

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 3.3.1 (the table); Vahdat et al., "UNAS",
        CVPR 2020, section 3.2 (the median of ten synchronised calls).
    """
    x = _batch(supernet, input_shape, "measure_latency")
    timer = _Timer(x.device, warmup, repeats, clock)
    plain = deployed(supernet)
    edges = list(plain.placed_edges())
    if not edges:
        raise SearchSpaceError(
            f"measure_latency: {type(supernet).__name__}.placed_edges must name every mixed "
            f"operation, got none"
        )
    candidates = [[edge.candidate(k) for k in range(edge.num_ops)] for _, _, edge in edges]
    with _alone(x.device), _ext.use("reference"):
        outcomes: dict[torch.Size, Tensor] = {}
        stand_ins = [_replace(edge, outcomes) for _, _, edge in edges]
        gates = _single_path(edges, plain, x)
        with takes(x.shape, "measure_latency"):
            plain(x, gates)
        fixed = timer.median(lambda: plain(x, gates))
        alone = _TimesAlone(timer)
        shapes = {t: (len(rows), max(map(len, rows))) for t, rows in plain.candidates.items()}
        rows = {t: torch.zeros(shape, dtype=torch.float64) for t, shape in shapes.items()}
        for (table, row, _), modules, stand_in in zip(edges, candidates, stand_ins, strict=True):
            for column, module in enumerate(modules):
                rows[table][row, column] += alone.of(module, stand_in.x)
    return CostTable("ms", fixed, rows, plain.candidates, _about(x))


def measure_network(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    warmup: int = 3,
    repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median time of a network's passes in milliseconds; nothing of it moves.

    Args:
        module: Any module that takes a batch; it runs where it is, as it is.
        input_shape: Shape of a batch, ``(N, C, H, W)``.
        warmup: Passes before the first that is timed.
        repeats: Timed passes.
        clock: Returns seconds.

    Raises:
        ConfigError: If there is no pass to time, or the shape is none.
        SearchSpaceError: If the network does not take such a batch.

    Example:
        >>> measure_network(nn.Conv2d(3, 8, 3), (2, 3, 8, 8), repeats=3) > 0
        True

    References:
        Vahdat et al., "UNAS", CVPR 2020, section 3.2.
    """
    x = _batch(module, input_shape, "measure_network")
    timer = _Timer(x.device, warmup, repeats, clock)
    with _alone(x.device), evaluating(module), takes(x.shape, "measure_network"):
        return timer.median(lambda: module(x))


@dataclass(frozen=True)
class _Timer:
    device: torch.device
    warmup: int
    repeats: int
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        for name, least in (("warmup", 0), ("repeats", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"measured latency: {name} must be an integer from {least}, got {value!r:.200}"
                )

    def median(self, call: Callable[[], object]) -> float:
        """Return how many milliseconds a call takes."""
        for _ in range(self.warmup):
            call()
        return 1e3 * statistics.median(self._once(call) for _ in range(self.repeats))

    def _once(self, call: Callable[[], object]) -> float:
        self._wait()
        start = self.clock()
        call()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _TimesAlone:
    """Times of single candidates, each kind at each shape measured once."""

    def __init__(self, timer: _Timer) -> None:
        self._timer = timer
        self._empty = timer.median(lambda: None)
        self._known: dict[Hashable, float] = {}

    def of(self, candidate: nn.Module, x: Tensor) -> float:
        """Return the milliseconds of a candidate."""
        if isinstance(candidate, Zero):
            return 0.0
        key = (_structure(candidate), x.shape)
        if key not in self._known:
            time = self._timer.median(lambda: candidate(x))
            self._known[key] = max(0.0, time - self._empty)
        return self._known[key]


class _StandIn(nn.Module):
    """Runs a candidate once, and from then on gives something of the same shape."""

    def __init__(self, candidate: nn.Module, outcomes: dict[torch.Size, Tensor]) -> None:
        super().__init__()
        self.x: Tensor | None = None
        self._candidate = candidate
        self._outcomes = outcomes  # by shape, shared by all: values do not matter
        self._y: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._y is None:
            y = self._candidate(x)
            self.x = self._outcomes.setdefault(x.shape, x)
            self._y = self._outcomes.setdefault(y.shape, y)
        return self._y


def _replace(edge: MixedOp, outcomes: dict[torch.Size, Tensor]) -> _StandIn:
    """Put a stand-in where the first candidate is that does anything."""
    column = edge.is_zero.index(False)
    stand_in = _StandIn(edge.candidate(column), outcomes)
    edge.candidates.add_module(edge.names[column], stand_in)
    return stand_in


def _single_path(
    edges: Sequence[tuple[str, int, MixedOp]], supernet: Supernet, x: Tensor
) -> dict[str, GateOutput]:
    """Return gates under which the stand-ins run and are summed as a plain network sums."""
    columns = {table: [(0,)] * len(rows) for table, rows in supernet.candidates.items()}
    for table, row, edge in edges:
        columns[table][row] = (edge.is_zero.index(False),)
    return {
        table: GateOutput(x.new_ones(len(active), 1), tuple(active), straight_through=True)
        for table, active in columns.items()
    }


def _structure(module: nn.Module) -> Hashable:
    """Return what tells apart candidates that do not take the same time."""
    return (
        tuple((type(part), repr(foreign_settings(part))) for part in module.modules()),
        tuple((t.shape, t.dtype) for t in itertools.chain(module.parameters(), module.buffers())),
    )


def _about(x: Tensor) -> str:
    """Say what a batch is, and on what it runs."""
    gpu = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else x.device.type
    count, *sides = x.shape
    return f"batch of {count}, {gpu}, {'x'.join(map(str, (*sides[1:], *sides[:1])))}"


def _batch(module: nn.Module, shape: Sequence[int], where: str) -> Tensor:
    """Return a batch of noise where the module is; torch's generators stay as they are."""
    shape = check_shape(shape, where)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(()))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Measure without gradients, and give torch's generators back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        yield
