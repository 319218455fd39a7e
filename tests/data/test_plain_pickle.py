"""The reader that runs nothing: official files as Python reads them, hostile ones refused."""

import contextlib
import io
import os
import pickle
import pickletools
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast_nas.data import plain_pickle
from pyfast_nas.data.plain_pickle import read_plain_pickle
from pyfast_nas.errors import DataError

OFFICIAL = (
    "cifar-10-batches-py/data_batch_1",
    "cifar-10-batches-py/data_batch_2",
    "cifar-10-batches-py/test_batch",
    "cifar-10-batches-py/batches.meta",
    "cifar-100-python/train",
    "cifar-100-python/test",
    "cifar-100-python/meta",
)


@pytest.mark.parametrize("name", OFFICIAL)
def test_reads_official_files_as_python_does(real_data, name):
    got = read_plain_pickle(real_data / name)
    with open(real_data / name, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files name modules by numpy's old names
        want = pickle.load(file, encoding="bytes")
    assert set(got) == {key.decode() for key in want}
    for key, value in want.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got[key.decode()], value)
            assert got[key.decode()].dtype == np.uint8
        else:
            assert got[key.decode()] == value


def test_reads_what_the_writer_of_the_tests_writes(tmp_path, files):
    value = {"numbers": [0, 255, 256, -1], "none": None, "nested": [(True, False), []]}
    path = tmp_path / "file"
    path.write_bytes(files.dump(value | {"data": files.images(3)}))
    got = read_plain_pickle(path)
    np.testing.assert_array_equal(got.pop("data"), files.images(3))
    assert got == value


def test_fortran_order_is_kept(tmp_path, files):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = tmp_path / "file"
    content = b"\x80\x02}U\x01d" + files.array((2, 3), pixels.tobytes("F"), order=True) + b"s."
    path.write_bytes(content)
    np.testing.assert_array_equal(read_plain_pickle(path)["d"], pixels)


class Evil:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.system, os.mkdir, exec], ids=lambda call: call.__name__)
def test_nothing_a_pickle_names_is_run(tmp_path, call, protocol):
    trap = tmp_path / "trap"
    argument = {"system": f"mkdir {trap}", "exec": f"import os; os.mkdir({str(trap)!r})"}
    evil = Evil(call, argument.get(call.__name__, str(trap)))
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": evil}, protocol))
    with pytest.raises(DataError, match=r"data_batch_1': (refers to|not a pickle of protocol 2)"):
        read_plain_pickle(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap must be one that Python's reader falls into"


def test_numpy_names_are_called_in_no_other_way(tmp_path):
    for content in (
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # an array of 2**31 elements
        b"\x80\x02}U\x01dcnumpy\ndtype\ns.",
        b"\x80\x02cnumpy\ndtype\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_plain_pickle(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\x80\x02", "cut short"),
        (b"\x80\x02}", "cut short"),
        (b"hello, world", "not a pickle of protocol 2"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a pickle of protocol 2"),
        (b"\x80\x05}.", "not a pickle of protocol 2"),
        (b"\x80\x02].", "holds a list, not a dictionary"),
        (b"\x80\x02K\x01.", "holds a int, not a dictionary"),
        (b"\x80\x02}}.", "unbalanced stack"),
        (b"\x80\x02.", "unbalanced stack"),
        (b"\x80\x02(.", "the stack is empty"),
        (b"\x80\x02u.", "no mark"),
        (b"\x80\x02}(K\x01u.", "odd keys"),
        (b"\x80\x02}]K\x01s.", "odd keys"),
        (b"\x80\x02}U\x01aNe.", "no mark"),
        (b"\x80\x02h\x05.", "before it is there"),
        (b"\x80\x02q\x05.", "the stack is empty"),
        (b"\x80\x02T\xff\xff\xff\xff.", "a text of -1 bytes"),
        (b"\x80\x02T\xff\xff\xff\x7fabc", "cut short: 2147483654 bytes are needed, 10 are there"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "cut short"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "broken text"),
        (b"\x80\x02cos\nsystem\n.", "refers to 'os system'"),
        (b"\x80\x02c" + b"a" * 300, "longer than 255"),
        (b"\x80\x02\x8a\x01\x00.", "opcode b'\\\\x8a' at byte 2"),
        (b"\x80\x02NNR.", "not an array; nothing was run"),
        (b"\x80\x02NNb.", "not an array"),
        (b"\x80\x02cnumpy\ndtype\nK\x01R.", "an array of 1, not of bytes"),
    ],
)
def test_broken_content_is_named(tmp_path, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_plain_pickle(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "raw", "words"),
    [
        ((2, 3), b"12345", r"shape \(2, 3\) with 5 bytes"),
        ((2**30, 2**30), b"1", "an array of shape"),
        ((-1, 3), b"123", "an array of shape"),
        ((1, 1, 3), b"123", "an array of shape"),
        ((), b"", "an array of shape"),
        ((True, 3), b"123", "an array of shape"),
    ],
)
def test_array_must_have_the_bytes_of_its_shape(tmp_path, files, shape, raw, words):
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02}U\x01d" + files.array(shape, raw) + b"s.")
    with pytest.raises(DataError, match=words):
        read_plain_pickle(path)


