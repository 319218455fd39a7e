"""CIFAR-10 and CIFAR-100 in the layouts of their authors, whole, in part, and broken."""

import numpy as np
import pytest
import torch

from pyfast_nas.data import load_cifar10, load_cifar100, load_data
from pyfast_nas.errors import DataError


def test_real_cifar10_python(real_data):
    data = load_data(f"cifar10:{real_data / 'cifar-10-batches-py'}")
    assert data.notes == (
        "2 of 5 training batches: 20000 of 50000 images",
        "test set: 4000 of 10000 images",
    )
    assert data.train_x.shape == (20_000, 3, 32, 32) and data.train_x.dtype == torch.uint8
    # As stated beside the files.
    counts = [1989, 1981, 2042, 2011, 2009, 1925, 2038, 2027, 2012, 1966]
    assert data.train_y.bincount().tolist() == counts
    assert data.test_y.bincount().tolist() == [400] * 10
    channels = data.train_x.transpose(0, 1).flatten(1).double() / 255
    assert [round(mean, 4) for mean in channels.mean(1).tolist()] == [0.4928, 0.4830, 0.4470]
    assert [round(std, 4) for std in channels.std(1).tolist()] == [0.2474, 0.2441, 0.2621]
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    assert data.mean == (0.49139968, 0.48215827, 0.44653124) and data.flip


def test_real_cifar10_binary_holds_the_first_rows_of_the_python_files(real_data):
    python = load_cifar10(real_data / "cifar-10-batches-py")
    binary = load_cifar10(real_data / "cifar-10-batches-bin")
    assert binary.notes[0] == "1 of 5 training batches: 1000 of 50000 images"
    assert torch.equal(binary.train_x, python.train_x[:1000])
    assert torch.equal(binary.train_y, python.train_y[:1000])
    assert binary.class_names == python.class_names
    assert binary.fingerprint != python.fingerprint


def test_real_cifar100_python(real_data):
    data = load_data(f"cifar100:{real_data / 'cifar-100-python'}")
    assert data.notes == ("training set: 5000 of 50000 images", "test set: 1000 of 10000 images")
    assert data.train_y.bincount().tolist() == [50] * 100
    assert data.num_classes == 100 and data.class_names[:2] == ("apple", "aquarium_fish")


def test_folder_above_works_too(real_data):
    assert len(load_cifar10(real_data).train_y) == 20_000
    assert len(load_cifar100(real_data).train_y) == 5_000


def test_pixels_are_planes_of_rows(tmp_path, files):
    pixels = np.arange(3072).astype(np.uint8)
    rows = np.stack([pixels, pixels[::-1]])
    files.python_batch(tmp_path / "data_batch_3", 2, data=rows)
    files.python_batch(tmp_path / "test_batch", 2)
    image = load_cifar10(tmp_path).train_x[0]
    for channel, row, column in ((0, 0, 0), (0, 1, 5), (2, 31, 30)):
        assert image[channel, row, column] == pixels[1024 * channel + 32 * row + column]


def test_both_layouts_of_both_sets(tmp_path, files):
    python = files.cifar10(tmp_path, batches=(2, 5))
    data = load_cifar10(python)
    assert data.notes[0] == "2 of 5 training batches: 40 of 50000 images"
    assert data.class_names == tuple("0123456789")
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    files.binary_batch(binary / "data_batch_1.bin", 30)
    files.binary_batch(binary / "test_batch.bin", 10)
    (binary / "batches.meta.txt").write_text("\n".join(f"name{n}" for n in range(10)) + "\n\n")
    assert load_cifar10(tmp_path).class_names[9] == "name9"
    hundred = tmp_path / "hundred"
    hundred.mkdir()
    for part in ("train", "test"):
        files.binary_batch(hundred / f"{part}.bin", 200, classes=100, label_bytes=2)
    assert load_cifar100(hundred).train_y.bincount().tolist() == [2] * 100


def test_batches_come_in_their_order(tmp_path, files):
    data = load_cifar10(files.cifar10(tmp_path, batches=(4, 1)))
    first = torch.from_numpy(files.images(20, seed=1)).view(-1, 3, 32, 32)
    assert torch.equal(data.train_x[:20], first)


def test_whole_set_has_no_note(tmp_path, files):
    for part, rows in (("train", 50_000), ("test", 10_000)):
        content = np.zeros((rows, 3074), np.uint8)
        content[:, 1] = np.arange(rows) % 100
        (tmp_path / f"{part}.bin").write_bytes(content.tobytes())
    assert load_cifar100(tmp_path).notes == ()


