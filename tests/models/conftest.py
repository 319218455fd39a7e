"""Fixtures of the tests of models that we did not write."""

import pytest
import torch

from pyfast_nas import ops
from tests.nn.conftest import fused_nodes

__all__ = ["fused_cells", "fused_nodes"]


@pytest.fixture
def fused_cells(fused_nodes, monkeypatch) -> list[int]:
    """Nodes of every cell that runs as one operator, with and without a kernel."""
    calls: list[int] = []

    def counted(inputs, nodes, parts):
        calls.append(len(nodes))
        return fused_cell(inputs, nodes, parts)

    fused_cell = ops.fused_cell
    monkeypatch.setattr(ops, "fused_cell", counted)
    return calls


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
