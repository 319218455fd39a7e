"""Batches: split, coverage, repeatability, and nothing of the test set."""

import pytest
import torch

from pyfast_nas.data import DeviceLoader, ImageData, synthetic_images
from pyfast_nas.data.loader import BatchStream, Normalize, split_indices
from pyfast_nas.errors import ConfigError, DataError


def numbered(samples=103, classes=4) -> ImageData:
    """A data set whose samples carry their own index, so that batches can be traced."""
    x = torch.arange(samples, dtype=torch.float64)[:, None].repeat(1, 2)
    y = torch.arange(samples) % classes
    return ImageData.create("numbered", (x, y), (x[:8] - 1000, y[:8]))


def loader(data=None, batch_size=10, seed=0, **options) -> DeviceLoader:
    generator = torch.Generator().manual_seed(seed)
    options = {"augment": False, **options}
    return DeviceLoader(data or numbered(), batch_size, generator=generator, **options)


def traced(batch) -> list[int]:
    return batch[0][:, 0].round().long().tolist()


@pytest.mark.promise("S8")
@pytest.mark.parametrize("fraction", [0.5, 0.2, 0.75])
def test_parts_never_overlap_and_cover_everything(fraction):
    labels = torch.arange(1000) % 7
    train, valid = split_indices(labels, fraction, torch.Generator().manual_seed(3))
    assert not set(train.tolist()) & set(valid.tolist())
    assert sorted(train.tolist() + valid.tolist()) == list(range(1000))
    assert len(valid) == round(1000 * fraction)
    for label in range(7):
        share = int((labels[valid] == label).sum()) / int((labels == label).sum())
        assert abs(share - fraction) < 0.02


@pytest.mark.promise("S8")
def test_split_is_that_of_the_seed():
    labels = torch.arange(100) % 3

    def split(seed):
        return split_indices(labels, 0.5, torch.Generator().manual_seed(seed))[0].tolist()

    assert split(0) == split(0) != split(1)
    assert split(0) != sorted(split(0)), "not the order of the file"


@pytest.mark.parametrize("counts", [(2, 2), (3, 2, 5), (2,) * 10, (1000, 2, 2)])
def test_a_half_of_each_class_is_in_both_parts(counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    for seed in range(20):
        parts = split_indices(labels, 0.5, torch.Generator().manual_seed(seed))
        for part in parts:
            assert set(labels[part].tolist()) == set(range(len(counts)))


@pytest.mark.promise("S7")
def test_each_sample_is_used_equally_often():
    batches = loader(numbered(103), batch_size=10)
    counts = {"train": torch.zeros(103), "valid": torch.zeros(103)}
    for _ in range(7):  # 52 and 51 samples, 5 batches: epochs and walks never end together
        for train, valid in batches:
            for part, batch in (("train", train), ("valid", valid)):
                for index in traced(batch):
                    counts[part][index] += 1
            for part in counts.values():
                used = part[part > 0]
                assert float(used.max() - used.min()) <= 1 or int((part > 0).sum()) < 50
    both = (counts["train"] > 0) & (counts["valid"] > 0)
    assert not bool(both.any()), "no validation sample is trained on"
    assert int((counts["train"] > 0).sum()) == 52 and int((counts["valid"] > 0).sum()) == 51
    for part in counts.values():
        assert set(part[part > 0].tolist()) <= {6.0, 7.0}


@pytest.mark.promise("S7")
def test_epochs_do_not_begin_with_the_same_batch():
    batches = loader()
    firsts = [tuple(traced(next(iter(batches))[1])) for _ in range(4)]
    assert len(set(firsts)) == 4


def test_test_samples_never_appear():
    batches = loader()
    for _ in range(3):
        for pair in batches:
            assert all(min(traced(batch)) >= 0 for batch in pair)


def test_labels_stay_with_their_samples():
    for train, valid in loader():
        for batch in (train, valid):
            assert [index % 4 for index in traced(batch)] == batch[1].tolist()


@pytest.mark.parametrize("batch_size", [0, -1, 52, 1000])
def test_batch_size_out_of_range(batch_size):
    with pytest.raises(ConfigError, match="batch_size must be between 1 and 51"):
        loader(batch_size=batch_size)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_valid_fraction_out_of_range(fraction):
    with pytest.raises(ConfigError, match="valid_fraction must be above 0 and below 1"):
        loader(valid_fraction=fraction)


def test_one_batch_an_epoch_is_enough():
    batches = loader(batch_size=51)
    assert len(batches) == 1 and len(list(batches)) == 1


def test_normalisation_is_the_textbook_one():
    data = synthetic_images(64)
    x = Normalize(data)(data.train_x)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(x, (data.train_x / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32


def test_default_dtype_of_the_user_is_obeyed():
    torch.set_default_dtype(torch.float64)
    try:
        assert next(iter(loader(synthetic_images(64))))[0][0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_default_device_of_the_user_does_not_matter():
    with torch.device("meta"):
        train, _ = next(iter(loader(synthetic_images(64), augment=True)))
    assert train[0].device.type == "cpu" and bool(train[0].isfinite().all())


def test_images_stay_bytes_and_batches_are_augmented():
    data = synthetic_images(64)
    plain, moved = loader(data, augment=False), loader(data, augment=True)
    assert plain.train._samples.dtype == torch.uint8
    for (left, _), (right, _) in zip(plain, moved, strict=True):
        assert torch.equal(left[1], right[1]), "the same samples"
        assert not torch.equal(left[0], right[0]), "at other places"


def test_same_seed_same_batches():
    data = synthetic_images(64)

    def walk(seed):
        batches = loader(data, seed=seed, augment=True)
        return [(x, y) for _ in range(3) for pair in batches for x, y in pair]

    one, same, other = walk(0), walk(0), walk(1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 8])
def test_state_goes_on_to_the_bit(stop):
    data = synthetic_images(64)
    one, two = loader(data, augment=True), loader(data, augment=True)
    for _ in range(stop):
        one.train.next(), one.valid.next()
    two.load_state_dict(one.state_dict())
    for _ in range(6):
        for a, b in ((one.train.next(), two.train.next()), (one.valid.next(), two.valid.next())):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_state_is_a_copy():
    batches = loader()
    state = batches.state_dict()
    order = state["train"]["order"].clone()
    for _ in range(3):
        list(batches)
    assert torch.equal(state["train"]["order"], order)


@pytest.mark.promise("S8")
def test_state_of_other_data_or_split_is_refused():
    state = loader().state_dict()
    for other in (loader(seed=1), loader(numbered(104)), loader(valid_fraction=0.4)):
        before = other.state_dict()
        with pytest.raises(DataError, match="same data and split"):
            other.load_state_dict(state)
        after = other.state_dict()
        assert torch.equal(after["train"]["order"], before["train"]["order"])


def test_damaged_state_is_refused():
    batches = loader()
    state = batches.state_dict()
    for damage in ({"cursor": 99}, {"cursor": -1}, {"order": torch.arange(3)}):
        with pytest.raises(DataError, match="cursor lie within"):
            batches.load_state_dict({**state, "train": {**state["train"], **damage}})


def test_stream_cuts_holes_where_asked():
    data = synthetic_images(64)
    stream = BatchStream(
        data.train_x, data.train_y, torch.arange(64), 64, Normalize(data), seed=0, cutout_size=4
    )
    x, _ = stream.next()
    assert bool(((x == 0).flatten(2).sum(-1) >= 4).all())


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    list(loader(synthetic_images(64), augment=True))
    assert torch.equal(torch.get_rng_state(), before)
