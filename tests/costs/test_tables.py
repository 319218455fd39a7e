"""Costs of candidates fitted to costs of whole cells."""

import itertools

import numpy as np
import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable, fit_column
from pyfast_nas.errors import DataError, GenotypeError
from pyfast_nas.spaces import AccuracyTable

SPACE = spaces.NASBench201()
CELLS = list(itertools.islice(SPACE.strings(), 0, None, 29))  # enough to tell all costs apart


def table_of(column, values) -> AccuracyTable:
    return AccuracyTable("here", {"arch": CELLS, column: values})


def true_costs() -> CostTable:
    costs = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs[:, 0] = 0.0
    return CostTable("mJ", 3.0, {"cell": costs})


def test_a_sum_over_edges_is_recovered() -> None:
    true = true_costs()
    values = [true.of(SPACE.from_string(cell), SPACE.candidates) for cell in CELLS]
    fit = fit_column(table_of("x_energy", list(map(repr, values))), "x_energy", ridge=1e-9)
    assert fit.table.unit == "mJ" and fit.networks == len(CELLS)
    assert fit.table.candidates == dict(SPACE.candidates) and fit.table.about == "x_energy"
    assert fit.table.fixed == pytest.approx(3.0, abs=1e-6)
    torch.testing.assert_close(fit.table.rows["cell"], true.rows["cell"], rtol=0, atol=1e-6)
    assert fit.r2 > 1 - 1e-9 and fit.mean_error <= fit.largest_error < 1e-6
    assert not fit.table.rows["cell"][:, 0].any()


def test_errors_are_those_of_the_table_and_empty_cells_are_left_out() -> None:
    true = true_costs()
    generator = np.random.default_rng(0)
    texts = [
        ""
        if row % 5 == 0
        else repr(true.of(SPACE.from_string(cell), SPACE.candidates) + generator.normal())
        for row, cell in enumerate(CELLS)
    ]
    measured = table_of("costs", texts)
    fit = fit_column(measured, "costs")
    known = measured.known("costs")
    assert fit.table.unit == "costs" and fit.networks == len(known) < len(CELLS)
    values = np.array(list(known.values()))
    guesses = [fit.table.of(SPACE.from_string(cell), SPACE.candidates) for cell in known]
    errors = np.abs(np.array(guesses) - values)
    assert fit.mean_error == pytest.approx(errors.mean())
    assert fit.largest_error == pytest.approx(errors.max())
    assert fit.r2 == pytest.approx(1 - (errors**2).mean() / values.var())
    assert fit_column(measured, "costs", unit="cents").table.unit == "cents"


def test_equal_costs_are_all_fixed() -> None:
    fit = fit_column(table_of("a_latency", ["2"] * len(CELLS)), "a_latency")
    assert fit.table.unit == "ms" and fit.r2 == 1.0
    assert fit.table.fixed == pytest.approx(2.0, abs=1e-4)


def test_what_is_no_table_of_costs_is_refused() -> None:
    with pytest.raises(DataError, match="must have the column 'b'; it has 'a'"):
        fit_column(table_of("a", ["1"] * len(CELLS)), "b")
    with pytest.raises(DataError, match="a in line 2 must be a finite number, got 'fast'"):
        fit_column(table_of("a", ["fast"] * len(CELLS)), "a")
    with pytest.raises(DataError, match="at least one network"):
        fit_column(table_of("a", [""] * len(CELLS)), "a")
    with pytest.raises(GenotypeError, match="a cell must be written"):
        fit_column(AccuracyTable("here", {"arch": ["0120"], "a": ["1"]}), "a")


# Column -> least share of variance, largest mean error as a share of the mean.
HARDWARE = {
    "c10_edgegpu_latency": (0.87, 0.07),
    "c10_edgetpu_latency": (0.93, 0.06),
    "c10_eyeriss_latency": (0.9999, 1e-4),
}


@pytest.fixture(scope="module")
def hardware(real_data) -> AccuracyTable:
    path = real_data / "nas" / "hw_nas_bench_201.csv.gz"
    if not path.is_file():
        pytest.skip(f"HW-NAS-Bench is not beside the repository ({path.name})")
    return AccuracyTable.read(path, set(SPACE.strings()))


@pytest.mark.parametrize("column", HARDWARE)
def test_fits_to_hw_nas_bench_are_as_near_as_documented(hardware, column) -> None:
    fit = fit_column(hardware, column)
    values = np.array(list(hardware.known(column).values()))
    least, error = HARDWARE[column]
    assert fit.networks == len(values) == (10_926 if "edgetpu" in column else 15_625)
    assert fit.table.unit == "ms" and fit.r2 > least and fit.mean_error < error * values.mean()
    assert float(fit.table.rows["cell"][:, 3].min()) > 0  # 3x3 convolutions
