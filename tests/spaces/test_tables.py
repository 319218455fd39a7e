"""Tables of measured architectures: what they say, and refusal of every file that is none."""

import gzip
import os
import time

import numpy as np
import pytest

from pyfast_nas.errors import DataError, GenotypeError
from pyfast_nas.spaces import DARTS_V1, AccuracyTable, NASBench201
from pyfast_nas.spaces.tables import LARGEST, Score

ROWS = [
    ("arch", "iso", "val", "test", "empty"),
    ("a", "0", "60.5", "90", ""),
    ("b", "1", "70", "94.5", "3"),
    ("c", "0", "70", "91", ""),
    ("d", "2", "10", "90", ""),
]
SPACE = NASBench201()


def text(rows=ROWS):
    return "\n".join(",".join(row) for row in rows) + "\n"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lookup_rank_and_regret(tmp_path):
    table = AccuracyTable.read(write(tmp_path / "t.csv", text()))
    assert len(table) == 4 and table.columns == ("iso", "val", "test", "empty")
    assert table.architectures == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert table.lookup("a") == {"iso": 0.0, "val": 60.5, "test": 90.0}
    assert table.lookup("b")["empty"] == 3.0
    assert table.score("b", "test") == Score(94.5, 1, 94.5, 0.0)
    assert table.score("d", "test") == table.score("a", "test") == Score(90.0, 3, 94.5, 4.5)
    assert [table.score(name, "val").rank for name in "abcd"] == [3, 1, 1, 4]
    assert table.column("test").dtype == np.float64 and table.column("val").tolist()[1] == 70.0
    assert table.isomorphic("c") == ("a", "c") and table.isomorphic("d") == ("d",)


def test_packed_and_quoted_text_is_read_too(tmp_path):
    quoted = '"arch","test"\r\n"a","9.5e1"\r\n'
    for name, content in (("a.csv", quoted), ("b", gzip.compress(quoted.encode()))):
        table = AccuracyTable.read(write(tmp_path / name, content))
        assert table.lookup("a") == {"test": 95.0}


def strings():
    return list(SPACE.strings())


def test_genotypes_are_found_by_what_the_benchmark_calls_them(tmp_path):
    rows = [("arch", "test"), *((arch, str(row)) for row, arch in enumerate(strings()))]
    table = AccuracyTable.read(write(tmp_path / "t.csv", text(rows)), set(strings()))
    genotype = SPACE.random_genotype()
    arch = SPACE.to_string(genotype)
    assert table.lookup(genotype) == table.lookup(arch) == {"test": float(strings().index(arch))}
    assert table.score(genotype, "test").rank == 15_625 - strings().index(arch)
    with pytest.raises(GenotypeError, match="space must be 'nas-bench-201'"):
        table.lookup(DARTS_V1)


def without(row, column):
    rows = [list(each) for each in ROWS]
    del rows[row][column]
    return text(rows)


def changed(row, column, value):
    rows = [list(each) for each in ROWS]
    rows[row][column] = value
    return text(rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must have a header line, got an empty file"),
        ("arch,test\n", "at least one row, got only a header"),
        (changed(0, 0, "name"), "must have the column 'arch', got 'name, iso"),
        (changed(0, 3, "val"), "columns must differ, got 'val' twice"),
        (changed(3, 0, "a"), "architectures must differ, got 'a' in lines 2 and 4"),
        (without(2, 1), "line 3 must have 5 values, got 4"),
        ('arch,test\n"a,1\n', "comma-separated values: unexpected end of data"),
        (b"arch,test\na,\xff\n", "UTF-8 text, got byte 12 that is none"),
        (gzip.compress(text().encode(), mtime=0)[:-9], "broken gzip file .* fetch it again"),
        (b"\x1f\x8b and no more", "broken gzip file .* fetch it again"),
        (b"arch," + b"x" * LARGEST, "the file must be at most 16 MiB"),
        (gzip.compress(bytes(LARGEST + 1), mtime=0), "what gzip packed must be at most 16 MiB"),
    ],
)
def test_files_that_are_none(content, words, tmp_path):
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(DataError, match=rf"^table '.*t\.csv': .*{words}"):
        AccuracyTable.read(path)


@pytest.mark.parametrize("value", ["", "nan", "inf", "-Infinity", "ninety", "1e999"])
def test_a_column_holds_finite_numbers(value, tmp_path):
    table = AccuracyTable.read(write(tmp_path / "t.csv", changed(2, 3, value)))
    assert table.column("val")[1] == 70.0
    words = rf"test in line 3 must be a finite number, got '{value}'"
    with pytest.raises(DataError, match=words):
        table.column("test")
    with pytest.raises(DataError, match=words):
        table.score("a", "test")


