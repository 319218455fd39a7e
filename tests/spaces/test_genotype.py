"""Genotypes: identity through text, and refusal of everything that is not one."""

import copy
import json
import os
import pickle
import resource
import socket
import time

import pytest
import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.spaces import (
    DARTS,
    DARTS_V1,
    DARTS_V2,
    SPACES,
    Genotype,
    GenotypeEdge,
    NASBench201,
    Toy,
)
from pyfast_nas.spaces.strict_json import MAX_BYTES

EDGE = {"source": 0, "target": 2, "op": "skip_connect"}


def document(**changes):
    base = {
        "format": "pyfast_nas.genotype",
        "version": 1,
        "space": "darts",
        "cells": {"normal": [EDGE, {"source": 1, "target": 2, "op": "sep_conv_3x3"}]},
        "outputs": {"normal": [2]},
    }
    return {key: value for key, value in (base | changes).items() if value is not ...}


def with_edge(*edges, **changes):
    return document(cells={"normal": [EDGE | edge for edge in (*edges, changes)]})


@pytest.mark.promise("R2")
@pytest.mark.parametrize("space", [DARTS(channels=2, cells=3), DARTS(nodes=2), Toy()], ids=repr)
def test_random_genotypes_survive_text_and_network(space):
    generator = torch.Generator().manual_seed(0)
    sizes = {"channels": 2, "cells": 3} if isinstance(space, DARTS) else {}
    seen = set()
    for _ in range(12):
        genotype = space.random_genotype(generator)
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert space.genotype_of(space.build(genotype, **sizes)) == genotype
        seen.add(genotype)
    assert len(seen) > 3


def test_hash_is_stable():
    assert DARTS_V1.hash == "9ae43241e43175e8"
    assert DARTS_V2.hash == "539805a6c1c83396"
    assert len({DARTS_V1, DARTS_V2, Genotype.from_json(DARTS_V1.to_json())}) == 2


def test_copies_and_pickles():
    assert copy.deepcopy(DARTS_V1) == pickle.loads(pickle.dumps(DARTS_V1)) == DARTS_V1


def test_it_cannot_be_changed():
    with pytest.raises(TypeError):
        DARTS_V1.cells["normal"] = ()
    with pytest.raises(AttributeError):
        DARTS_V1.space = "other"


def test_one_line_per_edge():
    lines = DARTS_V1.to_json().splitlines()
    assert '      {"op": "sep_conv_3x3", "source": 1, "target": 2},' in lines
    assert len(lines) == 41


def test_edges_are_listed_by_falling_strength_and_kept_so():
    assert [edge.source for edge in DARTS_V1.cells["normal"][:2]] == [1, 0]
    swapped = dict(DARTS_V1.cells)
    swapped["normal"] = (swapped["normal"][1], swapped["normal"][0], *swapped["normal"][2:])
    assert Genotype("darts", swapped, DARTS_V1.outputs) != DARTS_V1


REFUSED_TEXTS = {
    "empty": ("", "not a genotype.* line 1, column 1"),
    "no JSON": ('{"a": 1,\n  oops}', "line 2, column 3.* JSON object was expected"),
    "list": ("[1, 2]", r"line 1, column 1 must be an object, got list \[1, 2\]"),
    "number": ("3", "must be an object, got int 3"),
    "true": ("true", "must be an object, got bool True"),
    "null": ("null", "must be an object, got NoneType"),
    "NaN": ('{"a": NaN}', "finite, got NaN"),
    "Infinity": ('{"a": -Infinity}', "finite, got -Infinity"),
    "overflow": ('{"a": 1e999}', "finite.* got 1e999"),
    "long number": ('{"a": ' + "9" * 5000 + "}", "at most 18 digits, got 5000"),
    "long fraction": ('{"a": 0.' + "9" * 5000 + "}", "finite and short"),
    "duplicate key": ('{"a": 1, "a": 2}', "duplicate key 'a'"),
    "BOM": ("\ufeff{}", "BOM"),
    "NUL": ('{"a": "\x00"}', "NUL"),
    "raw surrogate": ('{"space": "\ud800"}', "format must be"),
    "deep": ("[" * 100_000, "at most 16 deep"),
    "deep objects": ('{"a":' * 100_000, "at most 16 deep"),
    "long": (" " * (MAX_BYTES + 1), "at most 1048576 bytes"),
    "Python": ("Genotype(normal=[('sep_conv_3x3', 1)])", "not a genotype but Python.*from_pairs"),
    "import": ("__import__('os').system('true')", "not a genotype.* line 1, column 1"),
    "YAML": ("!!python/object/apply:os.system ['true']", "not a genotype"),
    "quotes": ('"\\"' * 200_000, "not a genotype"),
    "bytes": (b"{}", "must be a string, got bytes"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED_TEXTS.values(), ids=REFUSED_TEXTS)
def test_refused_texts(text, words):
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GenotypeError, match=words) as caught:
        Genotype.from_json(text)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


