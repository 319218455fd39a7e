"""DropBlock-Identity: geometry, statistics, off-switches, keys."""

import pytest
import torch

from pyfast_nas.nn.drop_block import DropBlocks, drop_block, drop_block_mask, seed_probability
from pyfast_nas.nn.primitives import FactorizedReduce, SkipConnect


def seed(value: int = 0, offset: int = 0) -> torch.Tensor:
    return torch.tensor([value, offset])


def test_each_seed_erases_the_block_below_and_right_of_it():
    seeds = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    seeds[0, 0, 0, 0] = seeds[0, 0, 3, 4] = True
    want = torch.ones(8, 8, dtype=torch.bool)
    want[0:3, 0:3] = False
    want[3:6, 4:7] = False
    assert torch.equal(drop_block_mask(seeds, 3)[0, 0], want)


def test_output_is_masked_and_rescaled_over_the_whole_tensor():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    y = drop_block(x, rate=0.4, block=3, seed=seed(1), row=0)
    kept = (y != 0).any(dim=1, keepdim=True)
    assert not kept.all(), "something is dropped"
    assert torch.equal(kept.expand_as(y), y != 0), "one mask per sample, shared by its channels"
    assert any(not torch.equal(kept[0], k) for k in kept[1:]), "samples differ"
    scale = kept.numel() / kept.sum().double()
    torch.testing.assert_close(y, x * kept * scale, rtol=1e-12, atol=0)


def exact_share(side, block, rate):
    """Expected dropped share: a place is hit by any of the blocks that can cover it."""
    gamma = seed_probability(rate, block, side, side)
    cover = [min(i, side - block) - max(0, i - block + 1) + 1 for i in range(side)]
    return sum(1 - (1 - gamma) ** (a * b) for a in cover for b in cover) / side**2


@pytest.mark.parametrize(
    ("side", "block", "rate", "published"), [(32, 3, 0.3, 0.261), (16, 5, 0.1, 0.094)]
)
def test_dropped_share(side, block, rate, published):
    want = exact_share(side, block, rate)
    assert want == pytest.approx(published, abs=5e-4)
    x = torch.ones(8000, 1, side, side)
    y = drop_block(x, rate=rate, block=block, seed=seed(7), row=0)
    # 0.003 is three standard errors of the rarer case.
    assert (y == 0).float().mean().item() == pytest.approx(want, abs=0.003)


def test_interior_probability_and_unbiased_output():
    side, block, rate, samples = 12, 3, 0.3, 20_000
    gamma = seed_probability(rate, block, side, side)
    y = drop_block(torch.ones(samples, 1, side, side), rate=rate, block=block, seed=seed(3), row=0)
    drop = 1 - (1 - gamma) ** block**2
    # Five standard errors of one place.
    spread = 5 * (drop * (1 - drop) / samples) ** 0.5
    assert (y[:, 0, 5, 6] == 0).float().mean().item() == pytest.approx(drop, abs=spread)
    assert y.mean().item() == pytest.approx(1.0, abs=1e-4)


def test_seed_probability_is_capped_and_scaled():
    assert seed_probability(0.9, 1, 4, 4) == pytest.approx(0.9)
    assert seed_probability(0.9, 7, 7, 7) == pytest.approx(0.9)
    assert seed_probability(0.999999, 5, 6, 6) < 1
    assert seed_probability(40.0, 3, 8, 8) == 1.0


def test_nothing_left_gives_zeros_not_nan():
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    for value in range(200):
        y = drop_block(x, rate=0.95, block=3, seed=seed(value), row=0)
        if not y.any():
            break
    assert not y.any()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert not grad.any()


def test_block_is_cut_to_the_image_and_to_an_odd_size():
    x = torch.ones(64, 1, 4, 6)
    cut = drop_block(x, rate=0.5, block=7, seed=seed(), row=5)
    assert torch.equal(cut, drop_block(x, rate=0.5, block=3, seed=seed(), row=5))


def test_gradient_is_the_mask():
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    y = drop_block(x, rate=0.3, block=3, seed=seed(), row=0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y, rtol=1e-12, atol=0)


class TestSwitching:
    def model(self) -> torch.nn.Sequential:
        return torch.nn.Sequential(SkipConnect(), FactorizedReduce(2, 2), SkipConnect())

    def test_only_skip_connections_of_stride_one_are_equipped(self):
        assert DropBlocks(self.model()).count == 2

    def test_identity_outside_in_evaluation_and_at_rate_zero(self):
        skip, x = SkipConnect(), torch.ones(1, 2, 8, 8)
        blocks = DropBlocks(skip)
        assert skip(x) is x
        with blocks.active(rate=0.0, block=3, seed=seed(), path=0):
            assert skip(x) is x
        with blocks.active(rate=0.5, block=3, seed=seed(), path=0):
            assert (skip(x) == 0).any()
            skip.eval()
            assert skip(x) is x

    def test_an_exception_switches_it_off(self):
        skip, x = SkipConnect(), torch.ones(1, 2, 8, 8)
        blocks = DropBlocks(skip)
        with (
            pytest.raises(RuntimeError),
            blocks.active(rate=0.5, block=3, seed=seed(), path=0),
        ):
            raise RuntimeError
        assert skip(x) is x

    def test_masks_follow_module_path_and_seed_not_call_order(self):
        model, x = self.model(), torch.ones(4, 2, 16, 16)
        blocks = DropBlocks(model)
        first, last = model[0], model[2]

        def masks(order, value, path):
            with blocks.active(rate=0.3, block=3, seed=seed(value), path=path):
                return {id(skip): skip(x) for skip in order}

        forth, back = masks((first, last), 0, 0), masks((last, first), 0, 0)
        assert all(torch.equal(forth[key], back[key]) for key in forth)
        assert not torch.equal(forth[id(first)], forth[id(last)])
        assert not torch.equal(forth[id(first)], masks((first,), 0, 1)[id(first)])
        assert not torch.equal(forth[id(first)], masks((first,), 1, 0)[id(first)])

    def test_counter_rows_leave_room_for_every_path(self):
        """Row 4096 * module + path: path 4095 of one module is not path 0 of the next."""
        model, x = self.model(), torch.ones(1, 2, 16, 16)
        blocks = DropBlocks(model)
        with blocks.active(rate=0.3, block=3, seed=seed(5), path=2):
            got = model[2](x)
        assert torch.equal(got, drop_block(x, rate=0.3, block=3, seed=seed(5), row=4096 + 2))
