"""Counter-based random numbers: words bit for bit, uniforms, noise and their layout."""

import pytest
import torch

from pyfast_nas import _ext, ops
from pyfast_nas.ops import reference

# Random123's known-answer vectors: rounds, counter, key, output.
KNOWN_ANSWERS = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000",
     "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip

# Stream 0: seed, offset, row, eight words, eight values of the noise.
GOLDEN_ROWS = [
    (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8 f8e4cca4 5cb200db b1a574eb 097eff67",
     [0.084820, 2.061661, 1.181183, 0.689692, 3.570161, -0.015735, 1.006810, -1.192193]),
    (0, 0, 1, "6ad0c5ec ea236249 73a459f5 074944b3 6da11836 e4c29d23 fc0d53ee 645d5243",
     [0.134590, 2.416137, 0.229818, -1.269534, 0.164789, 2.184774, 4.164220, 0.065746]),
    (0, 1, 0, "844515e1 f08d6eaa 0f19c053 83f875f0 ca7cf69e d9c77ded 7e66d954 6d658f40",
     [0.415011, 2.776770, -1.040433, 0.411586, 1.450316, 1.822040, 0.348548, 0.162288]),
    (0x0123456789ABCDEF, 7, 13,
     "142d751c 4f3396e0 d7668d0a 7bfa6e78 09b07692 2fd226ee b1dec6ed 6b8dcbd3",
     [-0.932403, -0.159720, 1.756327, 0.321485, -1.186059, -0.517432, 1.010263, 0.142502]),
    (0x0123456789ABCDEF, 2**32 + 5, 2,
     "af90d69b 58f6c18e 73a76f0d a02c1d04 b6b1397b 44eda630 01e3c71d 35221df3",
     [0.975076, -0.055385, 0.229949, 0.757308, 1.086562, -0.271637, -1.591015, -0.452587]),
]  # fmt: skip


def words_of(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("rounds", "counter", "key", "output"), KNOWN_ANSWERS)
def test_cipher_gives_the_known_answers(rounds, counter, key, output):
    counter, key = (torch.tensor(words_of(words)) for words in (counter, key))
    assert [int(w) for w in reference.philox4x32(counter, key, rounds)] == words_of(output)


@pytest.mark.parametrize(("seed", "offset", "row", "words", "noise"), GOLDEN_ROWS)
def test_rows_hold_the_golden_words(seed, offset, row, words, noise):
    seed = torch.tensor([seed, offset])
    got = reference.philox_words(seed, 1, 8, first_row=row)
    assert got[0].tolist() == words_of(words)


@pytest.mark.parametrize(("seed", "offset", "row", "words", "noise"), GOLDEN_ROWS)
def test_uniforms_and_noise_follow_from_the_words(backend, seed, offset, row, words, noise):
    seed = torch.tensor([seed, offset])
    u = ops.philox_uniform(seed, 1, 8, first_row=row)
    exact = [((word >> 8) | 1) / 2**24 for word in words_of(words)]
    assert u.dtype == torch.float32
    assert u[0].tolist() == exact
    got = ops.gumbel_noise(seed, row + 1, 8)[row]
    torch.testing.assert_close(got, torch.tensor(noise), rtol=0, atol=1e-6)


@pytest.mark.promise("G1")
def test_every_word_gives_finite_noise():
    ends = torch.tensor([0x0, 0x1, 0xFF, 0x100, 0x7FFFFFFF, 0x80000000, 0xFFFFFF00, 0xFFFFFFFF])
    u = ((ends >> 8) | 1).to(torch.float32) * 2.0**-24
    assert u[0] == 2.0**-24
    assert u[-1] == 1 - 2.0**-24
    noise = reference.gumbel_from_uniform(u)
    assert bool(noise.isfinite().all())
    want = torch.tensor([-2.811541, -2.811541, -2.811541, -2.811541, 0.366512749, 0.366513093])
    torch.testing.assert_close(noise[:6], want, rtol=0, atol=1e-6)
    assert abs(float(noise[-1]) - 16.635532) < 1e-5


@pytest.mark.promise("G1")
def test_a_million_draws_stay_inside_the_bounds(backend):
    noise = ops.gumbel_noise(torch.tensor([11, 0]), 4096, 256)
    assert bool(noise.isfinite().all())
    assert float(noise.min()) >= -2.8116
    assert float(noise.max()) <= 16.6356


def test_numbers_do_not_depend_on_the_grouping_of_rows(backend):
    seed = torch.tensor([2024, 3])
    whole = ops.philox_uniform(seed, 37, 19)
    for first, last in [(0, 1), (1, 18), (18, 37)]:
        part = ops.philox_uniform(seed, last - first, 19, first_row=first)
        assert torch.equal(part, whole[first:last])
    # Fewer columns are the first columns: a word belongs to its column.
    for columns in range(1, 19):
        assert torch.equal(ops.philox_uniform(seed, 37, columns), whole[:, :columns])


