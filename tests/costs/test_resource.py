"""The resource cost of SNAS against its definition, edge by edge."""

import math

import pytest
import torch

from pyfast_nas import ops, spaces
from pyfast_nas.costs import ResourceCost

SHAPE = (1, 3, 16, 16)
DARTS = spaces.DARTS(channels=4, cells=6, nodes=1)  # four normal cells, two that reduce
STAGED = spaces.NASBench201(channels=4, cells=2)


def one_hot(candidates, name: str) -> dict[str, torch.Tensor]:
    return {
        table: torch.tensor([[float(op == name) for op in row] for row in rows])
        for table, rows in candidates.items()
    }


def edge(form: str, n: float, flops: float, accesses: float) -> float:
    if form == "linear":
        return 0.43 * (2 * n + flops / 4000 + accesses / 100)
    return sum(math.log(max(x, 1.0)) for x in (n, flops, accesses)) / 3


@pytest.mark.parametrize("form", ["log", "linear"])
def test_separable_convolutions_cost_what_the_table_says(form: str) -> None:
    """Normal cells are 4, 4, 8 and 16 wide at 16, 16, 8 and 4 pixels; others reduce to these."""
    cost = ResourceCost(DARTS.supernet(), SHAPE, form=form)
    found = cost(one_hot(DARTS.candidates, "sep_conv_3x3"))

    def separable(c: int, y: int, maps: int) -> float:
        n = 18 * c + 2 * c * c
        return edge(form, n, n * y * y, maps * c * y * y + n)

    normal = sum(separable(c, y, 8) for c, y in ((4, 16), (4, 16), (8, 8), (16, 4))) / 4
    reduce = sum(separable(c, y, 11) for c, y in ((8, 8), (16, 4))) / 2
    assert found["normal"].tolist() == pytest.approx([normal] * 2, rel=1e-6)
    assert found["reduce"].tolist() == pytest.approx([reduce] * 2, rel=1e-6)


@pytest.mark.parametrize("form", ["log", "linear"])
def test_nothing_costs_nothing(form: str) -> None:
    found = ResourceCost(DARTS.supernet(), SHAPE, form=form)(one_hot(DARTS.candidates, "none"))
    assert all((cost == 0).all() for cost in found.values())


def test_mixed_weights_cost_the_logarithm_of_the_mean() -> None:
    space = spaces.NASBench201(channels=4, cells=1)
    weights = {"cell": torch.tensor([0.2, 0.3, 0.5, 0.0, 0.0]).expand(6, 5)}
    found = ResourceCost(space.supernet(), (1, 3, 8, 8))(weights)["cell"][0].item()
    stages = []
    for c, y in ((4, 8), (8, 4), (16, 2)):
        n = c * c + c
        stages.append(
            edge(
                "log", 0.5 * n, 0.5 * c * c * y * y, 0.3 * 2 * c * y * y + 0.5 * (2 * c * y * y + n)
            )
        )
    assert found == pytest.approx(sum(stages) / 3, rel=1e-6)


def test_cost_adds_up_over_edges() -> None:
    """What a row costs does not depend on the weights of another."""
    cost = ResourceCost(STAGED.supernet(), SHAPE)
    weights = torch.rand(6, 5).softmax(1)
    whole = cost({"cell": weights})["cell"]
    for row in range(6):
        other = torch.rand(6, 5).softmax(1)
        other[row] = weights[row]
        assert torch.equal(cost({"cell": other})["cell"][row], whole[row])


def test_cost_is_the_mean_over_cells_of_a_kind() -> None:
    """Cells of one stage are alike: their number does not matter."""
    one, two = (
        ResourceCost(spaces.NASBench201(channels=4, cells=n).supernet(), SHAPE) for n in (1, 2)
    )
    weights = {"cell": torch.rand(6, 5).softmax(1)}
    torch.testing.assert_close(one(weights), two(weights))


def test_expected_cost_is_the_closed_form() -> None:
    cost = ResourceCost(STAGED.supernet(), SHAPE, form="linear")
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    draws = 20_000
    noise = ops.gumbel_noise(torch.tensor([7, 0]), 6 * draws, 5).view(draws, 6, 5)
    each = torch.stack(
        [cost({"cell": torch.eye(5)[[k] * 6]})["cell"] for k in range(5)], dim=1
    )  # [6, 5]
    drawn = (logits + noise).argmax(2)
    values = each.expand(draws, 6, 5).gather(2, drawn.unsqueeze(2)).sum((1, 2))
    closed = cost({"cell": logits.softmax(1)})["cell"].sum()
    assert (values.mean() - closed).abs() < 4.5 * values.std() / draws**0.5


def test_gradient_of_the_closed_form_is_the_softmax_jacobian_times_the_costs() -> None:
    cost = ResourceCost(STAGED.supernet(), SHAPE, form="linear")
    each = torch.stack(
        [cost({"cell": torch.eye(5, dtype=torch.float64)[[k] * 6]})["cell"] for k in range(5)],
        dim=1,
    )
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(cost({"cell": logits.softmax(1)})["cell"].sum(), logits)
    p = logits.detach().softmax(1)
    torch.testing.assert_close(found, p * (each - (p * each).sum(1, keepdim=True)))


def test_table_without_a_cell_costs_nothing() -> None:
    space = spaces.DARTS(channels=4, cells=2, nodes=1)  # both cells reduce
    found = ResourceCost(space.supernet(), SHAPE)(one_hot(space.candidates, "sep_conv_3x3"))
    assert found["normal"].tolist() == [0.0, 0.0]
    assert (found["reduce"] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_in_single(dtype) -> None:
    """A separable convolution of 16 channels has 819,200 operations at 32 x 32."""
    space = spaces.DARTS(channels=16, cells=1, nodes=1)
    cost = ResourceCost(space.supernet(), (1, 3, 32, 32))
    weights = {
        table: rows.to(dtype) for table, rows in one_hot(space.candidates, "sep_conv_3x3").items()
    }
    want = cost({table: rows.float() for table, rows in weights.items()})["normal"]
    for rows in weights.values():
        rows.requires_grad_()
    found = cost(weights)["normal"]
    torch.testing.assert_close(found, want)
    found.sum().backward()
    assert weights["normal"].grad.isfinite().all()
