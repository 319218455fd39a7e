"""Fixtures of the tests of modules."""

import pytest
import torch

from pyfast_nas import _ext, ops


@pytest.fixture
def fused_nodes(monkeypatch) -> list[int]:
    """Candidates of every fused node; it serves the CPU with and without a kernel."""
    calls: list[int] = []

    def counted(xs, weights, candidates, strides, selected=None):
        calls.append(len(candidates))
        return fused_node(xs, weights, candidates, strides, selected)

    def counted_cell(inputs, nodes, parts):
        calls.extend(len(node.candidates) for node in nodes)
        return fused_cell(inputs, nodes, parts)

    class CountedCell(ops.FusedCell):
        __slots__ = ()

        def __call__(self, inputs, weights, selected=None):
            calls.extend(len(node.candidates) for node in self._nodes)
            return super().__call__(inputs, weights, selected)

    fused_node, fused_cell = ops.fused_node, ops.fused_cell

    def serves(x):
        fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dim() == 4
        return fits and _ext.mode() != "reference"

    monkeypatch.setattr(ops, "fused_node", counted)
    monkeypatch.setattr(ops, "fused_cell", counted_cell)
    monkeypatch.setattr(ops, "FusedCell", CountedCell)
    monkeypatch.setattr(ops, "serves_fused_node", serves)
    return calls
