"""What tests of the benchmarks share: patience for nothing."""

import pytest

from pyfast_nas.bench import Settings


@pytest.fixture
def quick() -> Settings:
    """Settings of a session that takes no time."""
    small = {"batch_size": 2, "channels": 2, "cells": 1, "blocks": 1}
    return Settings(**small, seconds=1e-3, rounds=2, rivals=("eager",), resident=False)
