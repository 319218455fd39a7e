"""Fixtures of the tests of models that we did not write."""

import pytest
import torch

from tests.nn.conftest import fused_nodes

__all__ = ["fused_nodes"]


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
