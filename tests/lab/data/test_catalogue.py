import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg.lab.data import catalogue, published
from thalweg.lab.data.catalogue import DataSet, Split, fetch, load, names, verify, where
from thalweg.lab.data.published import PUBLISHED, File, Published
from thalweg.lab.errors import LabError

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_idx() -> dict[str, bytes]:
    """Five training and three test images of 2 x 2."""
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 256, (5, 2, 2)), np.arange(5), draw.integers(0, 256, (3, 2, 2)), np.arange(3)]
    return {name: idx(array.astype(np.uint8)) for name, array in zip(IDX_NAMES, arrays, strict=True)}


def tiny_cifar() -> dict[str, bytes]:
    """Two training files of two images and a test file of one, with two labels each as in CIFAR-100."""

    def record(fine: int) -> bytes:
        return bytes([7, fine]) + bytes([fine]) * 1024 + bytes([100]) * 1024 + bytes([255]) * 1024

    return {"one.bin": record(0) + record(1), "two.bin": record(2) + record(3), "test.bin": record(4)}


def write(folder: Path, files: dict[str, bytes], suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def message_of(error: pytest.ExceptionInfo[LabError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty user cache, no THALWEG_DATA, and no network beyond this machine."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(published, "cache_folder", lambda: folder)
    monkeypatch.setattr(catalogue, "cache_folder", lambda: folder)
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@contextmanager
def serving(handler: Callable[..., SimpleHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path):
    """An HTTP server on this machine: its folder, its address and the paths it was asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with serving(partial(Handler, directory=folder)) as url:
        yield folder, url, asked


@pytest.fixture
def mnist(server, monkeypatch) -> dict[str, bytes]:
    """A tiny set under the name of mnist, served as its four archives."""
    served, url, _ = server
    files = tiny_idx()
    write(served, files, ".gz")
    archives = {f"{name}.gz": md5((served / f"{name}.gz").read_bytes()) for name in files}
    parts = tuple(File(name, len(content), md5(content)) for name, content in files.items())
    monkeypatch.setitem(PUBLISHED, "mnist", Published("MNIST/raw", 10, 0, parts, url, archives))
    return files


@pytest.fixture
def cifar(server, monkeypatch) -> dict[str, bytes]:
    """A tiny set under the name of cifar100, served as one archive; a stranger lies in it too."""
    served, url, _ = server
    files = tiny_cifar()
    with tarfile.open(served / "tiny.tar.gz", "w:gz") as tar:
        for name, content in {**files, "../stranger.txt": b"!"}.items():
            member = tarfile.TarInfo(f"tiny/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    parts = tuple(File(name, len(content)) for name, content in files.items())
    archives = {"tiny.tar.gz": md5((served / "tiny.tar.gz").read_bytes())}
    monkeypatch.setitem(PUBLISHED, "cifar100", Published("tiny", 5, 2, parts, url, archives))
    return files


def check_tiny_mnist(data: DataSet) -> None:
    files = tiny_idx()
    pixels = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(5, 1, 2, 2)
    assert torch.equal(data.train.images, torch.tensor(pixels) / 255)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test.images.shape == (3, 1, 2, 2)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.float32, torch.int64)
    assert (data.name, data.classes) == ("mnist", 10)


# digits


def test_digits_are_split_in_order():
    from sklearn.datasets import load_digits

    data, (images, labels) = load("digits"), load_digits(return_X_y=True)
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.test.images.shape == (360, 1, 8, 8)
    assert torch.equal(torch.cat([data.train.images, data.test.images]).flatten(1), torch.tensor(images / 16).float())
    assert torch.cat([data.train.labels, data.test.labels]).tolist() == labels.tolist()
    assert (data.train.images.min(), data.train.images.max()) == (0, 1)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.float32, torch.int64)
    assert data.classes == 10
    assert data.test.labels.bincount().min() > 30
    assert data.found_in.startswith("scikit-learn")


def test_no_test_digit_is_a_training_digit():
    data = load("digits")
    train = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in train for image in data.test.images)


def test_a_fingerprint_is_the_sha256_of_the_data():
    data = load("digits")
    parts = (data.train.images, data.train.labels, data.test.images, data.test.labels)
    assert data.fingerprint == hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    labels = data.test.labels.clone()
    labels[0] += 1
    assert DataSet("digits", data.train, Split(data.test.images, labels), 10, "").fingerprint != data.fingerprint


# finding


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_or_packed(tmp_path, mnist, suffix):
    write(tmp_path / "data/MNIST/raw", mnist, suffix)
    data = load("mnist", data_dir=tmp_path / "data", download=False)
    check_tiny_mnist(data)
    assert data.found_in == str(tmp_path / "data/MNIST/raw")


def test_cifar_files_are_read_in_order_with_their_last_label(tmp_path, cifar):
    write(tmp_path / "tiny", cifar)
    data = load("cifar100", data_dir=str(tmp_path), download=False)
    assert data.train.labels.tolist() == [0, 1, 2, 3]
    assert data.test.labels.tolist() == [4]
    assert data.train.images.shape == (4, 3, 32, 32)
    assert torch.equal(data.train.images[3, :, 5, 6], torch.tensor([3.0, 100.0, 255.0]) / 255)


def test_folders_are_looked_through_in_order(tmp_path, monkeypatch, mnist, cache):
    assert where("mnist") is None
    write(cache / "MNIST/raw", mnist)
    assert where("mnist") == cache / "MNIST/raw"
    write(tmp_path / "environment/MNIST/raw", mnist)
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path / "environment"))
    assert where("mnist") == tmp_path / "environment/MNIST/raw"
    (tmp_path / "given").mkdir()
    assert where("mnist", tmp_path / "given") == tmp_path / "environment/MNIST/raw"
    write(tmp_path / "given/MNIST/raw", mnist)
    assert where("mnist", tmp_path / "given") == tmp_path / "given/MNIST/raw"
    (tmp_path / "given/MNIST/raw" / IDX_NAMES[3]).unlink()
    assert where("mnist", tmp_path / "given") == tmp_path / "environment/MNIST/raw"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_set_that_is_nowhere_names_the_three_ways(tmp_path, cache, name):
    for act in (lambda: load(name, data_dir=tmp_path, download=False), lambda: verify(name, tmp_path)):
        with pytest.raises(LabError) as error:
            act()
        message = message_of(error)
        for part in ("--data-dir", "THALWEG_DATA", f"`thalweg data fetch {name}`", PUBLISHED[name].folder):
            assert part in message
        assert str(tmp_path) in message
        assert str(cache) in message


def test_a_folder_that_is_none_is_told_whether_given_or_in_the_environment(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "absent", tmp_path / "file", "x" * 5000, "~nobody-of-this-name"):
        with pytest.raises(LabError, match=r"--data-dir names .* no readable folder") as error:
            load("mnist", data_dir=folder)
        assert str(folder) in message_of(error)
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path / "absent"))
    with pytest.raises(LabError, match="THALWEG_DATA names"):
        where("mnist")


def test_an_unknown_name_gets_the_nearest():
    for act in (load, where, verify, fetch):
        with pytest.raises(LabError, match="no data set called 'minst', did you mean 'mnist'"):
            act("minst")


# damage


def test_a_wrong_checksum_is_refused(tmp_path, mnist):
    write(tmp_path / "MNIST/raw", mnist)
    path = tmp_path / "MNIST/raw" / IDX_NAMES[2]
    changed = mnist[IDX_NAMES[2]][:-1] + b"?"
    path.write_bytes(changed)
    with pytest.raises(LabError) as error:
        load("mnist", data_dir=tmp_path)
    for part in (str(path), md5(mnist[IDX_NAMES[2]]), md5(changed), "fetch it again"):
        assert part in message_of(error)


@pytest.mark.parametrize("content", [tiny_cifar()["one.bin"][:3074], tiny_cifar()["one.bin"] * 2, b"too short"])
def test_a_cifar_file_of_another_size_is_refused(tmp_path, cifar, content):
    write(tmp_path / "tiny", {**cifar, "two.bin": content})
    with pytest.raises(LabError, match=rf"two\.bin is .* bytes expected, {len(content)} bytes found"):
        load("cifar100", data_dir=tmp_path)


def test_a_cifar_file_with_a_label_beyond_the_classes_is_refused(tmp_path, cifar):
    write(tmp_path / "tiny", {**cifar, "test.bin": bytes([0, 5]) + bytes(3072)})
    with pytest.raises(LabError, match=r"test\.bin is not the published file: labels below 5 expected, 5 found"):
        load("cifar100", data_dir=tmp_path)


def test_verify_tells_the_state_of_every_file(tmp_path, mnist, cifar):
    raw = tmp_path / "MNIST/raw"
    write(raw, mnist)
    assert [row["state"] for row in verify("mnist", tmp_path)] == ["ok"] * 4
    (raw / IDX_NAMES[0]).write_bytes(mnist[IDX_NAMES[0]][:-1])
    (raw / IDX_NAMES[1]).write_bytes(mnist[IDX_NAMES[1]][:-1] + b"?")
    (raw / IDX_NAMES[2]).unlink()
    (raw / f"{IDX_NAMES[2]}.gz").write_bytes(gzip.compress(mnist[IDX_NAMES[2]])[:-9])
    rows = verify("mnist", tmp_path)
    assert [row["state"] for row in rows] == ["wrong size", "wrong checksum", "wrong checksum", "ok"]
    good = mnist[IDX_NAMES[3]]
    assert rows[3] == {
        "file": IDX_NAMES[3],
        "path": str(raw / IDX_NAMES[3]),
        "size": len(good),
        "md5": md5(good),
        "state": "ok",
    }
    write(tmp_path / "tiny", {**cifar, "one.bin": b""})
    assert [row["state"] for row in verify("cifar100", tmp_path)] == ["wrong size", *["no published checksum"] * 2]
    assert verify("digits") == []


# downloading


def test_a_download_lands_in_the_cache_once(mnist, server, cache):
    asked = server[2]
    check_tiny_mnist(load("mnist"))
    assert sorted(path.name for path in (cache / "MNIST/raw").iterdir()) == sorted(f"{name}.gz" for name in IDX_NAMES)
    assert len(asked) == 4
    check_tiny_mnist(load("mnist"))
    assert len(asked) == 4


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_many_loads_at_once_download_once(mnist, cifar, server, name):
    with ThreadPoolExecutor(4) as pool:
        prints = {data.fingerprint for data in pool.map(load, [name] * 4)}
    assert prints == {load(name).fingerprint}
    assert sorted(server[2]) == sorted(f"/{archive}" for archive in PUBLISHED[name].archives)


def test_finished_files_are_kept_when_a_download_goes_on(mnist, server, cache):
    served, _, asked = server
    packed = (served / f"{IDX_NAMES[2]}.gz").read_bytes()
    (served / f"{IDX_NAMES[2]}.gz").unlink()
    with pytest.raises(LabError, match="cannot be downloaded") as error:
        load("mnist")
    assert "404" in message_of(error)
    assert sorted(path.name for path in (cache / "MNIST/raw").iterdir()) == [f"{name}.gz" for name in IDX_NAMES[:2]]
    assert where("mnist") is None
    asked.clear()
    (served / f"{IDX_NAMES[2]}.gz").write_bytes(packed)
    check_tiny_mnist(load("mnist"))
    assert sorted(set(asked)) == sorted(f"/{name}.gz" for name in IDX_NAMES[2:])


def test_a_download_with_a_wrong_checksum_is_refused_and_leaves_nothing(mnist, server, cache):
    (server[0] / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(b"somebody else's"))
    with pytest.raises(LabError) as error:
        load("mnist")
    for part in ("does not match the known hash", "--data-dir", "THALWEG_DATA", "thalweg data fetch mnist"):
        assert part in message_of(error)
    assert list((cache / "MNIST/raw").iterdir()) == []


def test_a_connection_that_breaks_off_leaves_nothing(mnist, monkeypatch, cache):
    class Torn(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"only this")

        def log_message(self, *_):
            pass

    with serving(Torn) as url:
        monkeypatch.setitem(PUBLISHED, "mnist", replace(PUBLISHED["mnist"], url=url))
        with pytest.raises(LabError, match="cannot be downloaded"):
            load("mnist")
    assert list((cache / "MNIST/raw").iterdir()) == []


def test_no_connection_is_told_in_one_sentence(monkeypatch):
    with serving(SimpleHTTPRequestHandler) as url:
        pass  # closed again: nobody listens there
    monkeypatch.setitem(PUBLISHED, "mnist", replace(PUBLISHED["mnist"], url=url))
    with pytest.raises(LabError, match="cannot be downloaded") as error:
        load("mnist")
    for part in ("--data-dir", "THALWEG_DATA", "thalweg data fetch mnist"):
        assert part in message_of(error)
    assert "Caused by" not in message_of(error)


def test_an_archive_is_unpacked_and_removed(cifar, server, cache, tmp_path):
    assert fetch("cifar100") == cache / "tiny"
    assert {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()} == cifar
    assert not (cache / "tiny.tar.gz").exists()
    assert not list(tmp_path.rglob("stranger.txt"))
    (cache / "tiny/two.bin").unlink()  # as if the unpacking had been killed
    assert load("cifar100").train.labels.tolist() == [0, 1, 2, 3]
    assert server[2] == ["/tiny.tar.gz"] * 2


def test_a_cache_that_cannot_be_written_is_told_in_one_sentence(mnist, cache):
    cache.write_text("a file where a folder should be")
    with pytest.raises(LabError, match="cannot be downloaded") as error:
        load("mnist")
    assert str(cache) in message_of(error)


# the edge


def test_a_plugin_adds_a_set(monkeypatch, tmp_path):
    asked = []

    def build(data_dir):
        asked.append(data_dir)
        return mine

    mine = DataSet("mine", *[Split(torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))] * 2, 1, "plugin")
    point = type("Point", (), {"name": "mine", "module": "json.decoder", "load": staticmethod(lambda: build)})
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point] if group == "thalweg.datasets" else [])
    assert names() == ["cifar10", "cifar100", "digits", "fashion-mnist", "mine", "mnist", "svhn"]
    assert load("mine", data_dir=str(tmp_path)) is mine
    assert load("mine") is mine
    assert asked == [tmp_path, None]
    assert where("mine") == Path(os.__file__).parent / "json"
    mine = None
    with pytest.raises(LabError, match="'mine' returned a NoneType: it must return a DataSet"):
        load("mine")


def test_listing_and_verifying_import_neither_torch_nor_pooch(tmp_path, mnist):
    write(tmp_path / "FashionMNIST/raw", mnist)
    code = f"""if True:
        import sys
        from thalweg.lab.data.catalogue import names, verify, where
        assert "digits" in names()
        assert where("digits").name == "sklearn"
        assert where("fashion-mnist", {str(tmp_path)!r}) is not None
        assert len(verify("fashion-mnist", {str(tmp_path)!r})) == 4
        heavy = {{"torch", "sklearn", "pooch", "requests"}} & set(sys.modules)
        sys.exit(f"imported {{heavy}}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REAL = os.environ.get("THALWEG_DATA", "")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("mnist", (1, 28, 28), 10),
        ("fashion-mnist", (1, 28, 28), 10),
        ("cifar10", (3, 32, 32), 10),
        ("cifar100", (3, 32, 32), 100),
    ],
)
def test_the_real_set(name, shape, classes):
    if not REAL or where(name, REAL) is None:
        pytest.skip(f"no {name} in $THALWEG_DATA")
    data = load(name, data_dir=REAL, download=False)
    train = 60000 if shape[0] == 1 else 50000
    assert data.train.images.shape == (train, *shape)
    assert data.test.images.shape == (10000, *shape)
    assert len(data.train.labels.unique()) == data.classes == classes
    assert (data.train.images.min(), data.train.images.max()) == (0, 1)
    assert {row["state"] for row in verify(name, REAL)} <= {"ok", "no published checksum"}
    if name != "mnist":  # the other three have classes of equal size
        assert data.train.labels.bincount().tolist() == [train // classes] * classes
