import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thalweg.lab.data.formats import md5_of, read_cifar, read_idx
from thalweg.lab.errors import LabError


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    big = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + big.tobytes()


def one_sentence(error: pytest.ExceptionInfo[LabError], path: Path) -> str:
    """The message, after checking that it names the file and the cure and does not run on."""
    message = str(error.value)
    assert str(path) in message
    assert "--data-dir" in message
    assert "\n" not in message
    assert ". " not in message
    return message


@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)), packed=st.booleans()
)
def test_an_array_written_as_idx_comes_back(tmp_path_factory, array, packed):
    path = tmp_path_factory.getbasetemp() / f"array.idx{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(idx(array), mtime=0) if packed else idx(array))
    read = read_idx(path, md5=md5_of(idx(array)))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape


@pytest.mark.parametrize(("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")])
def test_the_other_types_come_back_in_native_byte_order(tmp_path, code, dtype):
    array = np.array([[1, -2, 100], [0, 5, -100]], dtype)
    path = tmp_path / "array.idx"
    path.write_bytes(idx(array, code))
    read = read_idx(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


WHOLE = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))  # 12 bytes of header, 12 of data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (WHOLE[:-5], "is truncated: 24 bytes expected, 19 bytes found"),
        (WHOLE + b"xyz", "is too long: 24 bytes expected, 27 bytes found"),
        (WHOLE[:7], "12 bytes of header expected, 7 bytes found"),
        (b"\x89PNG" + WHOLE, "no IDX file, since it begins with 89 50 4e 47"),
        (b"\0\0\x07\x01" + WHOLE, "no IDX file"),
        (b"", "begins with nothing"),
        (struct.pack(">HBB4I", 0, 8, 4, *[2**32 - 1] * 4), "is truncated"),  # must not try to hold 2^128 bytes
        (gzip.compress(WHOLE, mtime=0), "begins with 1f 8b"),
    ],
)
def test_a_damaged_or_foreign_idx_file_is_told_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(LabError) as error:
        read_idx(path)
    assert said in one_sentence(error, path)


def test_another_checksum_names_both(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(WHOLE)
    with pytest.raises(LabError) as error:
        read_idx(path, md5="0" * 32)
    message = one_sentence(error, path)
    assert "0" * 32 in message
    assert md5_of(WHOLE) in message


@pytest.mark.parametrize(
    "content", [gzip.compress(WHOLE, mtime=0)[:-6], b"no gzip", b"", gzip.compress(WHOLE, mtime=0)[:10] + b"\xff" * 20]
)
def test_a_torn_gzip_file_is_told_in_one_sentence(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(LabError, match=f"{len(content)} bytes found|is no IDX file") as error:
        read_idx(path)
    one_sentence(error, path)


def test_a_file_that_cannot_be_opened_is_told_in_one_sentence(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(LabError, match="cannot be read") as error:
            read_idx(path)
        one_sentence(error, path)


@given(
    images=hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 3), st.just(3), st.just(32), st.just(32)), fill=st.integers(0, 255)
    ),
    label_bytes=st.integers(1, 2),
)
def test_cifar_records_come_back(tmp_path_factory, images, label_bytes):
    labels = np.arange(len(images) * label_bytes, dtype=np.uint8).reshape(len(images), label_bytes)
    path = tmp_path_factory.getbasetemp() / "batch.bin"
    path.write_bytes(
        b"".join(struct.pack(f"{label_bytes}B", *a) + b.tobytes() for a, b in zip(labels, images, strict=True))
    )
    read_images, read_labels = read_cifar(path, label_bytes)
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


@pytest.mark.parametrize("length", [0, 3072, 3073 * 2 - 1, 3073 * 2 + 1, 3074 * 2])
def test_a_cifar_file_of_broken_records_is_told_in_one_sentence(tmp_path, length):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(bytes(length))
    with pytest.raises(LabError, match=f"multiple of 3073 bytes expected, {length} bytes found") as error:
        read_cifar(path, 1)
    one_sentence(error, path)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(self.__dict__["mark"]),))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    bomb = Bomb()
    bomb.mark = str(tmp_path / "ran")
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(bomb))
    for read in (read_idx, lambda path: read_cifar(path, 1)):
        with pytest.raises(LabError):
            read(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()  # it would have gone off
