"""Fixtures of the tests of modules."""

import pytest
import torch

from pyfast_nas import _ext, ops


@pytest.fixture
def fused_nodes(monkeypatch) -> list[int]:
    """Candidates of every call of the fused node; it serves the CPU with and without a kernel."""
    calls: list[int] = []

    def counted(xs, weights, candidates, strides, place=None):
        calls.append(len(candidates))
        return fused_node(xs, weights, candidates, strides, place)

    fused_node = ops.fused_node

    def serves(x):
        fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dim() == 4
        return fits and _ext.mode() != "reference"

    monkeypatch.setattr(ops, "fused_node", counted)
    monkeypatch.setattr(ops, "serves_fused_node", serves)
    return calls