def test_what_a_table_does_not_have(tmp_path):
    table = AccuracyTable.read(write(tmp_path / "t.csv", "arch,test\na,1\n"))
    for ask, words in (
        (lambda: table.column("val"), "must have the column 'val'; it has 'test'"),
        (lambda: table.column("arch"), "must have the column 'arch'"),
        (lambda: table.lookup("z"), "must have a row for 'z', got none"),
        (lambda: table.isomorphic("a"), "must have the column 'iso'"),
    ):
        with pytest.raises(DataError, match=words):
            ask()


def test_rows_are_those_of_the_space(tmp_path):
    path = write(tmp_path / "t.csv", text())
    assert len(AccuracyTable.read(path, set("abcd"))) == 4
    with pytest.raises(DataError, match=r"must have 5 rows, one for each .*, got 4"):
        AccuracyTable.read(path, set("abcde"))
    with pytest.raises(DataError, match=r"arch in line 4 must be an architecture .*, got 'c'"):
        AccuracyTable.read(path, set("abde"))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "none.csv", "No such file or directory; name the file of the table"),
        (tmp_path, "Is a directory; name the file"),
        (tmp_path / "pipe", "must be a regular file"),
    ):
        with pytest.raises(DataError, match=words):
            AccuracyTable.read(path)


@pytest.fixture(scope="module")
def real(real_data):
    return AccuracyTable.read(real_data / "nas" / "nas_bench_201.csv.gz", set(strings()))


class TestPublished:
    """The benchmark itself."""

    def test_known_values(self, real):
        best = {"c10": 94.37, "c100": 73.51, "in16": 47.31}
        for data, value in best.items():
            assert round(real.column(f"{data}_test_e200").max(), 2) == value
        skips = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|".format("skip_connect")
        score = real.score(skips, "c10_test_e200")
        assert round(score.value, 2) == 54.30 and round(score.regret, 2) == 40.08
        assert score.rank == 15_231
        assert len(real) == 15_625 and len({real.isomorphic(arch) for arch in strings()}) == 6_466

    def test_isomorphic_cells_differ_by_the_seed_of_their_training_only(self, real):
        values = real.column("c10_test_e200")
        classes = {real.isomorphic(arch) for arch in strings()}
        spreads = [
            np.ptp([values[real.architectures[arch]] for arch in each])
            for each in classes
            if len(each) > 1
        ]
        assert len(spreads) == 1_350
        assert np.median(spreads) < 0.5 < 10 < values.std()

    def test_validation_and_test_agree_on_the_whole(self, real):
        """Rank correlation of twelve epochs with two hundred."""
        names = "c10_val_e12", "c10_test_e200"
        ranks = [real.column(name).argsort().argsort() for name in names]
        assert round(np.corrcoef(*ranks)[0, 1], 2) == 0.77

    def test_parameters_are_those_of_the_networks_that_are_built(self, real):
        rng = np.random.default_rng(0)
        for row in rng.choice(15_625, 12, replace=False):
            arch = strings()[row]
            network = SPACE.build(SPACE.from_string(arch))
            size = sum(p.numel() for p in network.parameters())
            assert size == real.lookup(arch)["c10_params"]

    def test_parameters_of_every_cell(self, real):
        """By the sizes of single operations, which the networks above confirm."""
        size = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
        widths = (16, 32, 64)
        of = {op: sum(5 * (n * w * w + 2 * w) for w in widths) for op, n in size.items()}
        for arch, row in real.architectures.items():
            operations = [edge.op for edge in SPACE.from_string(arch).cells["cell"]]
            want = 73_306 + sum(of.get(op, 0) for op in operations)
            assert real.column("c10_params")[row] == want

    def test_costs_of_the_same_cells_are_read_by_the_same_reader(self, real_data):
        path = real_data / "nas" / "hw_nas_bench_201.csv.gz"
        costs = AccuracyTable.read(path, set(strings()))
        numbers = costs.lookup(strings()[0])
        assert numbers["c10_edgegpu_latency"] > 0
        with pytest.raises(DataError, match=r"c10_edgetpu_latency in line .*, got ''"):
            costs.column("c10_edgetpu_latency")

    def test_reading_takes_less_than_half_a_second(self, real_data):
        def seconds():
            start = time.process_time()
            AccuracyTable.read(real_data / "nas" / "nas_bench_201.csv.gz", set(strings()))
            return time.process_time() - start

        assert min(seconds() for _ in range(3)) < 0.5