def test_fingerprint_follows_the_content(tmp_path, files):
    one = load_cifar10(files.cifar10(tmp_path))
    assert load_cifar10(tmp_path).fingerprint == one.fingerprint
    files.python_batch(tmp_path / "test_batch", 10, labels=[1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert load_cifar10(tmp_path).fingerprint != one.fingerprint


class TestBadFiles:
    """One clear line each, with the path and what was found."""

    def refused(self, folder, words, load=load_cifar10):
        with pytest.raises(DataError, match=words) as caught:
            load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    def test_missing_folder_file_and_empty_folder(self, tmp_path):
        self.refused(tmp_path / "nowhere", "No such directory")
        (tmp_path / "file").touch()
        self.refused(tmp_path / "file", "not a directory")
        for load, words in ((load_cifar10, "no CIFAR-10 files"), (load_cifar100, "no CIFAR-100")):
            self.refused(tmp_path, words, load)

    def test_no_training_or_no_test_batch(self, tmp_path, files):
        files.python_batch(tmp_path / "test_batch", 10)
        self.refused(tmp_path, "none of the training batches")
        files.python_batch(tmp_path / "data_batch_1", 10)
        (tmp_path / "test_batch").unlink()
        self.refused(tmp_path, "test_batch': No such file")

    def test_batch_is_a_directory(self, tmp_path, files):
        files.cifar10(tmp_path)
        (tmp_path / "data_batch_3").mkdir()
        self.refused(tmp_path, "data_batch_3': not a regular file")

    def test_unreadable_file(self, tmp_path, files, monkeypatch):
        files.cifar10(tmp_path)

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        # Permissions do not bind the superuser, whom tests may run as.
        monkeypatch.setattr("builtins.open", refuse)
        self.refused(tmp_path, "data_batch_1': Permission denied")

    @pytest.mark.parametrize("cut", [0, 1, 1000, -2, -1])
    def test_truncated(self, tmp_path, files, cut):
        files.cifar10(tmp_path)
        path = tmp_path / "data_batch_2"
        path.write_bytes(path.read_bytes()[:cut])
        self.refused(tmp_path, "data_batch_2': (the file is empty|not a pickle|cut short)")

    def test_text(self, tmp_path, files):
        files.cifar10(tmp_path)
        (tmp_path / "data_batch_1").write_text("airplane, automobile\n")
        self.refused(tmp_path, "data_batch_1': not a pickle of protocol 2")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"labels": [0, 1]}, "20 images but 2 entries of 'labels'"),
            ({"labels": [0, 10] * 10}, "label 10 of image 1 is not between 0 and 9"),
            ({"labels": [0, -1] * 10}, "label -1 of image 1"),
            ({"labels": [3] * 20}, "every image is of class 3"),
            ({"labels": ["cat"] * 20}, "'labels' must be a list of integers"),
            ({"labels": None}, "'labels' must be a list of integers"),
            ({"data": None}, "got NoneType"),
            ({"data": np.zeros((20, 3073), np.uint8)}, r"\[rows, 3072\], got \[20, 3073\]"),
            ({"data": np.zeros(3072, np.uint8)}, r"\[rows, 3072\], got \[3072\]"),
            ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "holds no image"),
        ],
    )
    def test_wrong_content(self, tmp_path, files, changes, words):
        files.cifar10(tmp_path)
        files.python_batch(tmp_path / "data_batch_1", 20, **changes)
        self.refused(tmp_path, f"data_batch_1': .*{words}")

    def test_cifar100_files_are_not_cifar10(self, tmp_path, files):
        for part in ("train", "test"):
            files.python_batch(tmp_path / part, 200, classes=100, key="fine_labels")
        self.refused(tmp_path, "holds no CIFAR-10 files")
        files.cifar10(tmp_path)
        files.python_batch(tmp_path / "train", 200, key="labels")
        self.refused(tmp_path, "'fine_labels' must be a list", load_cifar100)

    def test_binary_of_another_size(self, tmp_path, files):
        files.binary_batch(tmp_path / "test_batch.bin", 10)
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073 * 10 + 1))
        self.refused(tmp_path, "30731 bytes are not a whole number of rows of 3073")
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073 * 10))
        self.refused(tmp_path, "every image is of class 0")
        (tmp_path / "data_batch_1.bin").write_bytes(b"\x0b" * 3073)
        self.refused(tmp_path, "label 11 of image 0")

    def test_meta_of_another_kind(self, tmp_path, files):
        files.cifar10(tmp_path)
        (tmp_path / "batches.meta").write_bytes(files.dump({"label_names": 5}))
        self.refused(tmp_path, "'label_names' must be a list of names")
        (tmp_path / "batches.meta").write_bytes(files.dump({"label_names": ["a", "b"]}))
        with pytest.raises(DataError, match="class_names must have num_classes=10 names, got 2"):
            load_cifar10(tmp_path)
