"""Entropy, margin, skip count and collapse on rigged alphas."""

import math

import pytest
import torch

from pyfast_nas.engine.health import alpha_rows, collapsed, health, require_finite
from pyfast_nas.errors import DivergenceError
from pyfast_nas.spaces import DARTS, Toy
from pyfast_nas.spaces.darts import DARTS_V1


class Ragged:
    """A space with a row of two candidates and a row of one."""

    candidates = {"cell": (("a", "b"), ("c",))}  # noqa: RUF012


def rigged(value: float) -> dict[str, torch.Tensor]:
    alphas = torch.zeros(2, 4)
    alphas[:, 0] = value
    return {"cell": alphas}


@pytest.mark.promise("S10")
def test_undecided_and_decided_alphas():
    undecided = health(Toy(), rigged(0.0), Toy().optimum())
    assert undecided["entropy"] == pytest.approx(1) and undecided["margin"] == 0
    decided = health(Toy(), rigged(50.0), Toy().optimum())
    assert decided["entropy"] == pytest.approx(0, abs=1e-12)
    assert decided["margin"] == pytest.approx(1)


@pytest.mark.promise("S10")
def test_numbers_in_between_by_hand():
    alphas = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().repeat(2, 1)
    numbers = health(Toy(), {"cell": alphas}, Toy().optimum())
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8)
    assert numbers["entropy"] == pytest.approx(entropy / math.log(4))
    assert numbers["margin"] == pytest.approx(0.25)


@pytest.mark.parametrize("padding", [0.0, -math.inf, 99.0])
def test_places_past_a_shorter_row_do_not_count(padding):
    alphas = {"cell": torch.tensor([[1.0, 1.0], [3.0, padding]])}
    numbers = health(Ragged(), alphas, Toy().optimum())
    # A row of one candidate has nothing to decide.
    assert numbers["entropy"] == pytest.approx(1) and numbers["margin"] == 0
    assert alpha_rows(alphas, Ragged.candidates) == {"cell": [[1.0, 1.0], [3.0, None]]}
    require_finite(alphas, Ragged.candidates, step=1)


@pytest.mark.promise("S10")
def test_skip_connections_are_counted_per_cell():
    alphas = {table: torch.zeros(14, 8) for table in ("normal", "reduce")}
    assert health(DARTS(), alphas, DARTS_V1)["skip_count"] == {"normal": 3, "reduce": 3}


@pytest.mark.promise("S10")
def test_collapse_is_above_the_limit():
    assert collapsed(DARTS_V1, 0.5) == ()
    for limit, cells in ((3 / 8, 0), (0.3, 2), (1.0, 0)):
        assert len(collapsed(DARTS_V1, limit)) == cells
    assert "'normal' cell has collapsed: 3 of its 8 edges" in collapsed(DARTS_V1, 0.3)[0]


@pytest.mark.promise("P4")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_alphas_that_are_not_finite_are_named(bad):
    alphas = rigged(1.0)
    alphas["cell"][1, 2] = bad
    with pytest.raises(DivergenceError, match=r"alphas\['cell'\].*at row 1, candidate 2 at step 9"):
        require_finite(alphas, Toy().candidates, step=9)
