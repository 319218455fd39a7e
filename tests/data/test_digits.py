from importlib import resources

import torch

from pyfast_nas.data import load_digits


def test_digits_are_complete_and_split_class_by_class():
    data = load_digits()
    assert data.train_x.shape == (1442, 1, 8, 8) and data.test_x.shape == (355, 1, 8, 8)
    assert data.train_x.dtype == torch.uint8 and int(data.train_x.max()) == 16
    counts = data.train_y.bincount() + data.test_y.bincount()
    # As published for this set, class by class.
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.test_y.bincount().tolist() == [n // 5 for n in counts.tolist()]
    assert not data.flip


def test_split_never_changes():
    data = load_digits()
    assert data.fingerprint == "f3fc8fb04e7bb67e9360416f17096a3d2ac7a15bc530a4be3b91cfbf0576be79"


def test_attribution_is_shipped():
    text = resources.files("pyfast_nas.data").joinpath("DIGITS_LICENSE.txt").read_text()
    for words in ("CC BY 4.0", "E. Alpaydin and C. Kaynak", "UCI Machine Learning Repository"):
        assert words in text


def test_a_linear_model_learns_them():
    data = load_digits()
    x = data.train_x.flatten(1).double() / 16
    one_hot = torch.nn.functional.one_hot(data.train_y).double()
    ridge = x.T @ x + 0.1 * torch.eye(64, dtype=torch.float64)
    weights = torch.linalg.solve(ridge, x.T @ one_hot)
    predicted = (data.test_x.flatten(1).double() / 16 @ weights).argmax(1)
    assert float((predicted == data.test_y).double().mean()) > 0.85
