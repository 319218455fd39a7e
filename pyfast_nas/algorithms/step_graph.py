"""The device's part of a search step, recorded once an epoch as a CUDA graph and replayed.

Temperatures and most learning rates change between epochs only, and stand in a recording as
numbers: so each epoch makes its own. Steps that do unlike things, such as those that move the
architecture and those that do not, are recorded apart, and may share memory: each writes all that
it reads. A step can be recorded where its work is the same every time: nothing of it is chosen by
numbers that the host would have to fetch. A search that runs only the candidates that it draws
leaves the choice on the device: all are launched, those not drawn end at once.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from pyfast_nas.algorithms.base import SearchAlgorithm, SharedWeightSearch
from pyfast_nas.typing import Batch, Metrics

__all__ = ["CUDAGraphs", "Recorder", "StepGraph"]

Run = Callable[[], Metrics]


class Recorder(Protocol):
    """Records what a function does on a device."""

    def warming_up(self) -> contextlib.AbstractContextManager[None]:
        """Run steps in here before the first recording."""

    def record(self, run: Run) -> Run:
        """Return what does the same again, with fresh metrics; ``run`` itself computes nothing."""


class CUDAGraphs:
    """Records on one GPU; all recordings share a pool of memory.

    Args:
        device: The GPU.
        generators: Sources of random numbers beside the default one that a step draws from.
    """

    def __init__(self, device: torch.device, generators: tuple[torch.Generator, ...] = ()) -> None:
        self._stream = torch.cuda.Stream(device)
        self._generators = generators
        self._pool = None

    @contextlib.contextmanager
    def warming_up(self) -> Iterator[None]:
        """Run steps on the stream of the recordings: what they allocate is found there again."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def record(self, run: Run) -> Run:
        """Return a replay.

        Raises:
            RuntimeError: If the step does something that a graph cannot hold.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            metrics = run()
        self._pool = graph.pool()

        def replay() -> Metrics:
            graph.replay()
            # The next replay writes over them.
            return {k: v.clone() if isinstance(v, Tensor) else v for k, v in metrics.items()}

        return replay


class StepGraph:
    """Makes the steps of an algorithm, by replaying a recording where there can be one.

    Args:
        algorithm: What searches, after its ``prepare``.
        recorder: What records; by default CUDA graphs, and nothing where there is no GPU.

    Attributes:
        reason: Why steps run as they are; empty while they are recorded.
        failed: Whether that is because a recording was tried and failed.

    Example:
        >>> from pyfast_nas import algorithms, spaces
        >>> space, search = spaces.Toy(), algorithms.DARTS()
        >>> search.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=1)
        >>> StepGraph(search).reason
        'the search runs on cpu'
    """

    # Steps that are made as they are before the first recording, and before the first that does
    # more: what a step keeps for the next, such as moments of an optimizer, must not be made in a
    # recording, which would make it anew at each replay.
    WARM_UP = 3

    def __init__(self, algorithm: SearchAlgorithm, recorder: Recorder | None = None) -> None:
        self._algorithm = algorithm
        self.failed = False
        self.reason = _why_not(algorithm, recorder)
        if not self.reason:
            device = algorithm.device
            self._recorder = recorder or CUDAGraphs(device, _generators_on(algorithm, device))
        self._warm: dict[tuple[bool, ...], int] = {}  # by what a step does, steps made as they are
        self._recorded: tuple[int, int] | None = None
        self._batches: tuple[Batch, Batch] | None = None
        self._replays: dict[tuple[bool, ...], Run] = {}

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one step; the same numbers as ``algorithm.step(train, valid)``."""
        if not self.reason and not self._warm:
            self.reason = self._algorithm.rehearse(train)
        if self.reason:
            return self._algorithm.step(train, valid)
        phase = self._algorithm.phase
        if (warm := self._warm.get(phase, 0)) < self.WARM_UP:
            self._warm[phase] = warm + 1
            return self._warm_up(train, valid)
        if self._batches is None:
            self._batches = _copy(train), _copy(valid)
        self._make_room(train, valid)
        if not _fits(train, self._batches[0]) or not _fits(valid, self._batches[1]):
            return self._algorithm.step(train, valid)  # the last batch of an epoch, perhaps
        self._algorithm.start_step()
        now = self._algorithm.epoch, self._algorithm.loads
        if self._recorded != now:
            self._replays.clear()  # gives their memory to the next
            self._recorded = now
        if phase not in self._replays:
            try:
                run_step, batches = self._algorithm.run_step, self._batches
                self._replays[phase] = self._recorder.record(lambda: run_step(*batches))
            except RuntimeError as error:
                self.failed, self._batches = True, None
                self._replays.clear()
                self.reason = str(error).splitlines()[0][:200]
                return self._finish(self._algorithm.run_step(train, valid))
        for static, batch in zip(self._batches, (train, valid), strict=True):
            for place, tensor in zip(static, batch, strict=True):
                place.copy_(tensor)
        return self._finish(self._replays[phase]())

    def _make_room(self, train: Batch, valid: Batch) -> None:
        """Record anew for larger batches: what was recorded was the short last of an epoch."""
        pairs = list(zip(self._batches, (train, valid), strict=True))
        larger = [len(batch[0]) > len(static[0]) for static, batch in pairs]
        if any(larger):
            self._replays.clear()
            self._batches = tuple(
                _copy(batch) if grows else static
                for (static, batch), grows in zip(pairs, larger, strict=True)
            )

    def _warm_up(self, train: Batch, valid: Batch) -> Metrics:
        self._algorithm.start_step()
        with self._recorder.warming_up(), self._algorithm.watching_draws() as drawn:
            metrics = self._algorithm.run_step(train, valid)
        if drawn():
            # A replay could not take them back: an architecture step leaves random streams alone.
            self.reason = "the supernet draws random numbers in the architecture step"
        return self._finish(metrics)

    def _finish(self, metrics: Metrics) -> Metrics:
        self._algorithm.finish_step()
        return metrics


def _why_not(algorithm: SearchAlgorithm, recorder: Recorder | None) -> str:
    if not isinstance(algorithm, SharedWeightSearch):
        return f"{type(algorithm).__name__} is no algorithm of this package"
    if algorithm.why_not_recorded:
        return algorithm.why_not_recorded
    if recorder is None and algorithm.device.type != "cuda":
        return f"the search runs on {algorithm.device.type}"
    return ""


def _generators_on(
    algorithm: SharedWeightSearch, device: torch.device
) -> tuple[torch.Generator, ...]:
    generator = algorithm.generator
    return (generator,) if generator is not None and generator.device == device else ()


def _copy(batch: Batch) -> Batch:
    return tuple(tensor.clone() for tensor in batch)


def _fits(batch: Batch, static: Batch) -> bool:
    return len(batch) == len(static) and all(
        isinstance(tensor, Tensor)
        and tensor.shape == place.shape
        and tensor.dtype == place.dtype
        and tensor.device == place.device
        for tensor, place in zip(batch, static, strict=True)
    )
