"""The published image sets: their files and checksums, how to find them in a folder, how to download them.

A folder holds a set the way its public distribution unpacks it::

    FOLDER/MNIST/raw/train-images-idx3-ubyte              and three more, each plain or .gz
    FOLDER/FashionMNIST/raw/train-images-idx3-ubyte       likewise
    FOLDER/cifar-10-batches-bin/data_batch_1.bin          to data_batch_5.bin, and test_batch.bin
    FOLDER/cifar-100-binary/train.bin                     and test.bin
    FOLDER/SVHN/train_32x32.mat                           and test_32x32.mat

Addresses and checksums of the archives: MNIST, Fashion-MNIST and SVHN as in torchvision (``datasets/mnist.py``,
``datasets/svhn.py``), CIFAR as on its own page. The checksums of the IDX files are those of their uncompressed content.
Of the unpacked CIFAR files nobody publishes checksums, so their sizes are checked.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thalweg.lab.errors import LabError
from thalweg.lab.files import atomic

__all__ = ["PUBLISHED", "File", "Published", "cache_folder", "download_into", "find", "folders"]


@dataclass(frozen=True)
class File:
    """A file of a set: the size of its uncompressed content in bytes, and the MD5 of that where one is published."""

    name: str
    size: int
    md5: str | None = None


@dataclass(frozen=True)
class Published:
    """A set: its sub-folder, its files (those of the test split last), and the archives under ``url`` with their MD5.

    ``label_bytes`` is the number of labels per record of a CIFAR file, the last of which is used; 0 for the other
    formats: MATLAB files end in ``.mat``, IDX files have no ending.
    """

    folder: str
    classes: int
    label_bytes: int
    files: tuple[File, ...]
    url: str
    archives: Mapping[str, str]


def _idx(folder: str, url: str, plain: tuple[str, str, str, str], packed: tuple[str, str, str, str]) -> Published:
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    names = [f"{stem}-ubyte" for stem in stems]
    sizes = (16 + 60000 * 784, 8 + 60000, 16 + 10000 * 784, 8 + 10000)
    files = tuple(File(name, size, md5) for name, size, md5 in zip(names, sizes, plain, strict=True))
    archives = {f"{name}.gz": md5 for name, md5 in zip(names, packed, strict=True)}
    return Published(f"{folder}/raw", 10, 0, files, url, archives)


PUBLISHED: dict[str, Published] = {
    "mnist": _idx(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _idx(
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": Published(
        "cifar-10-batches-bin",
        10,
        1,
        tuple(File(f"{name}.bin", 10000 * 3073) for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar100": Published(
        "cifar-100-binary",
        100,
        2,
        (File("train.bin", 50000 * 3074), File("test.bin", 10000 * 3074)),
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
    "svhn": Published(
        "SVHN",
        10,
        0,
        (
            File("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
            File("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3"),
        ),
        "http://ufldl.stanford.edu/housenumbers/",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
}


def folders(data_dir: Path | str | None) -> list[Path]:
    """Where sets are looked for, in this order: ``data_dir`` (--data-dir), ``$THALWEG_DATA``, the user cache."""
    named = {"--data-dir": data_dir, "THALWEG_DATA": os.environ.get("THALWEG_DATA")}
    found = []
    for origin, folder in named.items():
        if folder:
            path = Path(os.path.expanduser(folder))
            # os.path, since pathlib raises where a parent may not be entered or a name is too long
            if not (os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)):
                raise LabError(
                    f"{origin} names {folder}, which is no readable folder: name one that is, or leave it out"
                )
            found.append(path)
    return [*found, cache_folder()]


def cache_folder() -> Path:
    """Where downloads land."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("thalweg"))


def find(published: Published, home: Path) -> list[Path] | None:
    """The paths of the set's files in ``home``, plain before ``.gz``; None unless all are there."""
    paths = []
    for file in published.files:
        candidates = (home / file.name, home / f"{file.name}.gz")
        path = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
        if path is None:
            return None
        paths.append(path)
    return paths


def download_into(folder: Path, published: Published) -> None:
    """Download what ``folder`` lacks of the set; a file is there whole and with its checksum, or it is not there.

    Raises:
        OSError: no connection, no permission, no space.
        ValueError: a downloaded archive has not its published checksum.
    """
    import pooch
    from filelock import FileLock

    home = folder / published.folder
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{published.folder.replace('/', '-')}.lock"):  # parallel trials must not download twice
        if find(published, home):
            return
        for archive, md5 in published.archives.items():
            packed = archive.endswith(".tar.gz")
            # pooch writes to a temporary file and renames it once its checksum is right; a right file there it keeps
            path = pooch.retrieve(
                published.url + archive,
                known_hash=f"md5:{md5}",
                fname=archive,
                path=folder if packed else home,
                progressbar=sys.stderr.isatty(),
            )
            if packed:
                _unpack(Path(path), published, home)


def _unpack(archive: Path, published: Published, home: Path) -> None:
    """Take the set's own files out of ``archive``, each in one step, and then remove it."""
    names = {file.name for file in published.files}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            stream = tar.extractfile(member)
            if name in names and stream is not None:
                with atomic(home / name) as target:
                    shutil.copyfileobj(stream, target)
    archive.unlink()
