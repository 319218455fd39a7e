"""The examples run, and print what they promise; the one on CIFAR-10 needs the data of the user."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def printed(name: str, capsys) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text, flags=re.MULTILINE)
    assert found, f"no {pattern!r} in:\n{text}"
    return float(found[1])


def test_drop_in_mixed_op(capsys) -> None:
    assert printed("drop_in_mixed_op.py", capsys).count("alphas moved to") == 3


def test_ridge_hyperparameter(capsys) -> None:
    text = printed("ridge_hyperparameter.py", capsys)
    truth = number(r"^closed form +(\S+)", text)
    for method in ("conjugate_gradient", "exact"):
        assert number(rf"^{method} +(\S+)", text) == pytest.approx(truth, abs=1e-7)
    assert number(r"^first_order +(\S+)", text) == 0.0
    assert number(r"-> (\S+)", text) < 0.9 * number(r"validation loss (\S+)", text)


def test_data_cleaning(capsys) -> None:
    text = printed("data_cleaning.py", capsys)
    assert number(r"^learnt weights: +test accuracy (\S+)", text) > 0.02 + number(
        r"^all labels alike: +test accuracy (\S+)", text
    )
    assert number(r"right labels (\S+),", text) > 0.8
    assert number(r"wrong ones (\S+)", text) < 0.2
