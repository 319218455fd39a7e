"""Data by name and data from memory: accepted forms, and one clear line for the rest."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyfast_nas.data import ImageData, load_data, synthetic_images, toy_data
from pyfast_nas.errors import ConfigError, DataError


def pair(samples=40, classes=4, dtype=torch.uint8):
    x = torch.randint(0, 256, (samples, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return x.to(dtype), torch.arange(samples) % classes


class Listed(Dataset):
    """A map-style data set over a list of items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Picture:
    """What an imaging library returns: height, width, channels."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


def test_names():
    assert load_data("digits").name == "digits"
    assert load_data("toy").num_classes == 2
    data = load_data("digits")
    assert load_data(data) is data


@pytest.mark.parametrize(
    "source",
    ["", "digit", "digits:", "digits:x", "cifar10", "cifar10:", "CIFAR10:x", "../x", "\x1b[2J"],
)
def test_unknown_names(source):
    with pytest.raises(ConfigError, match="source must be 'digits', 'toy', 'cifar10:FOLDER'") as e:
        load_data(source)
    assert "\x1b" not in str(e.value)


@pytest.mark.parametrize("source", [None, 5, (), (1,), (1, 2, 3), {"x": 1}, torch.zeros(2, 3)])
def test_unknown_kinds(source):
    with pytest.raises((ConfigError, DataError), match="must be"):
        load_data(source)


def test_two_pairs_of_tensors():
    data = load_data((pair(), pair(12)), name="mine")
    assert (data.name, len(data.train_y), len(data.test_y), data.notes) == ("mine", 40, 12, ())
    assert data.scale == 255 and not data.flip
    x = data.train_x.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), x.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(data.std).double(), x.std(1, correction=0), rtol=0, atol=1e-6
    )


def test_one_pair_keeps_a_fifth_of_each_class_for_testing():
    data = load_data(pair(40))
    assert data.train_y.bincount().tolist() == [8] * 4
    assert data.test_y.bincount().tolist() == [2] * 4
    assert data.notes == ("no test samples were given: 8 of 40 samples are kept for testing",)


def test_floats_are_taken_as_normalised():
    x, y = pair(dtype=torch.float64)
    data = load_data(((x, y), (x, y)))
    assert data.scale == 1 and data.mean == (0.0,) * 3 and data.std == (1.0,) * 3


def test_grey_images_may_lack_their_channel():
    x, y = pair()
    assert load_data(((x[:, 0], y), (x[:, 0], y))).train_x.shape == (40, 1, 8, 8)


def test_datasets():
    x, y = pair()
    dataset = TensorDataset(x, y)
    for source in ((dataset, dataset), (dataset, (x, y))):
        data = load_data(source)
        assert torch.equal(data.train_x, x) and torch.equal(data.test_y, y)
    assert load_data(dataset).notes
    arrays = Listed([(x[i].numpy(), int(y[i])) for i in range(40)])
    assert torch.equal(load_data((arrays, arrays)).train_x, x)
    last = x.permute(0, 2, 3, 1).contiguous().numpy()
    pictures = Listed([(Picture(last[i]), y[i]) for i in range(40)])
    assert torch.equal(load_data((pictures, pictures)).train_x, x)


def test_caller_tensors_stay_as_they_were():
    x, y = pair()
    before = x.clone(), y.clone()
    load_data(((x, y), (x, y)))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def spoiled(**changes):
    x, y = pair()
    return ((changes.get("x", x), changes.get("y", y)), (x, y))


def labels(**places):
    y = torch.arange(40) % 4
    for place, value in places.items():
        y[int(place[1:])] = value
    return y


NAN = torch.zeros(40, 3, 8, 8)
NAN[7, 1, 2, 3] = float("nan")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (spoiled(x="text"), "train samples must be a tensor, got str"),
        (spoiled(y=[0, 1]), "train labels must be a tensor, got list"),
        (spoiled(x=torch.zeros(40, 3, 8, 8, dtype=torch.int32)), "uint8 or floating point"),
        (spoiled(x=torch.zeros(40, 3, 8, 8, dtype=torch.complex64)), "got torch.complex64"),
        (spoiled(x=torch.zeros(40)), r"\[samples, channels, height, width\].*got \[40\]"),
        (spoiled(x=torch.zeros(0, 3, 8, 8)), r"must not be empty, got \[0, 3, 8, 8\]"),
        (spoiled(x=torch.zeros(40, 3, 0, 8)), "must not be empty"),
        (spoiled(x=torch.zeros(40, 3, 8, 8).to_sparse()), "dense tensor"),
        (spoiled(y=torch.zeros(40)), "labels must be integers, got torch.float32"),
        (spoiled(y=torch.zeros(39, dtype=torch.int64)), r"shape \[40\], one a sample, got \[39\]"),
        (spoiled(y=torch.zeros(40, 1, dtype=torch.int64)), r"got \[40, 1\]"),
        (spoiled(y=labels(i3=-1)), "between 0 and 3, got -1 at index 3"),
        (spoiled(y=torch.zeros(40, dtype=torch.int64)), "at least 2 classes, got only class 0"),
        (spoiled(x=torch.zeros(40, 3, 9, 9, dtype=torch.uint8)), "test samples must be"),
        (spoiled(x=NAN), "finite, got NaN or infinity in sample 7"),
        ((pair()[0], torch.zeros(3)), r"shape \[40\], one a sample, got \[3\]"),
        ((pair(4)[0], pair(4)[1]), "at least 5 samples of a class"),
        ((Listed([]), pair()), "at least one sample"),
        ((Listed([1, 2]), pair()), r"train\[0\] must be \(sample, label\), got int"),
        ((Listed([(torch.zeros(3), 1, 2)]), pair()), r"got tuple of 3"),
        ((Listed([("a", 1)]), pair()), r"train\[0\] sample must be"),
        ((Listed([(torch.zeros(3), 1.5)]), pair()), "label must be one integer, got 1.5"),
        ((Listed([(torch.zeros(3), "x")]), pair()), r"train\[0\] label must be"),
        (
            (Listed([(torch.zeros(3), 1), (torch.zeros(4), 1)]), pair()),
            r"train\[1\] sample must be \[3\] torch.float32 like the first, got \[4\]",
        ),
        ((pair(), "test"), "test: must be"),
    ],
)
def test_bad_data_from_memory(source, words):
    with pytest.raises(DataError, match=words) as caught:
        load_data(source)
    assert len(str(caught.value)) < 400


def test_label_range_is_that_of_num_classes():
    x, y = pair()
    with pytest.raises(DataError, match="test labels must be between 0 and 3, got 4 at index 5"):
        load_data(((x, y), (x, labels(i5=4))), num_classes=4)
    assert load_data(((x, y), (x, y)), num_classes=9).num_classes == 9


def test_iterable_dataset_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises((ConfigError, DataError), match="map-style Dataset"):
        load_data(Endless())


def test_errors_of_the_users_dataset_stay_theirs():
    class Failing(Listed):
        def __getitem__(self, index):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        load_data(Failing([1]))


def test_made_data_follow_their_seed():
    for make in (toy_data, synthetic_images):
        one, same, other = make(seed=1), make(seed=1), make(seed=2)
        assert one.fingerprint == same.fingerprint != other.fingerprint
        assert torch.equal(one.train_x, same.train_x)


def test_made_images_can_be_learnt():
    data = synthetic_images(256)
    centres = torch.stack([data.train_x[data.train_y == c].double().mean(0) for c in range(4)])
    distances = (data.test_x[:, None].double() - centres[None]).square().flatten(2).sum(-1)
    assert float((distances.argmin(1) == data.test_y).double().mean()) > 0.95


def test_made_data_want_sane_sizes():
    for call in (
        lambda: toy_data(1),
        lambda: synthetic_images(3),
        lambda: synthetic_images(num_classes=1),
        lambda: synthetic_images(size=3),
    ):
        with pytest.raises(ConfigError, match="must be at least"):
            call()


def test_toy_data_have_the_shift_of_their_definition():
    data = toy_data(20_000)
    sign = 2.0 * data.train_y[:, None] - 1
    centred = (data.train_x * sign).double()
    # Mean 0.5 and unit variance, each to 5 standard errors of 160,000 numbers.
    assert abs(float(centred.mean()) - 0.5) < 5 / 400
    assert abs(float(centred.var()) - 1) < 5 * 2**0.5 / 400


def test_numpy_scalars_are_labels():
    x, y = pair()
    items = Listed([(x[i], np.int64(y[i])) for i in range(40)])
    assert isinstance(load_data((items, items)), ImageData)