@pytest.mark.parametrize("kind", ["f8", "O", "u1x", ""])
def test_array_of_anything_but_bytes_is_refused(tmp_path, files, kind):
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02}U\x01d" + files.array((1, 3), b"123", kind) + b"s.")
    with pytest.raises(DataError, match="not of bytes"):
        read_plain_pickle(path)


def test_control_characters_do_not_reach_the_message(tmp_path):
    path = tmp_path / "a\x1b[31mb"
    path.write_bytes(b"\x80\x02c\x1b[2J\nx\n.")
    with pytest.raises(DataError) as caught:
        read_plain_pickle(path)
    assert "\x1b" not in str(caught.value)


def test_places_that_are_no_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("", "not a regular file"),
        ("pipe", "not a regular file"),
        ("missing", "No such file"),
        ("loop", "symbolic links"),
        ("nul\0", "null"),
    ):
        with pytest.raises(DataError, match=words):
            read_plain_pickle(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        read_plain_pickle("/dev/zero")


def test_huge_files_are_not_read(tmp_path):
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate((256 << 20) + 1)  # sparse: takes no space
    with pytest.raises(DataError, match="more than the 268435456 of any official file"):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    "content",
    [b"}" * 600_000, b"]q\0" * 300_000, b"]" + b"]a" * 300_000, b"(" * 600_000],
    ids=["dictionaries", "memo", "nested", "marks"],
)
def test_time_and_memory_are_bounded(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02" + content + b".")
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(DataError):
        read_plain_pickle(path)
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    # Tracing memory slows the interpreter several times; without it this is half a second.
    assert seconds < 10


def _mutations():
    whole = io.BytesIO()
    pickle.dump({"labels": [1, 2, 3], "data": np.zeros((1, 4), np.uint8), "t": (1, None)}, whole, 2)
    content = st.binary(max_size=80)
    letters = "".join(code.code for code in pickletools.opcodes).encode("latin-1")
    opcodes = st.lists(st.sampled_from(letters), max_size=60).map(bytes)
    cut = st.integers(0, len(whole.getvalue())).map(lambda n: whole.getvalue()[2:n])
    flipped = st.tuples(st.integers(2, len(whole.getvalue()) - 1), st.integers(0, 255)).map(
        lambda place: (
            whole.getvalue()[2 : place[0]] + bytes([place[1]]) + whole.getvalue()[place[0] + 1 :]
        )
    )
    return st.one_of(content, opcodes, cut, flipped)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(_mutations())
def test_only_a_data_error_comes_out(content):
    with contextlib.suppress(plain_pickle._Refusal):
        plain_pickle._Interpreter(b"\x80\x02" + content).run()
