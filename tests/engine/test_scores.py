"""A search that looks up what it finds in a table of measured architectures."""

import json

import pytest

from pyfast_nas.data import synthetic_images
from pyfast_nas.engine import preset, search, train
from pyfast_nas.engine.scores import COLUMNS
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.spaces import DARTS, AccuracyTable, Genotype, NASBench201, Toy
from tests.tables import write_table

SPACE = NASBench201(channels=2, cells=1)
VALID, TEST = "c10_val_e12", "c10_test_e200"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("tables") / "cells.csv")


def run(table, **options):
    options = {"epochs": 2, "batch_size": 16, "compare": 0, "table": table} | options
    return search(options.pop("space", SPACE), synthetic_images(64, size=8), **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    return run(table, output=folder), folder


def test_the_result_says_where_it_stands(finished, table):
    result, folder = finished
    reader = AccuracyTable.read(table)
    assert result.table == {
        "file": str(table),
        "architectures": 15_625,
        "arch": SPACE.to_string(result.genotype),
        "valid": {"column": VALID, **reader.score(result.genotype, VALID)._asdict()},
        "test": {"column": TEST, **reader.score(result.genotype, TEST)._asdict()},
    }
    assert json.loads((folder / "result.json").read_text())["table"] == result.table
    config = json.loads((folder / "config.json").read_text())["search"]
    assert (config["table"], config["table_columns"]) == (str(table), [VALID, TEST])


def test_every_epoch_is_looked_up(finished):
    result, folder = finished
    rows = [row for row in lines(folder / "metrics.jsonl") if row["kind"] == "epoch"]
    assert rows == [*map(dict, result.history)] and len(rows) == 2
    for split in ("valid", "test"):
        score = result.table[split]
        assert rows[-1][f"table/{split}"] == score["value"]
        assert rows[-1][f"table/{split}_rank"] == score["rank"]
        assert rows[-1][f"table/{split}_regret"] == score["regret"]


def test_the_table_changes_nothing_of_the_search(finished, table):
    result, _ = finished
    alone = run(None)
    assert alone.table is None and alone.genotype == result.genotype
    assert [row["train/loss"] for row in alone.history] == [
        row["train/loss"] for row in result.history
    ]
    assert not any("table" in key for row in alone.history for key in row)


@pytest.mark.parametrize("algorithm", ["msg-das", "random"])
def test_other_algorithms_and_no_epoch_at_all(algorithm, table):
    result = run(table, algorithm=algorithm, epochs=1)
    assert 1 <= result.table["test"]["rank"] <= 15_625
    nothing = run(table, algorithm=algorithm, epochs=0)
    assert nothing.table["arch"] == SPACE.to_string(nothing.genotype)


def test_columns_are_those_of_the_data_set_or_what_is_asked_for(tmp_path):
    assert COLUMNS["cifar100"] == ("c100_val_e12", "c100_test_e200")
    path = write_table(tmp_path / "t.csv", columns=("a", "b"))
    result = run(path, table_columns=["b", "a"], epochs=0)
    assert result.table["valid"]["best"] == 90.0 and result.table["test"]["best"] == 80.0
    with pytest.raises(DataError, match="must have the column 'c10_val_e12'; it has 'a, b'"):
        run(path, epochs=0)


def test_refusals_come_before_anything_is_written(table, tmp_path):
    short = tmp_path / "short.csv"
    short.write_text("".join(table.read_text().splitlines(keepends=True)[:100]))
    for options, error, words in (
        ({"table": "gone.csv"}, DataError, "'gone.csv': No such file .*; name the file"),
        ({"table": short}, DataError, "must have 15625 rows, .* got 99"),
        ({"space": DARTS(channels=2, cells=1)}, ConfigError, "such as nas-bench-201, got 'darts'"),
        ({"table_columns": (VALID, "x")}, DataError, "must have the column 'x'"),
        ({"table_columns": (VALID,)}, ConfigError, "table_columns must be 2 values"),
        ({"table": None, "table_columns": (VALID, TEST)}, ConfigError, "must go with a table"),
    ):
        with pytest.raises(error, match=words):
            run(**({"table": table} | options), output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_presets_of_the_space():
    chosen = preset("cifar10", space_name="nas-bench-201")
    assert (chosen.channels, chosen.cells, chosen.epochs) == (16, 5, 50)
    assert (chosen.train_channels, chosen.train_cells, chosen.train_epochs) == (16, 5, 200)
    assert not (chosen.auxiliary or chosen.cutout or chosen.drop_path)
    small = preset("digits", space_name="nas-bench-201")
    assert (small.cells, small.train_cells, small.channels) == (1, 1, preset("digits").channels)
    assert preset("cifar10", space_name="mine") == preset("cifar10")
    result = search("nas-bench-201", "digits", epochs=0, compare=0)
    assert (result.space.cells, result.space.channels, result.space.image_size) == (1, 8, (8, 8))


class TestTraining:
    """The plain network of a cell, in the sizes of its space."""

    genotype = NASBench201().from_string(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    )

    def test_it_learns(self):
        data = synthetic_images(128, size=8)
        result = train(self.genotype, data, channels=4, cells=1, epochs=8, batch_size=32)
        assert result.accuracy > 0.9
        again = Genotype.from_json(self.genotype.to_json())
        assert NASBench201().genotype_of(result.module) == again

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"auxiliary": 0.4},
                "auxiliary must be left out or 0, since networks of the nas",
            ),
            ({"drop_path": 0.2}, "drop_path must be left out or 0"),
        ],
    )
    def test_what_its_networks_do_not_have_is_refused(self, options, words, tmp_path):
        data = synthetic_images(64, size=8)
        with pytest.raises(ConfigError, match=words):
            train(self.genotype, data, output=tmp_path / "a", **options)
        with pytest.raises(ConfigError, match="channels must be left out or 0"):
            train(Toy().optimum(), "toy", channels=4, output=tmp_path / "a")
        assert not (tmp_path / "a").exists()