REFUSED_DOCUMENTS = {
    "format": (document(format="other"), "format must be .* got 'other'"),
    "no format": (document(format=...), "format must be .* got None"),
    "newer": (document(version=2), r"version must be from 1 to 1, got 2; .* newer"),
    "version 0": (document(version=0), "version must be from 1 to 1, got 0"),
    "version true": (document(version=True), "version must be an integer, got bool True"),
    "no version": (document(version=...), "version must be an integer, got nothing"),
    "missing key": (document(outputs=...), "outputs is missing"),
    "extra key": (document(extra=1), "extra is unknown; the keys are format"),
    "space": (document(space=3), "space must be a string, got int 3"),
    "space name": (document(space="a b"), "space must be a name"),
    "cells list": (document(cells=[]), "cells must be an object"),
    "no cells": (document(cells={}, outputs={}), "cells must not be empty"),
    "table name": (
        document(cells={"a/b": [EDGE]}, outputs={"a/b": [2]}),
        "a key of cells .* 'a/b'",
    ),
    "table": (document(cells={"normal": {}}), "cells.normal must be a list"),
    "edge": (document(cells={"normal": [3]}), r"cells.normal\[0\] must be an object"),
    "edge key": (with_edge(weight=1), r"cells.normal\[0\].weight is unknown"),
    "edge missing": (
        document(cells={"normal": [{"source": 0, "target": 2}]}),
        r"cells.normal\[0\].op is missing",
    ),
    "op type": (with_edge({}, op=None), r"cells.normal\[1\].op must be a string, got nothing"),
    "op NUL": (with_edge(op="a\x00"), r"cells.normal\[0\].op .* NUL in 'a\\x00'"),
    "op surrogate": (with_edge(op="\ud800"), r"\.op .* unpaired surrogate"),
    "op escape": (with_edge(op="\x1b[31m"), r"\.op must be a name .* '\\x1b\[31m'"),
    "op long": (with_edge(op="a" * 65), r"\.op must be a name of 1 to 64"),
    "own node": (with_edge(source=2), r"cells.normal\[0\].source must be an earlier state"),
    "later node": (with_edge(source=3), r"source must be an earlier state than target 2, got 3"),
    "negative": (with_edge(source=-1), r"source must be a state from 0 to 9999, got -1"),
    "huge": (with_edge(target=10**17), r"target must be a state from 0 to 9999"),
    "float": (with_edge(source=0.0), r"source must be an integer, got float 0.0"),
    "bool": (with_edge(source=False), r"source must be an integer, got bool False"),
    "repeated": (with_edge({}), r"cells.normal\[1\] must not repeat an edge, got 0 -> 2"),
    "order": (with_edge({"target": 3}), r"cells.normal\[1\].target must be at least 3"),
    "output": (document(outputs={"normal": [3]}), r"outputs.normal\[0\] must be a state"),
    "outputs float": (document(outputs={"normal": [2.0]}), r"outputs.normal\[0\] must be an int"),
    "output twice": (document(outputs={"normal": [2, 2]}), r"outputs.normal\[1\] must not repeat"),
    "no output": (document(outputs={"normal": []}), "outputs.normal must not be empty"),
    "outputs": (document(outputs={"normal": 2}), "outputs.normal must be a list"),
    "outputs keys": (document(outputs={"reduce": [2]}), "outputs must have the keys of cells"),
}


