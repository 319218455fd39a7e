"""The report page: self-contained, honest, whole with every optional file missing."""

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from pyfast_nas.errors import DataError
from pyfast_nas.spaces import NASBench201, Toy
from pyfast_nas.viz.findings import examine
from pyfast_nas.viz.report import render_report, write_report
from pyfast_nas.viz.run_folder import RunFolder

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Tags(HTMLParser):
    """Follows open tags; a page that closes them wrongly fails."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.addresses += [value for key, value in attrs if key in {"src", "href", "xlink:href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(folder):
    page = write_report(folder).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert not tags.addresses and not tags.seen & {"script", "link", "img", "iframe", "object"}
    for needle in ("http:", "https:", "url(", "@import", "//"):
        assert needle not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    return page


def test_page_is_self_contained_and_tells_the_whole_story(runs):
    page = read(runs.make())
    for words in (
        "Architecture search on digits: darts in the darts space",
        "The verdict is: tie.",
        "95.5 ± 0.5 %",
        "95.0 ± 1.0 %",
        "1 min 15 s",
        "300 MiB",
        "Architecture parameters over time",
        "alpha_lr",
        "2.13.0",
        "Compiled kernels served every operator.",
        "prefers-color-scheme:dark",
        "@media print",
    ):
        assert words in page, words


def test_a_tie_is_called_a_tie(runs):
    page = read(runs.make(verdict="tie"))
    assert 'class="verdict tie"' in page and "Search and random choice are tied" in page
    assert "did better" not in page


@pytest.mark.parametrize("verdict", ["better", "worse"])
def test_a_verdict_is_shown_as_it_stands(runs, verdict):
    page = read(runs.make(verdict=verdict))
    assert f'class="verdict {verdict}"' in page and "are tied" not in page


def test_one_training_has_no_verdict(runs):
    page = read(runs.make(accuracies=((0.95,), (0.9,))))
    assert "one training shows no spread" in page


@pytest.mark.parametrize(
    "missing",
    ["evaluation.json", "timing.jsonl", "metrics.jsonl", "alphas.jsonl", "genotype.json"],
)
def test_every_file_but_the_configuration_may_be_missing(runs, missing):
    folder = runs.make()
    (folder / missing).unlink()
    read(folder)


def test_only_the_configuration(runs):
    folder = runs.make()
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    (folder / "config.json").write_text("{}")
    assert "There is no genotype: the search did not end." in read(folder)


def test_the_page_follows_from_the_files_alone(runs):
    folder = runs.make()
    first = read(folder)
    assert read(folder) == first
    moved = folder.rename(folder.with_name("elsewhere"))
    assert read(moved) == first
    assert (moved / "normal.svg").read_text().startswith("<svg") and (moved / "reduce.svg").exists()
    assert not [path for path in moved.iterdir() if path.name.startswith(".")]


def test_text_from_files_is_escaped(runs):
    hostile = "\x1b[31m</style><script>alert(1)</script>\u202e\ud800"
    folder = runs.make(notes=[hostile], warnings=[hostile])
    config = json.loads((folder / "config.json").read_text())
    config["algorithm"]["name"] = config["data"]["name"] = hostile
    config["kernels"] = {hostile: hostile}
    config["search"]["seed"] = hostile
    (folder / "config.json").write_text(json.dumps(config))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["sentence"], evaluation["verdict"] = hostile, '"><script>'
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    page = read(folder)
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page


def test_toy_space_and_padded_rows(runs):
    folder = runs.make(space=Toy())
    lines = [json.loads(line) for line in (folder / "alphas.jsonl").read_text().splitlines()]
    for line in lines:
        line["alphas"]["cell"][0][3] = None
    (folder / "alphas.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read(folder)
    assert "input → 0" in page and "identity" in page


def test_a_space_that_is_not_ours_is_drawn_without_names(runs):
    folder = runs.make()
    config = json.loads((folder / "config.json").read_text())
    config["space"] = {"name": "of somebody else"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "op 7" in read(folder)


def test_a_line_that_was_cut_off_is_left_out(runs):
    folder = runs.make()
    with open(folder / "alphas.jsonl", "a") as file:
        file.write('{"epoch": 4, "alph')
    assert len(RunFolder.read(folder).alphas) == 4
    read(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[1]", "must be dict, got list"),
        ("config.json", b"{", "must be JSON"),
        ("config.json", b"\xff\xfe", "must be UTF-8"),
        ("alphas.jsonl", b'{"epoch": 0, "alphas": {}}\n}\n', "line 2 of"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n", "must be JSON"),
    ],
)
def test_broken_files_are_named(runs, name, content, words):
    folder = runs.make()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_not_a_run(tmp_path):
    with pytest.raises(DataError, match=r"must hold a config\.json: not a run folder"):
        write_report(tmp_path)


def levels(folder):
    return {finding.text: finding.level for finding in examine(RunFolder.read(folder))}


def test_checklist_of_a_good_run_has_no_warning(runs):
    assert "warn" not in levels(runs.make()).values()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drift": 0.0}, "did not move at all"),
        ({"epochs": 0}, "No epoch was searched"),
        ({"verdict": "worse"}, "Random architectures did better"),
        ({"warnings": ["the gradient was exactly zero"]}, "The gradient was exactly zero."),
    ],
)
def test_checklist_warns(runs, changes, words):
    found = levels(runs.make(**changes))
    assert [level for text, level in found.items() if words in text] == ["warn"]


def edit_epochs(folder, **values):
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) | values for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({"entropy": 0.9999991}, "warn", "above 0.9999, where 1 is an even choice"),
        ({"margin": 0.001}, "note", "close to a coin toss"),
        ({"valid/loss": 2.0}, "warn", "The validation loss did not fall"),
    ],
)
def test_checklist_reads_the_metrics(runs, values, level, words):
    folder = runs.make()
    edit_epochs(folder, **values)
    assert [found for text, found in levels(folder).items() if words in text] == [level]


def test_checklist_sees_collapse_and_an_early_end(runs):
    folder = runs.make()
    text = (folder / "genotype.json").read_text()
    (folder / "genotype.json").write_text(re.sub(r'"op": "\w+"', '"op": "skip_connect"', text))
    config = json.loads((folder / "config.json").read_text())
    config["search"]["epochs"] = 50
    (folder / "config.json").write_text(json.dumps(config))
    found = levels(folder)
    assert found["Only 3 of 50 epochs were searched."] == "warn"
    assert sum("leans on skip connections (8 of 8" in text for text in found) == 2


def mutated(value, choose):
    """Copy a JSON value with one thing in it, picked at random, turned into something else."""
    strange = (None, True, -1, 1e300, "text", [], {}, [None], {"a": [1]}, [[1]])
    if not isinstance(value, dict | list) or not value or choose.random() < 0.2:
        return choose.choice(strange)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    picked, copied = choose.choice(list(keys)), value.copy()
    copied[picked] = mutated(value[picked], choose)
    return copied


@pytest.mark.parametrize(
    "name", ["config.json", "evaluation.json", "result.json", "metrics", "alphas", "timing"]
)
def test_whatever_the_files_hold_ends_in_a_page_or_one_clear_error(runs, name):
    folder = runs.make(space=Toy(), epochs=1, measured=table())
    choose = random.Random(name)
    path = folder / (name if "." in name else f"{name}.jsonl")
    lines = path.read_text().splitlines() if "." not in name else [path.read_text()]
    outcomes = set()
    for _ in range(40):
        place = choose.randrange(len(lines))
        changed = json.dumps(mutated(json.loads(lines[place]), choose))
        path.write_text("".join(f"{x}\n" for x in [*lines[:place], changed, *lines[place + 1 :]]))
        try:
            render_report(RunFolder.read(folder))
            outcomes.add("page")
        except DataError:
            outcomes.add("error")
    assert outcomes == {"page", "error"}


def score(**changes):
    return {"column": "c10", "value": 93.5, "rank": 1234, "best": 94.4, "regret": 0.9} | changes


def table(**changes):
    record = {"file": "cells.csv", "architectures": 15625, "arch": "|none~0|"}
    return record | {"valid": score(value=84.0), "test": score()} | changes


def test_a_cell_among_all_that_were_measured(runs):
    page = read(runs.make(space=NASBench201(channels=2, cells=1), measured=table()))
    for words in (
        "Among all architectures",
        "|none~0| in cells.csv",
        "93.5 (c10), rank 1,234 of 15,625, 0.9 below the best",
        "nor_conv_3x3",
    ):
        assert words in page, words
    assert "Among all architectures" not in read(runs.make("other"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"file": "cells.csv"}, "table must have arch"),
        (table(test={}), "table must have best"),
        (table(test=score(rank="1")), "rank must be int, got str"),
        (table(valid=score(value=None)), "value must be int or float, got NoneType"),
        ([], "table must be dict, got list"),
    ],
)
def test_a_record_of_a_table_that_is_none(record, words, runs):
    with pytest.raises(DataError, match=words):
        RunFolder.read(runs.make(measured=record))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda alphas: alphas["normal"].pop(), r"normal 13 x 8"),
        (lambda alphas: [row.pop() for row in alphas["reduce"]], r"reduce 14 x 7"),
        (lambda alphas: alphas["reduce"][3].pop(), r"reduce 14 x 7 to 8"),
        (lambda alphas: alphas.pop("reduce"), "reduce of no row"),
        (lambda alphas: alphas.update(more=[[0.0]]), "more 1 x 1"),
    ],
)
def test_logits_of_another_space_are_refused(runs, change, got):
    folder = runs.make()
    lines = [json.loads(line) for line in (folder / "alphas.jsonl").read_text().splitlines()]
    for line in lines:
        change(line["alphas"])
    (folder / "alphas.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = rf"tables of the space in config.json \(normal 14 x 8, reduce 14 x 8\), got {got}"
    with pytest.raises(DataError, match=message):
        RunFolder.read(folder)
