"""Image sets by name: ``load("fashion-mnist")`` gives two splits of float32 images in [0, 1] and int64 labels.

=============  ==========================================================================================
digits         1797 images of 8 x 8, 10 classes; comes with scikit-learn (the test set of UCI optdigits)
mnist          70000 images of 28 x 28, 10 classes
fashion-mnist  70000 images of 28 x 28, 10 classes
cifar10        60000 images of 3 x 32 x 32, 10 classes
cifar100       60000 images of 3 x 32 x 32, 100 classes (the fine labels)
svhn           99289 images of 3 x 32 x 32, 10 classes: 73257 to train on, 26032 to test; without the "extra" ones
=============  ==========================================================================================

The published split is kept. ``digits`` has none: its first 1437 images are for training, its last 360 for testing, in
order and unshuffled as in scikit-learn's own examples (which cut at one half). The order matters: the images of one of
its 13 writers stand together, so the last 360 come from hands the training hardly saw, and are a harder and fairer test
than a random 360 (a support vector machine gets 95 % of them right, and 99 % of a random 360).

A set is looked for in ``data_dir`` (--data-dir), in ``$THALWEG_DATA`` and in the user cache, and then downloaded into
the user cache. A plugin adds a set through the entry-point group ``thalweg.datasets``: a name, and a callable
``(data_dir) -> DataSet``. Only `load` imports torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from thalweg.lab.data.formats import CURE, md5_of, read_bytes, read_cifar, read_idx, read_svhn
from thalweg.lab.data.published import PUBLISHED, File, Published, cache_folder, download_into, find, folders
from thalweg.lab.errors import LabError

if TYPE_CHECKING:
    import torch

__all__ = ["DataSet", "Row", "Split", "fetch", "load", "names", "verify", "where"]

DIGITS_TRAIN = 1437


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a set: ``images`` (N, C, H, W), float32 in [0, 1], and ``labels`` (N,), int64."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, eq=False)
class DataSet:
    """A set, whole, on the CPU; ``found_in`` is the folder or the package it came from."""

    name: str
    train: Split
    test: Split
    classes: int
    found_in: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the images and labels of both splits: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


class Row(TypedDict):
    """What `verify` says about a file: ``size`` and ``md5`` are those of its uncompressed content.

    ``state`` is "ok", "wrong checksum" (a torn ``.gz`` too), "wrong size", or "no published checksum" (right size).
    """

    file: str
    path: str
    size: int
    md5: str
    state: str


def names() -> list[str]:
    """Every set there is by name, plugins' included, sorted."""
    return sorted({"digits", *PUBLISHED, *_plugins()})


def load(name: str, *, data_dir: Path | str | None = None, download: bool = True) -> DataSet:
    """The set called ``name``.

    Args:
        name: one of `names`.
        data_dir: the folder to look in first.
        download: fetch a set that is found nowhere.

    Returns:
        The set, every file of it checked against its published checksum or size.

    Raises:
        LabError: an unknown name; a set that is nowhere to be had; a file that is not the published one.
    """
    _check(name)
    if name == "digits":
        return _digits()
    if name in PUBLISHED:
        return _read(name, fetch(name, data_dir=data_dir, download=download))
    made = _plugins()[name].load()(Path(data_dir) if data_dir else None)
    if not isinstance(made, DataSet):
        raise LabError(f"the plugin of data set {name!r} returned a {type(made).__name__}: it must return a DataSet")
    return made


def where(name: str, data_dir: Path | str | None = None) -> Path | None:
    """The folder that has all files of the set (for ``digits`` and plugins, the package that brings it), or None."""
    _check(name)
    if name in PUBLISHED:
        homes = [folder / PUBLISHED[name].folder for folder in folders(data_dir)]
        return next((home for home in homes if find(PUBLISHED[name], home)), None)
    spec = find_spec("sklearn" if name == "digits" else _plugins()[name].module.partition(".")[0])
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    return next((Path(place) for place in places if place), None)