@pytest.mark.parametrize(("doc", "words"), REFUSED_DOCUMENTS.values(), ids=REFUSED_DOCUMENTS)
def test_refused_documents(doc, words):
    for read in (lambda: Genotype.from_json(json.dumps(doc)), lambda: Genotype.from_dict(doc)):
        with pytest.raises(GenotypeError, match=words) as caught:
            read()
        assert str(caught.value).isprintable()


def test_the_base_of_the_refused_documents_is_accepted():
    assert Genotype.from_dict(document()).cells["normal"][1].op == "sep_conv_3x3"
    assert Genotype.from_dict(with_edge({}, source=1)).cells["normal"][1].source == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("darts", {"normal": [("skip_connect", 0)]}, {"normal": [2]}), "must be a GenotypeEdge"),
        (("darts", {"normal": "ab"}, {"normal": [2]}), "cells must map names to tuples"),
        (("darts", [], {}), "cells must map names to tuples"),
        (("darts", {1: [GenotypeEdge(0, 1, "a")]}, {1: [1]}), "a key of cells .* string, got int"),
        ((None, {"a": [GenotypeEdge(0, 1, "a")]}, {"a": [1]}), "space must be a string"),
    ],
)
def test_refused_objects(arguments, words):
    with pytest.raises(GenotypeError, match=words):
        Genotype(*arguments)


def test_save_and_load(tmp_path):
    path = tmp_path / "genotype.json"
    DARTS_V1.save(path)
    DARTS_V2.save(str(path))
    assert Genotype.load(path) == DARTS_V2
    assert path.read_text() == DARTS_V2.to_json()
    assert [entry.name for entry in tmp_path.iterdir()] == ["genotype.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "genotype.json"
    DARTS_V1.save(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        DARTS_V2.save(path)
    monkeypatch.undo()
    assert Genotype.load(path) == DARTS_V1
    assert [entry.name for entry in tmp_path.iterdir()] == ["genotype.json"]


def test_load_refuses_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        Genotype.load(tmp_path / "missing.json")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Genotype.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(GenotypeError, match="must be a regular file"):
            Genotype.load(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="No such device"):
            Genotype.load(tmp_path / "s")


def test_load_refuses_other_contents(tmp_path):
    path = tmp_path / "-x\n.json"
    for data, words in (
        (pickle.dumps(DARTS_V1), "byte 0 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b" " * (MAX_BYTES + 1), "at most 1048576 bytes"),
        (b'{"a": 1', r"line 1, column 8.*in '.*-x\\n.json'"),
    ):
        path.write_bytes(data)
        with pytest.raises(GenotypeError, match=words) as caught:
            Genotype.load(path)
        assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_load_refuses_what_it_may_not_read(tmp_path):
    path = tmp_path / "genotype.json"
    DARTS_V1.save(path)
    path.chmod(0)
    with pytest.raises(PermissionError):
        Genotype.load(path)


@pytest.mark.promise("R3")
def test_operations_are_matched_by_name():
    """A space with its operations in another order builds and keeps the same architecture."""
    names = DARTS().operations
    other = DARTS(operations=tuple(reversed(names)))
    sizes = {"channels": 2, "cells": 3}
    here, there = DARTS().build(DARTS_V1, **sizes), other.build(DARTS_V1, **sizes)
    assert [type(m) for m in here.modules()] == [type(m) for m in there.modules()]
    without = DARTS(operations=tuple(name for name in names if name != "avg_pool_3x3"))
    with pytest.raises(GenotypeError, match=r"cells.reduce\[7\].op .* got 'avg_pool_3x3'"):
        without.build(DARTS_V1, **sizes)


def test_spaces_by_name():
    assert {name: space.name for name, space in SPACES.items()} == {name: name for name in SPACES}
    assert {"darts": DARTS, "nas-bench-201": NASBench201, "toy": Toy}.items() <= SPACES.items()
