"""Two processes play the game that one plays alone; LSUN's form is streamed from its LMDB."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import lmdb
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minimax import recorded
from minimax.dcgan import recorded_dcgan, train_dcgan
from minimax.game import minibatches, parallel
from minimax.networks import DCGANGenerator

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CI": "true"}


@pytest.fixture(scope="module")
def bedrooms(tmp_path_factory):
    """A folder with a small LMDB of the form of LSUN: keys and JPEG files."""
    folder = tmp_path_factory.mktemp("lsun")
    generator = torch.Generator().manual_seed(0)
    database = lmdb.open(str(folder / "bedroom_train_lmdb"), map_size=2**24)
    with database, database.begin(write=True) as transaction:
        for index in range(24):
            colours = torch.randint(256, (8, 10, 3), generator=generator, dtype=torch.uint8)
            image = Image.fromarray(colours.numpy()).resize((100, 80))
            file = io.BytesIO()
            image.save(file, "JPEG")
            transaction.put(f"{index:040x}".encode(), file.getvalue())
    return folder


def reproduce(folder, out, *options, processes=1):
    """Run the command of the README on the small LMDB."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launch, "-m", "minimax.reproduce", "dcgan", "--data", "lsun_bedroom"]
    command += ["--batch", "8", "--features", "8", "--out", str(out), "--dirty", *options]
    environment = os.environ | ONE_THREAD | {"MINIMAX_DATA": str(folder), "TMPDIR": str(out)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_two_processes_play_the_game_of_one(bedrooms, tmp_path):
    results = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        done = reproduce(bedrooms, out, "--rounds", "4", "--float32", processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads((out / "dcgan/lsun_bedroom.json").read_text("utf-8"))
        assert record["settings"]["bf16"] is False
        assert not list(out.glob("minimax-*"))  # the checkpoints
        results[processes] = record, load_file(out / "dcgan/lsun_bedroom.safetensors")
    (one, alone), (two, together) = results[1], results[2]
    assert (one["processes"], two["processes"]) == (1, 2)
    for player, losses in one["losses"].items():
        assert losses == pytest.approx(two["losses"][player], rel=1e-3, abs=1e-4)
    for name, value in alone.items():
        assert torch.allclose(value.float(), together[name].float(), atol=2e-3), name


def test_training_killed_in_the_middle_ends_with_the_same_weights(tmp_path):
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, tmp_path / "images.safetensors")
    code = (
        "import sys; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from minimax.dcgan import train_dcgan\n"
        "folder = Path(sys.argv[1]); images = load_file(folder / 'images.safetensors')['images']\n"
        "G, _, history = train_dcgan(images, size=16, features=8, rounds=60, batch=8, codes=6,\n"
        "    checkpoint=Path(sys.argv[2]), checkpoint_every=10)\n"
        "save_file({n: v.contiguous() for n, v in G.state_dict().items()}, sys.argv[3])\n"
    )

    def train(name, kill=False):
        kept, result = tmp_path / name, tmp_path / f"{name}.safetensors"
        command = [sys.executable, "-c", code, str(tmp_path), str(kept), str(result)]
        process = subprocess.Popen(command, env=os.environ | ONE_THREAD)
        if kill:
            while not (kept.exists() and list(kept.glob("*20*"))) and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not result.exists()
            return None
        assert process.wait() == 0
        return load_file(result)

    whole = train("whole")
    train("cut", kill=True)
    resumed = train("cut")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_data_sets_are_read_row_by_row():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.full((2,), float(index)), "a label"

    draw = minibatches(Rows(), torch.arange(5.0), size=7, noise=3)
    x, index, noise = draw(torch.Generator().manual_seed(0))
    assert x.shape == (7, 2) and torch.equal(x[:, 0], index) and noise.shape == (7, 3)


def test_shared_normalisation_alone_is_the_ordinary_one():
    torch.manual_seed(0)
    ordinary, shared = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    parallel.share_statistics(shared)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(ordinary(x), shared(x))
    assert type(shared) is parallel.SharedBatchNorm2d
    with pytest.raises(ValueError, match="network is 'BatchNorm1d'"):
        parallel.share_statistics(torch.nn.BatchNorm1d(3))


def test_shared_normalisation_without_weights_is_that_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    monkeypatch.setattr(parallel, "all_reduce", lambda values: 2 * values)
    torch.manual_seed(0)
    x = 3 + torch.randn(4, 3, 5, 5)
    for options in ({"affine": False}, {"affine": False, "track_running_stats": False}):
        shared, ordinary = (torch.nn.BatchNorm2d(3, **options) for _ in range(2))
        parallel.share_statistics(shared)
        assert type(shared) is parallel.SharedBatchNorm2d
        assert torch.allclose(shared(x), ordinary(torch.cat([x, x]))[:4], atol=1e-4)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_shared_normalisation_is_that_of_the_whole_batch_far_from_zero_too(momentum, monkeypatch):
    """As if two processes held equal halves: then a sum over both is twice one's own."""
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    monkeypatch.setattr(parallel, "all_reduce", lambda values: 2 * values)
    torch.manual_seed(0)
    shared = torch.nn.BatchNorm2d(3, momentum=momentum)
    ordinary = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    parallel.share_statistics(shared)
    for offset in (0.0, 3e3):
        x = (offset + 0.1 * torch.randn(4, 3, 5, 5)).requires_grad_()
        expected = ordinary(torch.cat([x, x]).double())
        found = shared(x)
        assert torch.allclose(found, expected[:4].float(), atol=2e-2)
        factors = torch.randn_like(found)
        (slope,) = torch.autograd.grad((found * factors).sum(), x)
        both = torch.cat([factors, factors]).double()
        (true,) = torch.autograd.grad((expected * both).sum() / 2, x)
        assert torch.allclose(slope, true, rtol=0.02, atol=0.2) and slope.abs().max() > 1
    for name, value in ordinary.named_buffers():
        assert torch.allclose(
            dict(shared.named_buffers())[name].double(), value.double(), rtol=1e-3
        )


def test_a_recorded_generator_is_the_one_that_was_trained(tmp_path, monkeypatch):
    G, _, _ = train_dcgan(torch.rand(16, 3, 16, 16), size=16, features=8, rounds=2, batch=8)
    monkeypatch.setattr("minimax.recorded.FOLDER", tmp_path)
    halves = {name: value.half().contiguous() for name, value in G.state_dict().items()}
    recorded.write_tensors("dcgan/faces", halves)
    record = {"settings": {"size": 16, "features": 8}}
    recorded.write("dcgan/faces", record)
    z = torch.randn(5, 100)
    with torch.no_grad():
        assert torch.allclose(recorded_dcgan("faces")(z), G.eval()(z), atol=5e-3)
    assert isinstance(recorded_dcgan("faces"), DCGANGenerator)
