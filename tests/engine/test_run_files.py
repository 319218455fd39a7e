"""Files of a run: claimed, atomic, strict JSON, and never a reason to end a search."""

import json
import logging
import math
import os

import pytest

from pyfast_nas.engine.run_files import RunFiles, to_json
from pyfast_nas.errors import ConfigError


def test_json_is_strict_sorted_and_exact():
    value = {"b": [1, 0.1, (math.nan, math.inf)], "a": {"x": None, 3: "ü"}}
    text = to_json(value)
    assert text == '{"a": {"3": "\\u00fc", "x": null}, "b": [1, 0.1, [null, null]]}'
    number = 0.1 + 0.2
    assert json.loads(to_json([number]))[0] == number


def test_nowhere_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = RunFiles(None)
    files.write("a", "text")
    files.write_json("b", {})
    files.append("c", {})
    assert list(tmp_path.iterdir()) == [] and files.path("a") is None


def test_folder_is_made_with_its_parents(tmp_path):
    folder = tmp_path / "a b" / "ü"
    files = RunFiles(folder)
    files.write_json("config.json", {"x": 1})
    files.append("metrics.jsonl", {"step": 1})
    files.append("metrics.jsonl", {"step": 2})
    assert json.loads((folder / "config.json").read_text()) == {"x": 1}
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert sorted(os.listdir(folder)) == ["config.json", "metrics.jsonl"]


def test_folder_with_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "genotype.json").write_text("precious")
    with pytest.raises(ConfigError, match=r"another folder \(--output\) or replace.*--overwrite"):
        RunFiles(tmp_path)
    assert (tmp_path / "genotype.json").read_text() == "precious"
    assert os.listdir(tmp_path) == ["genotype.json"]


def test_empty_folder_is_taken(tmp_path):
    RunFiles(tmp_path).write("a", "b")
    assert (tmp_path / "a").read_text() == "b"


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path):
    for name in ("metrics.jsonl", "evaluation.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    RunFiles(tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_output_that_is_a_file_or_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="must be a folder, got the file"):
        RunFiles(tmp_path / "file")
    with pytest.raises(ConfigError, match="Not a directory"):
        RunFiles(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="File name too long"):
        RunFiles(tmp_path / ("x" * 300))


def test_a_reader_sees_the_old_file_or_the_new(tmp_path, monkeypatch):
    files = RunFiles(tmp_path)
    files.write("genotype.json", "old")

    def die(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match=r"No space left on device \(make room") as caught:
        files.write("genotype.json", "new")
    assert caught.value.errno == 28 and caught.value.filename == str(tmp_path / "genotype.json")
    assert (tmp_path / "genotype.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["genotype.json"], "no leftovers"


@pytest.mark.promise("P8")
def test_lines_that_cannot_be_written_are_reported_once(tmp_path, caplog):
    files = RunFiles(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING, "pyfast_nas"):
        for step in range(5):
            files.append("metrics.jsonl", {"step": step})
            files.append("timing.jsonl", {"step": step})
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 5


def test_overwrite_removes_pictures_of_other_spaces_and_halves_of_files(tmp_path):
    names = ("normal.svg", "cell.svg", "blocks.svg", ".result.json.0123abcd.tmp")
    for name in (*names, "mine.svg", ".mine.tmp"):
        (tmp_path / name).touch()
    RunFiles(tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "mine.svg"]
