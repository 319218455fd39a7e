"""``info --check``: every operator is run where it says, and one that is wrong is named."""

import pytest
import torch

from pyfast_nas import _ext, ops, self_check

requires_kernels = pytest.mark.skipif(
    not _ext.compiled_for(torch.device("cpu")), reason="no compiled kernels for the CPU here"
)


def test_every_operator_with_kernels_is_checked():
    assert set(self_check._ERRORS) == set(_ext.kernels_in_use())
    assert self_check.check() == []


@requires_kernels
@pytest.mark.parametrize("name", ["mixed_sum", "norm_mixed_sum", "fused_node"])
def test_an_operator_that_is_wrong_is_named(name, monkeypatch):
    right = getattr(ops, name)

    def wrong(*arguments):
        found = right(*arguments)
        if _ext.kernels_in_use()[name] != "compiled":
            return found
        return found + 1e-3 if isinstance(found, torch.Tensor) else (found[0] + 1e-3, *found[1:])

    monkeypatch.setattr(ops, name, wrong)
    (line,) = self_check.check()
    assert line.startswith(f"{name} on cpu differs from the reference by 1.0e-03")
