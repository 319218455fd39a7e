"""Augmentation against a slow, plain reading of its definition."""

import pytest
import torch

from pyfast_nas.data.augment import crop_padding, cutout, mixup, random_crop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=64, channels=3, height=8, width=10):
    shape = (batch, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator(9)).to(torch.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_a_window_of_the_padded_image(flip):
    x, padding = images(), 2
    got = random_crop(x, padding, flip=flip, generator=generator())
    assert got.dtype == torch.uint8 and got.shape == x.shape
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    found = set()
    for index in range(len(x)):
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                window = padded[index, :, row : row + 8, column : column + 10]
                for mirrored in (False, True):
                    if torch.equal(got[index], window.flip(2) if mirrored else window):
                        found.add((index, row, column, mirrored))
    assert {place[0] for place in found} == set(range(len(x))), "each image has its window"
    # 64 draws of 25 places: all rows and columns turn up, and images do not share one place.
    assert {place[1] for place in found} == {place[2] for place in found} == set(range(5))
    mirrored = sum(place[3] for place in found)
    assert mirrored == 0 if not flip else 16 < mirrored < 48


def test_no_padding_and_no_flip_change_nothing():
    x = images()
    assert torch.equal(random_crop(x, 0, flip=False, generator=generator()), x)


def test_padding_follows_the_image_size():
    assert [crop_padding((n, n)) for n in (4, 8, 16, 32, 64)] == [0, 1, 2, 4, 8]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_blanks_one_square_cut_at_the_border(size):
    x = torch.ones(1000, 2, 8, 8)
    holes = 1 - cutout(x, size, generator=generator())
    assert torch.equal(holes[:, 0], holes[:, 1]), "all channels alike"
    for hole in holes[:, 0]:
        rows, columns = hole.sum(1) > 0, hole.sum(0) > 0
        assert torch.equal(hole, torch.outer(rows, columns).float()), "a rectangle"
        assert 1 <= int(rows.sum()) <= size and 1 <= int(columns.sum()) <= size
    areas = holes[:, 0].sum((1, 2))
    assert int(areas.max()) == size**2
    # The centre is uniform over the image, border included.
    assert bool((holes[:, 0].sum(0) > 0).all())


def test_cutout_of_size_zero_is_off():
    x, draws = torch.ones(2, 1, 4, 4), generator()
    before = draws.get_state()
    assert cutout(x, 0, generator=draws) is x
    assert torch.equal(draws.get_state(), before)


def test_mixup_blends_samples_and_labels_with_one_share():
    x = torch.randn(500, 3, generator=generator(1), dtype=torch.float64)
    labels = torch.arange(500) % 5
    mixed, soft = mixup(x, labels, strength=1.0, num_classes=5, generator=generator(2))
    torch.testing.assert_close(soft.sum(1), torch.ones(500, dtype=torch.float64))
    assert bool((soft >= 0).all())
    share = soft.gather(1, labels[:, None]).squeeze(1)
    partner_known = (soft > 0).sum(1) == 2
    for index in partner_known.nonzero().flatten()[:50].tolist():
        other_class = int(soft[index].masked_fill(labels[index] == torch.arange(5), 0).argmax())
        others = x[labels == other_class]
        blends = share[index] * x[index] + (1 - share[index]) * others
        assert float((blends - mixed[index]).abs().sum(1).min()) < 1e-12
    # Beta(1, 1) is uniform: mean 1/2, variance 1/12, to five standard errors.
    drawn = share[partner_known]
    assert abs(float(drawn.mean()) - 0.5) < 5 / (12 * len(drawn)) ** 0.5


def test_mixup_of_tiny_strength_stays_finite():
    x, labels = torch.ones(1000, 1), torch.arange(1000) % 2
    x, soft = mixup(x, labels, strength=1e-4, num_classes=2, generator=generator())
    assert bool(x.isfinite().all()) and bool(soft.isfinite().all())


def test_equal_generators_give_equal_batches():
    x = images()
    for make in (
        lambda g: random_crop(x, 2, flip=True, generator=g),
        lambda g: cutout(x.float(), 3, generator=g),
        lambda g: mixup(
            x.float(), torch.zeros(64).long(), strength=0.5, num_classes=2, generator=g
        )[0],
    ):
        assert torch.equal(make(generator(3)), make(generator(3)))
        assert not torch.equal(make(generator(3)), make(generator(4)))


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    random_crop(images(), 2, flip=True, generator=generator())
    cutout(images().float(), 2, generator=generator())
    labels = torch.zeros(64).long()
    mixup(images().float(), labels, strength=0.5, num_classes=2, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
