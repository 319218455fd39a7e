"""The torch-free headers of the sampler against NumPy, Random123 and closed forms."""

import numpy as np
import pytest
import torch

from pyfast_nas.ops import reference

SEED, OFFSET = 0x0123456789ABCDEF, 2**32 + 5
WORDS = np.array([0, 1, 0xFF, 0x100, 0x7FFFFFFF, 0x80000000, 0xFFFFFF00, 0xFFFFFFFF], np.uint32)


def ulps(got, want):
    """Distance to a float64 result in units of the float32 spacing there."""
    return np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(want).astype(np.float32))


def reference_words(rows, columns, first_row=0, seed=SEED, offset=OFFSET):
    seed = torch.tensor([seed, offset])
    return reference.philox_words(seed, rows, columns, first_row=first_row).numpy()


@pytest.mark.parametrize(
    ("rounds", "counter", "key", "output"),
    [
        (7, [0] * 4, [0] * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (10, [0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (7, [2**32 - 1] * 4, [2**32 - 1] * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (10, [2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            10,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(host, rounds, counter, key, output):
    got = host.philox(np.array(counter, np.uint32), np.array(key, np.uint32), rounds)
    assert [f"{word:08x}" for word in got] == output.split()


def test_vectors_of_counters_give_the_same_words(host):
    lanes = len(host.lane_words(SEED, OFFSET, 0, 0, False)) // 4
    columns = len(host.lane_words(SEED, OFFSET, 0, 0, True))
    for first_row in (0, 13, 2**32 - lanes):
        # Along a row: neighbouring columns in order.
        want = reference_words(1, columns + 12, first_row)[0, 12:]
        assert np.array_equal(host.lane_words(SEED, OFFSET, first_row, 3, True), want)
        # Across rows: four columns, a row in each lane.
        want = reference_words(lanes, 12, first_row)[:, 8:].T.ravel()
        assert np.array_equal(host.lane_words(SEED, OFFSET, first_row, 2, False), want)


@pytest.mark.promise("G1")
def test_uniforms_and_noise_at_the_ends(host):
    u = host.open_uniform(WORDS)
    exact = ((WORDS >> 8) | 1).astype(np.float64) / 2**24
    assert np.array_equal(u.astype(np.float64), exact)
    assert u.min() > 0
    assert u.max() < 1
    noise = host.gumbel(WORDS)
    assert np.abs(noise - -np.log(-np.log(exact))).max() < 1e-5
    assert np.isfinite(noise).all()


def test_logarithm_keeps_its_relative_accuracy(host):
    near_one = 1 - np.arange(1, 4000, 2) * 2.0**-24
    x = np.concatenate([np.geomspace(2.0**-24, 17, 20001), near_one, 1 + near_one % 2.0**-12])
    x = np.unique(x.astype(np.float32))
    x = x[x != 1]
    assert ulps(host.log_lanes(x), np.log(x.astype(np.float64))).max() < 2
    assert host.log_lanes(np.ones(1, np.float32))[0] == 0


def test_exponential(host):
    x = np.concatenate([np.linspace(-87.2, 0, 20001), -np.geomspace(1e-20, 1, 2001)])
    x = x.astype(np.float32)
    assert ulps(host.exp_lanes(x), np.exp(x.astype(np.float64))).max() < 2
    below = np.array([-87.4, -1000, -3e38, -np.inf], np.float32)
    assert np.array_equal(host.exp_lanes(below), np.zeros(4))
    assert host.exp_lanes(np.zeros(1, np.float32))[0] == 1


ADVERSARIAL = [
    np.zeros(40),
    np.arange(40.0),
    -np.arange(40.0),
    np.repeat([3.0, 1.0, 3.0, 2.0, -np.inf], 8),
    np.array([0.0, -0.0] * 20),
    np.random.default_rng(0).integers(0, 5, 40).astype(float),
    np.random.default_rng(1).standard_normal(40),
]


@pytest.mark.promise("G3")
@pytest.mark.parametrize("method", ["insertion", "heap"])
@pytest.mark.parametrize("keys", ADVERSARIAL)
def test_top_k_on_adversarial_ties(host, keys, method):
    for k in (1, 2, 3, 7, 20, 40):
        best, index, *left = getattr(host, method)(keys, k)
        finite = np.flatnonzero(keys > -np.inf)
        order = finite[np.argsort(-keys[finite], kind="stable")][:k]
        assert np.array_equal(index[: len(order)], order)
        assert np.array_equal(best[: len(order)], keys[order])
        if left:
            # What fell out and what stayed are together what went in.
            out = np.sort(np.concatenate([left[0], best]))
            put = np.sort(np.concatenate([keys, np.full(k, -np.inf)]))
            assert np.array_equal(out, put)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "atol"), [("32", np.float32, 2e-6), ("64", float, 1e-14)]
)
def test_the_row_of_a_cuda_thread_agrees_with_the_reference(host, name, dtype, atol, conditional):
    generator = np.random.default_rng(2)
    for columns in (1, 2, 3, 4, 5, 8, 17, 64):
        for k in range(1, min(columns, 4) + 1):
            for row in (0, 1, 12345, 2**32 - 1):
                logits = generator.standard_normal(columns).astype(dtype)
                if columns > 5:
                    logits[2] = -np.inf
                sampled = getattr(host, f"sample_row{name}")(
                    logits, k, SEED, OFFSET, row, 0.7, conditional
                )
                usable, weights, indices, keys = sampled
                words = torch.from_numpy(reference_words(1, columns, row))
                u = ((words >> 8) | 1).double() * 2.0**-24
                noise = reference.gumbel_from_uniform(u)
                want_weights, want_indices, want_keys = reference.gumbel_topk(
                    torch.from_numpy(logits).double()[None], k, 0.7, None, conditional, True, noise
                )
                assert usable
                assert np.array_equal(indices, want_indices[0])
                np.testing.assert_allclose(keys, want_keys[0], rtol=0, atol=max(atol, 1e-13) * 10)
                np.testing.assert_allclose(weights, want_weights[0], rtol=0, atol=atol)


@pytest.mark.parametrize(
    "logits", [[np.nan, 0, 0], [0, np.inf, 0], [-np.inf, 0, -np.inf], [-np.inf] * 3]
)
def test_the_row_of_a_cuda_thread_refuses(host, logits):
    for conditional in (False, True):
        sampled = host.sample_row32(np.array(logits, np.float32), 2, 0, 0, 0, 1.0, conditional)
        assert not sampled[0]


def test_extreme_temperatures_stay_finite(host):
    for tau in (1e-300, 1e-38, 1e-3, 1e3, 1e38, 1e300):
        assert 0 < host.inverse_tau(tau) < np.inf
        for conditional in (False, True):
            logits = np.array([1e4, -1e4, 0, -np.inf, 3e38], np.float32)
            usable, weights, *_ = host.sample_row32(logits, 3, 0, 0, 0, tau, conditional)
            assert usable
            assert np.isfinite(weights).all()


@pytest.mark.promise("K12a")
def test_launch_geometry_beyond_two_to_the_31(host):
    for items in (1, 127, 128, 2**31 - 1, 2**31, 2**31 + 513, 2**32, 65536 * 2**31):
        for threads in (32, 128, 256):
            blocks = host.blocks_for(items, threads, host.max_grid)
            assert 1 <= blocks <= 2**31 - 1
            assert blocks == min(-(-items // threads), 2**31 - 1)
            # Every item has a thread: the first block starts at 0, the last in the first stride.
            assert host.first_item(0, threads, 0) == 0
            last = host.first_item(blocks - 1, threads, threads - 1)
            assert last >= items - 1 or blocks == host.max_grid
            assert last == blocks * threads - 1
    assert host.blocks_for(0, 128, host.max_grid) == 0
    for columns, counters in [(1, 1), (4, 1), (5, 2), (65536, 16384), (2**26, 2**24)]:
        assert host.counters_per_row(columns) == counters
    assert host.threads_per_row(256) == 32
    assert host.threads_per_row(257) == 256
    assert host.samples_in_registers(64, 4)
    assert not host.samples_in_registers(65, 1)
    assert not host.samples_in_registers(8, 5)
