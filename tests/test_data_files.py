"""Files that are missing, damaged or half written; servers and disks that fail."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from minimax.data import (
    DataError,
    available,
    imagenet,
    load,
    readers,
    squeezenet,
    squeezenet_available,
)
from minimax.data import places as where
from minimax.files import write_whole


def idx(array):
    """An array in MNIST's file format, compressed."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


# Noise does not compress: the file is large enough to be cut off half-way.
IMAGES = np.random.default_rng(0).integers(0, 256, (700, 28, 28), dtype=np.uint8)
FILES = {
    "train-images-idx3-ubyte.gz": idx(IMAGES),
    "train-labels-idx1-ubyte.gz": idx((np.arange(700) % 10).astype(np.uint8)),
}


@pytest.fixture
def server(monkeypatch, places):
    """A server on loopback that stands for MNIST's mirror; ``mode`` says how it fails."""
    state = types.SimpleNamespace(mode="good", requests=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            state.requests.append(name)
            body = state.files.get(name)
            if state.mode == "missing" or body is None:
                return self.send_error(404)
            if state.mode == "corrupt":
                body = body[:-1] + bytes([body[-1] ^ 1])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.mode == "slow":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(20)
            self.wfile.write(body[: len(body) // 2] if state.mode == "truncated" else body)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/"
    state.files = dict(FILES)
    md5 = [(name, hashlib.md5(body).hexdigest()) for name, body in FILES.items()]
    monkeypatch.setattr(tv.MNIST, "mirrors", [state.url])
    monkeypatch.setattr(tv.MNIST, "resources", md5)
    yield state
    httpd.shutdown()
    httpd.server_close()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download_once_then_from_the_cache(server, places):
    data = load("mnist")
    assert torch.equal((data.x[:, 0] * 255).round().byte(), torch.from_numpy(IMAGES))
    assert data.y.tolist() == [k % 10 for k in range(700)]
    asked = len(server.requests)
    assert set(server.requests) == set(FILES)
    load("mnist")
    assert len(server.requests) == asked
    assert files(places[1]) == sorted(FILES)


@pytest.mark.parametrize("mode", ["missing", "corrupt", "truncated"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(server, places, mode):
    server.mode = mode
    with pytest.raises(DataError) as error:
        load("mnist")
    message = str(error.value)
    for part in ("'mnist' (11 MB)", *map(str, places), server.url, "load('digits')"):
        assert part in message
    assert files(places[1]) == []
    server.mode = "good"
    assert len(load("mnist")) == 700


def test_no_network(places, monkeypatch):
    monkeypatch.setattr(tv.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(DataError, match=r"'mnist' \(11 MB\) is not in .*refused.*'digits'"):
        load("mnist")


def test_a_damaged_file_in_the_cache_is_removed_and_fetched_again(server, places):
    load("mnist")
    path = places[1] / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    assert len(load("mnist")) == 700
    assert path.read_bytes() == FILES[path.name]


def test_a_damaged_file_of_the_user_is_named_and_left_alone(server, places):
    path = places[0] / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not what it was")
    with pytest.raises(
        DataError, match=rf"{path} is damaged \(its MD5 is .*\)\. Replace or remove"
    ):
        load("mnist")
    assert path.read_bytes() == b"not what it was"


def test_the_users_folder_is_searched_first(server, places):
    folder = places[0] / "MNIST/raw"
    folder.mkdir(parents=True)
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    load("mnist")
    assert server.requests == []
    assert not places[1].exists()


def test_an_unpacked_file_of_the_user_is_named_when_the_packed_one_is_wanted(server, places):
    server.mode = "missing"
    unpacked = places[0] / "MNIST/raw/train-images-idx3-ubyte"
    unpacked.parent.mkdir(parents=True)
    unpacked.write_bytes(gzip.decompress(FILES["train-images-idx3-ubyte.gz"]))
    with pytest.raises(DataError) as error:
        load("mnist")
    said = f"{unpacked} is there unpacked, but only {unpacked.name}.gz can be checked"
    assert said in str(error.value)


def test_the_checksum_decides_not_the_name(server, places):
    """A whole file of another data set under the right name is refused, and none is downloaded."""
    path = places[0] / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(idx(255 - IMAGES))
    with pytest.raises(DataError, match="its MD5 is"):
        load("mnist")
    assert path.exists() and server.requests == []


@pytest.mark.parametrize("variable", ["MINIMAX_DATA", "MINIMAX_CACHE"])
def test_a_relative_folder_is_refused_by_name(places, monkeypatch, variable):
    """It would be one folder for a script at the root and another for a chapter's kernel."""
    monkeypatch.chdir(places[0].parent)
    monkeypatch.setenv(variable, "given")
    for call in (lambda: available("cmu_faces"), lambda: load("cmu_faces"), squeezenet_available):
        with pytest.raises(ValueError, match=f"{variable} is 'given'; it has to be an absolute"):
            call()


def test_a_data_folder_that_is_not_there_is_refused_by_name(places, monkeypatch):
    monkeypatch.setenv("MINIMAX_DATA", str(places[0] / "typing error"))
    with pytest.raises(ValueError, match=r"MINIMAX_DATA is '.*typing error'; .* a folder that exi"):
        available("cmu_faces")
    assert len(load("digits", split="test")) == 360  # what is embedded needs no folder


def test_a_home_folder_that_is_named_by_a_tilde_is_found(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places[0].parent))
    monkeypatch.setenv("MINIMAX_DATA", "~/given")
    monkeypatch.delenv("MINIMAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification says to ignore
    assert where.places() == [places[0], places[0].parent / ".cache/minimax"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert where.cache() == pathlib.Path("/var/cache/minimax")


def test_no_home_folder_is_one_sentence(places, monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", homeless)
    with pytest.raises(ValueError, match="no home folder is known here"):
        available("cmu_faces")
    for variable in ("MINIMAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("MINIMAX_DATA")
    with pytest.raises(ValueError, match=r"MINIMAX_CACHE is '~/\.cache/minimax'"):
        available("cmu_faces")


# --- files that are written -------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_whole(path, b"old")
    assert path.read_bytes() == b"old" and files(tmp_path) == ["record.json"]

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(OSError, match="No space left"):
                write_whole(path, b"new")
        assert path.read_bytes() == b"old" and files(tmp_path) == ["record.json"]


def test_a_file_is_not_seen_before_it_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "record.json", []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(path.exists()))
    write_whole(path, b"new")
    assert seen == [False] and path.read_bytes() == b"new"


def test_two_processes_may_write_one_file_at_once(tmp_path, monkeypatch):
    """Another call begins and ends while the first is about to rename its own."""
    path, replace = tmp_path / "record.json", os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write_whole(path, b"theirs")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    write_whole(path, b"ours")
    assert path.read_bytes() == b"ours" and files(tmp_path) == ["record.json"]


# --- local forms, drawn here ------------------------------------------------------------------


def test_every_fifth_lossless_image_is_for_test(places):
    path = places[0] / LOCAL["cifar10_lossless"]
    path.parent.mkdir()
    x = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 10)
    shown = {split: (load("cifar10_lossless", split).x[:, 0, 0, 0] * 255).round().tolist()
             for split in ("train", "test")}  # fmt: skip
    assert shown["test"] == [0, 5, 10, 15]
    assert shown["train"] == [k for k in range(20) if k % 5]


def test_every_tenth_facade_is_for_test_and_the_map_stands_on_the_right(places):
    path = places[0] / LOCAL["facades"]
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for number in range(1, 401):
            pair = Image.new("RGB", (16, 8), (number // 2, 0, 0))
            pair.paste(readers.FACADE_COLOURS[number % 12], (8, 0, 16, 8))
            file = io.BytesIO()
            pair.save(file, "PNG")  # without loss; the name decides nothing
            member = tarfile.TarInfo(f"facades/{number}.jpg")
            member.size = file.tell()
            file.seek(0)
            archive.addfile(member, file)
    test = load("facades", "test")
    assert len(test) == 40 and len(load("facades")) == 360
    assert test.extras["labels"][:, 0, 0].tolist() == [k % 12 for k in range(1, 401, 10)]
    expected = [number // 2 for number in range(1, 401, 10)]
    assert (test.x[:, 0, 0, 0] * 255).round().tolist() == expected


CHILD = """
import sys
from torchvision import datasets as tv
tv.MNIST.mirrors, tv.MNIST.resources = [sys.argv[1]], [tuple(r.split("=")) for r in sys.argv[2:]]
from minimax.data import load
{before}
load("mnist")
"""


def child(server, before=""):
    arguments = [f"{name}={md5}" for name, md5 in tv.MNIST.resources]
    return [sys.executable, "-c", CHILD.format(before=before), server.url, *arguments]


def test_a_download_that_is_killed_is_never_taken_for_a_whole_file(server, places):
    server.mode = "slow"
    process = subprocess.Popen(child(server), env=os.environ)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in places[1].rglob("*.gz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (places[1] / "MNIST/raw/train-images-idx3-ubyte.gz").exists()
    server.mode = "good"
    assert len(load("mnist")) == 700


def test_a_full_disk(server, places):
    # The operating system refuses to let any file grow past 100 bytes.
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    )
    done = subprocess.run(child(server, limit), env=os.environ, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: Data set 'mnist' (11 MB) could not be kept at" in last
    assert "File too large" in last
    assert "MINIMAX_CACHE" in last
    assert files(places[1]) == []


def test_a_cache_that_cannot_be_written(server, places, monkeypatch):
    blocked = places[0] / "file"
    blocked.write_bytes(b"in the way")
    monkeypatch.setenv("MINIMAX_CACHE", str(blocked / "cache"))
    with pytest.raises(DataError, match=r"could not be kept at .*Not a directory.*MINIMAX_CACHE"):
        load("mnist")


@pytest.mark.parametrize("name", ["cifar10", "svhn", "gtsrb", "celeba"])
def test_torchvisions_downloads_fail_with_the_same_clear_error(name, places, monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionRefusedError(111, "Connection refused")

    for module in ("cifar", "svhn", "gtsrb"):
        part = sys.modules[f"torchvision.datasets.{module}"]
        for function in ("download_and_extract_archive", "download_url"):
            if hasattr(part, function):
                monkeypatch.setattr(part, function, no_network)
    monkeypatch.setattr(tv.CelebA, "download", no_network)
    with pytest.raises(DataError, match=rf"'{name}' \(.*B\) is not in .*download failed"):
        load(name)
    assert files(places[1]) == []


def test_a_torchvision_download_is_kept_only_when_it_is_whole(places, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.root)
        folder = os.path.join(self.root, self.base_folder)
        os.makedirs(folder)
        with open(os.path.join(folder, "data_batch_1"), "wb") as file:
            file.write(b"half")
        if len(calls) == 1:
            raise RuntimeError("cut off")

    monkeypatch.setattr(tv.CIFAR10, "download", download)
    with pytest.raises(DataError, match=r"download failed .cut off"):
        load("cifar10")
    assert files(places[1]) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [("cifar10", "cifar-10-batches-py/data_batch_1"), ("svhn", "train_32x32.mat")],
)
def test_truncated_torchvision_files_are_named(places, name, path):
    damaged = places[0] / path
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"\x80")
    with pytest.raises(DataError, match=f"'{name}': .*{path.split('/')[0]} is damaged"):
        load(name)


def test_a_gtsrb_folder_with_images_missing_is_refused(places):
    folder = places[0] / "gtsrb/GTSRB/Training/00000"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "00000_00000.ppm")
    with pytest.raises(DataError, match="1 images, not 26640"):
        load("gtsrb")


def test_a_whole_gtsrb_folder_gives_images_and_tracks(places, monkeypatch):
    samples = []
    for label, track in ((0, 0), (0, 1), (3, 0)):
        folder = places[0] / f"gtsrb/GTSRB/Training/{label:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        samples.append(folder / f"{track:05d}_00000.ppm")
        Image.new("RGB", (50, 45), (255, 0, 0)).save(samples[-1])
    monkeypatch.setitem(readers.GTSRB_IMAGES, "train", 3)
    data = load("gtsrb", size=16)
    assert data.x.shape == (3, 3, 16, 16)
    assert data.x[:, 0].min() == 1 and data.x[:, 1].max() == 0
    assert data.extras["track"].tolist() == [0, 1, 0]
    samples[0].write_bytes(samples[0].read_bytes()[:60])
    with pytest.raises(DataError, match=r"00000_00000\.ppm is damaged"):
        load("gtsrb")


def bedrooms(folder, count=3):
    """A database as LSUN's: keys, and images as files."""
    environment = lmdb.open(str(folder), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for k in range(count):
            file = io.BytesIO()
            Image.new("RGB", (256, 300), (k * 100, 0, 0)).save(file, "WEBP", lossless=True)
            transaction.put(str(k).encode(), file.getvalue())
    environment.close()


def test_lsun_bedrooms_from_their_database(places):
    bedrooms(places[0] / "bedroom_train_lmdb")
    before = files(places[0])
    data = load("lsun_bedroom", size=32)
    assert len(data) == 3
    assert data[2].shape == (3, 32, 32) and data[2][0].mean() == pytest.approx(200 / 255)
    assert files(places[0]) == before  # nothing is pickled beside it
    with pytest.raises(DataError, match=r"lsun_bedroom.*www\.yf\.io/p/lsun.*bedroom_val_lmdb"):
        load("lsun_bedroom", split="test")


def test_a_damaged_lsun_database_is_named(places):
    folder = places[0] / "bedroom_train_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="bedroom_train_lmdb is damaged"):
        load("lsun_bedroom")


LOCAL = {
    "cifar10_jpeg": "cifar10/cifar10_jpeg_q75.tar.xz",
    "cifar10_lossless": "cifar10/cifar10_train_first4000_lossless.npz",
    "cmu_faces": "cmu_faces/cmu_faces_64x60.npz",
    "facades": "facades/facades_train_400.tar",
    "gtsrb_subset": "gtsrb32/gtsrb32_subset.npz",
    "imagenet_photographs": "photos/samples.json",
    "sms_spam": "sms_spam/SMSSpamCollection",
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_forms_that_are_missing_or_damaged(places, name):
    assert not available(name)
    with pytest.raises(DataError, match=rf"'{name}' .* is not in {places[0]}, .*{LOCAL[name]}"):
        load(name)
    path = places[0] / LOCAL[name]
    path.parent.mkdir()
    path.write_bytes(b"half of")
    assert available(name)
    with pytest.raises(DataError, match=rf"'{name}': {path} is damaged"):
        load(name)


def test_a_photograph_that_is_missing_or_cut_off_is_named(places):
    folder = places[0] / "photos"
    folder.mkdir()
    (folder / "samples.json").write_text(
        json.dumps([{"file": "a.JPEG", "index": 1, "label": "goldfish"}]), "utf-8"
    )
    with pytest.raises(DataError, match=r"a\.JPEG is damaged .FileNotFoundError"):
        load("imagenet_photographs")
    Image.effect_noise((300, 300), 50).convert("RGB").save(folder / "a.JPEG")
    assert load("imagenet_photographs").x.shape == (1, 3, 224, 224)
    (folder / "a.JPEG").write_bytes((folder / "a.JPEG").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a\.JPEG is damaged"):
        load("imagenet_photographs")


def test_weights_are_not_downloaded_unasked(places):
    assert not squeezenet_available()
    with pytest.raises(DataError, match=r"squeezenet1_1 weights.*a download was not asked for"):
        squeezenet()
    with pytest.raises(ValueError, match=r"version is '2'; it has to be one of '1_0', '1_1'"):
        squeezenet("2")


def test_weights_that_are_cut_off_are_named(places):
    path = places[0] / "torch_home/hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04 half")
    with pytest.raises(DataError, match=rf"{path} is damaged"):
        squeezenet()


def test_weights_with_the_wrong_hash_are_not_kept(server, places, monkeypatch):
    name = "squeezenet1_1-b8a52dc0.pth"
    server.files[name] = b"not the weights"
    weights = types.SimpleNamespace(url=server.url + name)
    monkeypatch.setattr(imagenet, "_weights", lambda version: weights)
    assert not squeezenet_available(download=True)
    with pytest.raises(DataError, match=r"squeezenet1_1 weights.*invalid hash value"):
        squeezenet(download=True)
    assert files(places[1]) == []