def test_every_instruction_set_gives_the_words_of_the_reference(instruction_set):
    for seed, offset in [(0, 0), (-1, -1), (2**63 - 1, 2**32 + 5), (-(2**63), 1)]:
        seed = torch.tensor([seed, offset])
        for rows, columns, first, stream in [
            (1, 1, 0, 0), (5, 7, 2**32 - 5, 1), (33, 64, 4096 * 3 + 1, 2), (2, 1000, 2**31 - 1, 255)
        ]:  # fmt: skip
            with _ext.use("reference"):
                want = ops.philox_uniform(seed, rows, columns, stream=stream, first_row=first)
            got = ops.philox_uniform(seed, rows, columns, stream=stream, first_row=first)
            assert torch.equal(got, want)


@pytest.mark.promise("G5")
def test_seeds_offsets_streams_and_rows_share_no_counter():
    columns = 64
    seen = {}
    for seed in (0, 1, 2**32, -1):
        for offset in (0, 1, 2**32):
            for stream in (0, 1, 2):
                words = reference.philox_words(
                    torch.tensor([seed, offset]), 8, columns, stream=stream
                )
                for row, line in enumerate(words.tolist()):
                    where = (seed, offset, stream, row)
                    assert seen.setdefault(tuple(line), where) == where
    assert len(seen) == 4 * 3 * 3 * 8


@pytest.mark.promise("G6")
def test_nothing_is_remembered_and_no_generator_moves(backend):
    seed = torch.tensor([5, 9])
    state = torch.get_rng_state()
    first = ops.philox_uniform(seed, 4, 4)
    ops.philox_uniform(torch.tensor([5, 10]), 4, 4)
    assert torch.equal(first, ops.philox_uniform(seed, 4, 4))
    assert not torch.equal(first, ops.philox_uniform(torch.tensor([5, 10]), 4, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert seed.tolist() == [5, 9]


def test_empty_blocks(backend):
    seed = torch.tensor([0, 0])
    assert ops.philox_uniform(seed, 0, 8).shape == (0, 8)
    assert ops.philox_uniform(seed, 3, 0).shape == (3, 0)
    assert ops.gumbel_noise(seed, 0, 1).shape == (0, 1)


@pytest.mark.promise("G5")
def test_draw_seed_follows_the_generator():
    torch.manual_seed(3)
    first, second = ops.draw_seed(), ops.draw_seed()
    assert first.dtype == torch.int64
    assert first[1] == 0
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, ops.draw_seed())
    generator = torch.Generator().manual_seed(4)
    state = torch.get_rng_state()
    assert torch.equal(
        ops.draw_seed(generator), ops.draw_seed(torch.Generator().manual_seed(4), "cpu")
    )
    assert torch.equal(state, torch.get_rng_state())


SEED = torch.tensor([0, 0])
REFUSALS = [
    ({"seed": [0, 0]}, TypeError, "philox_uniform: seed must be an int64 tensor .2., got list"),
    ({"seed": SEED.int()}, TypeError, "seed must have dtype torch.int64, got torch.int32"),
    (
        {"seed": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        r"seed must have shape \[2\].*\[3\]",
    ),
    ({"seed": SEED.to("meta")}, NotImplementedError, "seed must be a dense.*meta"),
    ({"rows": -1}, ValueError, "rows must be between 0 and 4294967296, got -1"),
    ({"rows": 1.0}, TypeError, "rows must be an integer, got float"),
    ({"columns": True}, TypeError, "columns must be an integer, got bool"),
    ({"columns": 2**26 + 1}, ValueError, "columns must be between 0 and 67108864"),
    ({"stream": 256}, ValueError, "stream must be between 0 and 255, got 256"),
    ({"first_row": 2**32 - 1}, ValueError, "first_row . rows must be at most 4294967296"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSALS)
def test_refusals(backend, change, error, words):
    arguments = {"seed": SEED, "rows": 2, "columns": 4, "stream": 0, "first_row": 0, **change}
    seed, rows, columns = (arguments.pop(name) for name in ("seed", "rows", "columns"))
    with pytest.raises(error, match=words):
        ops.philox_uniform(seed, rows, columns, **arguments)


def test_noise_refuses_rows_longer_than_the_sampler_serves():
    with pytest.raises(
        ValueError, match="gumbel_noise: columns must be between 1 and 65536, got 65537"
    ):
        ops.gumbel_noise(SEED, 1, 65537)
