"""Capture and replay; on the CPU a stand-in that runs the call again, into the same results."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[], Sequence[Tensor]]


class _Again:
    """Has of a CUDA graph what a test asks for: replay writes where the capture wrote."""

    def __init__(self, call: Call, results: Sequence[Tensor]) -> None:
        self._call, self._results = call, results

    def replay(self) -> None:
        with torch.no_grad():
            fresh = [result.clone() for result in self._fresh()]
            for there, here in zip(self._results, fresh, strict=True):
                there.copy_(here)

    def _fresh(self) -> Sequence[Tensor]:
        with torch.enable_grad():
            return self._call()


def captured(call: Call, device: str) -> tuple[torch.cuda.CUDAGraph | _Again, Sequence[Tensor]]:
    """Capture ``call`` after it has run on a stream of its own; return graph and results."""
    if device == "cpu":
        results = call()
        return _Again(call, results), results
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results
