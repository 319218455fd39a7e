"""Genotypes under generated input: identity through text, and no error but the family's own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast_nas.errors import Error, GenotypeError
from pyfast_nas.spaces import Genotype, GenotypeEdge

DOCUMENT = {
    "format": "pyfast_nas.genotype",
    "version": 1,
    "space": "darts",
    "cells": {"normal": [{"source": 0, "target": 2, "op": "skip_connect"}]},
    "outputs": {"normal": [2]},
}


@st.composite
def genotypes(draw):
    """Any genotype that the format allows, whatever its space."""
    names = st.text("abzAZ09_.-", min_size=1, max_size=20).map("x{}".format)
    cells, outputs = {}, {}
    for table in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        pairs = draw(
            st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), min_size=1, max_size=8)
        )
        pairs = {(source, target) for source, target in pairs if source < target} or {(0, 1)}
        ordered = sorted(pairs, key=lambda pair: pair[1])
        cells[table] = tuple(GenotypeEdge(s, t, draw(names)) for s, t in ordered)
        outputs[table] = tuple(draw(st.permutations(sorted({t for _, t in pairs}))))
    return Genotype(draw(names), cells, outputs)


@pytest.mark.promise("R2")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(genotypes())
def test_text_and_back_is_the_identity(genotype):
    text = genotype.to_json()
    again = Genotype.from_json(text)
    assert again == genotype
    assert again.to_json() == text
    assert again.hash == genotype.hash and hash(again) == hash(genotype)
    assert Genotype.from_dict(json.loads(text)) == genotype


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_brings_out_another_error(text):
    with pytest.raises(Error):
        Genotype.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["version", "space", "cells", "outputs"]), JSON, st.booleans())
def test_no_document_brings_out_another_error(key, value, nested):
    changed = DOCUMENT | {key: {"normal": value} if nested else value}
    try:
        genotype = Genotype.from_dict(changed)
    except GenotypeError as error:
        assert str(error).isprintable()
    else:
        assert Genotype.from_json(genotype.to_json()) == genotype