def fetch(name: str, *, data_dir: Path | str | None = None, download: bool = True) -> Path:
    """The folder of the set as by `where`; a set that is nowhere is downloaded into the user cache first."""
    home = where(name, data_dir)
    if home is not None:
        return home
    if name not in PUBLISHED:
        raise LabError(f"the package that brings data set {name!r} is not installed: pip install 'thalweg[lab]'")
    if not download:
        raise _missing(name, data_dir, "")
    try:
        download_into(cache_folder(), PUBLISHED[name])
    except (OSError, ValueError) as error:
        # requests appends the whole chain of its causes to its sentence
        reason = str(error).partition(" (Caused by")[0].partition(". ")[0]
        raise _missing(name, data_dir, f", and cannot be downloaded ({reason})") from error
    return cache_folder() / PUBLISHED[name].folder


def verify(name: str, data_dir: Path | str | None = None) -> list[Row]:
    """Every file of the set compared with what is published of it; no rows for what comes with a package."""
    home = fetch(name, data_dir=data_dir, download=False)
    if name not in PUBLISHED:
        return []
    return [_row(file, path) for file, path in _files(name, home)]


def _row(file: File, path: Path) -> Row:
    try:
        content = read_bytes(path)
    except LabError:
        if not os.access(path, os.R_OK):
            raise
        return Row(file=file.name, path=str(path), size=path.stat().st_size, md5="", state="wrong checksum")
    size, md5 = len(content), md5_of(content)
    if size != file.size:
        state = "wrong size"
    elif file.md5 is None:
        state = "no published checksum"
    else:
        state = "ok" if md5 == file.md5 else "wrong checksum"
    return Row(file=file.name, path=str(path), size=size, md5=md5, state=state)


def _files(name: str, home: Path) -> list[tuple[File, Path]]:
    return list(zip(PUBLISHED[name].files, find(PUBLISHED[name], home) or [], strict=True))


def _check(name: str) -> None:
    if name not in names():
        raise LabError.unknown("data set called", name, names())


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="thalweg.datasets")}


def _missing(name: str, data_dir: Path | str | None, why: str) -> LabError:
    looked = ", ".join(str(folder) for folder in folders(data_dir))
    return LabError(
        f"data set {name!r} is not in {looked}{why}: name a folder that contains {PUBLISHED[name].folder}/ with "
        f"--data-dir, name it with the environment variable THALWEG_DATA, or run `thalweg data fetch {name}` with a "
        "network connection"
    )


def _digits() -> DataSet:
    import sklearn
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    train = _split(images[:DIGITS_TRAIN], labels[:DIGITS_TRAIN], 16)
    test = _split(images[DIGITS_TRAIN:], labels[DIGITS_TRAIN:], 16)
    return DataSet("digits", train, test, 10, f"scikit-learn {sklearn.__version__}")


def _read(name: str, home: Path) -> DataSet:
    published = PUBLISHED[name]
    if published.label_bytes:
        parts = [_read_batch(published, file, path) for file, path in _files(name, home)]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
        train, test = _split(images, labels, 255), _split(*parts[-1], 255)
    elif published.files[0].name.endswith(".mat"):
        train, test = (_split(*read_svhn(path, md5=file.md5), 255) for file, path in _files(name, home))
    else:
        arrays = [read_idx(path, md5=file.md5) for file, path in _files(name, home)]
        train, test = (_split(arrays[i][:, None], arrays[i + 1], 255) for i in (0, 2))
    return DataSet(name, train, test, published.classes, str(home))


def _read_batch(published: Published, file: File, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = read_cifar(path, published.label_bytes)
    labels = labels[:, -1]
    size = images.size + len(images) * published.label_bytes
    if size != file.size:
        raise LabError(f"{path} is not the published file: {file.size} bytes expected, {size} bytes found: {CURE}")
    largest = labels.max()
    if largest >= published.classes:  # without checksum or magic, the labels are what gives a foreign file away
        expected = f"labels below {published.classes} expected"
        raise LabError(f"{path} is not the published file: {expected}, {largest} found: {CURE}")
    return images, labels


def _split(images: NDArray[Any], labels: NDArray[Any], largest: int) -> Split:
    import torch

    scaled = torch.from_numpy(images).to(torch.float32).div_(largest)
    return Split(scaled, torch.from_numpy(labels).to(torch.int64))
