"""Files that are whole or absent, whenever the process is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from thalweg.lab.errors import LabError

__all__ = ["atomic", "explained", "write_atomic"]

CURES = {
    errno.ENOSPC: "the disk is full: free some space, then run `thalweg resume`",
    errno.EDQUOT: "the disk quota is used up: free some space, then run `thalweg resume`",
    errno.EACCES: "it may not be written: change its permissions, or name another folder with THALWEG_RUNS",
    errno.EPERM: "it may not be written: change its permissions, or name another folder with THALWEG_RUNS",
    errno.EROFS: "the file system is read-only: name another folder with THALWEG_RUNS",
    errno.ENOTDIR: "a part of its path is a file, not a folder: name another folder with THALWEG_RUNS",
    errno.EEXIST: "a file stands where a folder is needed: move it, or name another folder with THALWEG_RUNS",
}


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` in one step when the block ends well, and leaves it alone if not.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "result.json"
    >>> with atomic(path) as file:
    ...     _ = file.write(b"{}")
    >>> path.read_bytes()
    b'{}'
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step."""
    with atomic(path) as file:
        file.write(text.encode())


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals of ``path`` into one sentence with a cure."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0)
        if cure is None:
            raise
        raise LabError(f"cannot write {error.filename or path}: {cure}") from error
