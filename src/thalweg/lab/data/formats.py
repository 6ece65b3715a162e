"""Readers of the public formats image sets come in: IDX, binary CIFAR, SVHN's; opening a file never executes code.

    IDX     0 0 type ndim | ndim sizes, big-endian uint32 | the values, big-endian, last index fastest
    CIFAR   records without a header: label bytes, then 3 planes (red, green, blue) of 32 x 32 bytes
    SVHN    MATLAB 5 file with X (32, 32, 3, N) uint8, indices (row, column, colour, image), and y (N, 1): 10 is digit 0

IDX is described at the end of the MNIST page (LeCun, Cortes, Burges), the binary CIFAR format on the page of CIFAR-10
and CIFAR-100 (Krizhevsky), SVHN's "cropped digits" on its own (Netzer et al., 2011). CIFAR files carry neither magic
nor length: whole records are all that can be checked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thalweg.lab.errors import LabError

__all__ = ["CURE", "md5_of", "read_bytes", "read_cifar", "read_idx", "read_svhn"]

CURE = "delete it and fetch it again, or point --data-dir at another folder"
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SIDE = 32
PIXELS = 3 * SIDE * SIDE


def read_idx(path: Path, *, md5: str | None = None) -> NDArray[np.generic]:
    """The array in an IDX file, plain or ``.gz``.

    Args:
        path: the file.
        md5: checksum that the (uncompressed) content must have.

    Returns:
        A writable array of the file's shape, in native byte order.

    Raises:
        LabError: the file is no IDX file, is not as long as its header says, or has another checksum.
    """
    content = read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        begin = content[:4].hex(" ") or "nothing"
        raise LabError(f"{path} is no IDX file, since it begins with {begin} and not with 00 00 and a type: {CURE}")
    dtype, ndim = np.dtype(DTYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise LabError(f"{path} is truncated: {start} bytes of header expected, {len(content)} bytes found: {CURE}")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        raise LabError(f"{path} is {wrong}: {expected} bytes expected, {len(content)} bytes found: {CURE}")
    if md5 and md5_of(content) != md5:
        raise LabError(f"{path} is not the published file: MD5 {md5} expected, {md5_of(content)} found: {CURE}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_cifar(path: Path, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images and labels in a file of the binary CIFAR distributions.

    Args:
        path: the file.
        label_bytes: labels before each image: 1 in CIFAR-10, 2 (coarse, fine) in CIFAR-100.

    Returns:
        Images (N, 3, 32, 32) and labels (N, label_bytes), both uint8.

    Raises:
        LabError: the file does not consist of whole records.
    """
    content = read_bytes(path)
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise LabError(f"{path} is damaged: a multiple of {size} bytes expected, {len(content)} bytes found: {CURE}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE).copy(), records[:, :label_bytes].copy()


def read_svhn(path: Path, *, md5: str | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images and labels in a file of SVHN's format 2, the cropped digits.

    Args:
        path: the file.
        md5: checksum that it must have.

    Returns:
        Images (N, 3, 32, 32) and the digits they show (N,), both uint8.

    Raises:
        LabError: the file is no MATLAB file with such arrays, or has another checksum.
    """
    from scipy.io import loadmat

    content = read_bytes(path)
    if md5 and md5_of(content) != md5:
        raise LabError(f"{path} is not the published file: MD5 {md5} expected, {md5_of(content)} found: {CURE}")
    try:
        arrays = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        X, y = arrays["X"], arrays["y"].reshape(-1)
    except Exception as error:  # of a damaged file the reader raises anything from KeyError to zlib.error
        raise LabError(f"{path} is damaged: a MATLAB file with X and y expected ({error}): {CURE}") from error
    if X.shape != (SIDE, SIDE, 3, len(y)) or X.dtype != np.uint8 or not np.isin(y, range(1, 11)).all():
        found = f"{X.dtype} {X.shape} and labels {sorted({*y.tolist()})[:12]} found"
        raise LabError(f"{path} is not SVHN: uint8 (32, 32, 3, N) and labels 1 to 10 expected, {found}: {CURE}")
    return np.ascontiguousarray(X.transpose(3, 2, 0, 1)), (y % 10).astype(np.uint8)


def read_bytes(path: Path) -> bytes:
    """The content of a file, uncompressed if its name ends in ``.gz``; what cannot be read is a `LabError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}): point --data-dir at another folder") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        found = f"{len(content)} bytes found"
        raise LabError(f"{path} is damaged: a whole gzip file expected, {found} ({error}): {CURE}") from error


def md5_of(content: bytes) -> str:
    """MD5 in hexadecimal, the checksum these sets are published with: it finds damage, not malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
