"""SVHN's MATLAB files, written by SciPy and read back; what is refused, and in which words."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from thalweg.lab.data import catalogue, published
from thalweg.lab.data.catalogue import load, names, verify
from thalweg.lab.data.formats import read_svhn
from thalweg.lab.data.published import PUBLISHED, File, Published
from thalweg.lab.errors import LabError


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and the digits they are said to show."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % 10


def mat(images: np.ndarray, labels: np.ndarray, **more: np.ndarray) -> bytes:
    """The published layout: image index last, labels in a column, digit 0 as 10."""
    file = io.BytesIO()
    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": y, **more}, do_compression=True)
    return file.getvalue()


def test_images_and_digits_come_back_as_they_were(tmp_path: Path) -> None:
    images, labels = digits(12)
    path = tmp_path / "train_32x32.mat"
    content = mat(images, labels)
    path.write_bytes(content)
    found, said = read_svhn(path, md5=hashlib.md5(content).hexdigest())
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(said, labels)
    assert found.flags["C_CONTIGUOUS"]
    assert found.dtype == said.dtype == np.uint8


def wrong_labels(images: np.ndarray, labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None].astype(np.uint8)})  # 0 is no label of SVHN
    return file.getvalue()


def cells(images: np.ndarray, labels: np.ndarray) -> bytes:
    """X as a cell array, which SciPy reads as an array of Python objects."""
    file = io.BytesIO()
    X = np.empty(1, dtype=object)
    X[0] = images
    savemat(file, {"X": X, "y": labels[:, None].astype(np.uint8)})
    return file.getvalue()


class Payload:
    """What a pickle would do when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the file was executed')",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Payload()) + b"\0" * 200, "is damaged: a MATLAB file with X and y expected"),
        (cells(*digits(12)), "is not SVHN: uint8 (32, 32, 3, N) and labels 1 to 10 expected, object"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 9, "is damaged"),
        (b"", "is damaged: a MATLAB file with X and y expected"),
        (b"no MATLAB file at all" * 20, "is damaged: a MATLAB file with X and y expected"),
        (mat(*digits(12))[:-100], "is damaged: a MATLAB file with X and y expected"),
        (mat(digits(12)[0].transpose(0, 2, 3, 1), digits(12)[1]), "uint8 (32, 32, 3, N) and labels 1 to 10 expected"),
        (mat(digits(12)[0].astype(float), digits(12)[1]), "float64 (32, 32, 3, 12) and labels"),
        (mat(digits(12)[0], digits(11)[1]), "is not SVHN"),
        (wrong_labels(*digits(12)), "is not SVHN"),
    ],
)
def test_what_is_not_such_a_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(content)
    with pytest.raises(LabError) as error:
        read_svhn(path)
    assert reason in str(error.value)
    assert "fetch it again" in str(error.value)


def test_a_wrong_checksum_is_told_before_the_file_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(b"anything")
    with pytest.raises(LabError, match="MD5 00 expected"):
        read_svhn(path, md5="00")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small SVHN, published in place of the true one."""
    contents = {"train_32x32.mat": mat(*digits(20)), "test_32x32.mat": mat(*digits(7, seed=1))}
    folder = tmp_path / "data"
    (folder / "SVHN").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "SVHN" / name).write_bytes(content)
    files = tuple(File(name, len(c), hashlib.md5(c).hexdigest()) for name, c in contents.items())
    monkeypatch.setitem(PUBLISHED, "svhn", Published("SVHN", 10, 0, files, "http://127.0.0.1:9/", {}))
    for module in (catalogue, published):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    return folder


def test_the_set_by_name(home: Path) -> None:
    data = load("svhn", data_dir=home)
    assert (len(data.train.labels), len(data.test.labels), data.classes) == (20, 7, 10)
    torch.testing.assert_close(data.test.images, torch.from_numpy(digits(7, seed=1)[0]) / 255)
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert [row["state"] for row in verify("svhn", home)] == ["ok", "ok"]


def test_the_published_files_are_those_of_the_seed() -> None:
    assert "svhn" in names()
    train, test = PUBLISHED["svhn"].files
    # The seed says about 100000 images, so the 531131 "extra" ones are not among them. A file of N images is at most
    # as long as its pixels; JPEG-sourced pixels deflate by a fifth.
    assert 0.7 < train.size / (73257 * 3072) < 1
    assert 0.7 < test.size / (26032 * 3072) < 1
    assert PUBLISHED["svhn"].archives == {file.name: file.md5 for file in (train, test)}
