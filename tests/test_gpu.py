"""What only a real GPU shows; on a machine without one these tests are skipped."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from minimax.attacks import pgd
from minimax.game import minibatches, play
from minimax.gans import non_saturating
from minimax.networks import DCGANDiscriminator, DCGANGenerator, mlp
from test_device import CALLS, called

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.mark.parametrize("names", CALLS, ids=lambda names: names.split()[0])
def test_every_function_runs_there_and_gives_what_the_cpu_gives(names):
    """Compared where it draws nothing: a GPU draws other numbers."""
    one, other = (called(names, "cpu", None, "cpu", seed) for seed in (1, 2))
    found = called(names, "cuda", "cuda", "cuda")
    assert len(found) == len(one)
    for gpu, cpu, again in zip(found, one, other, strict=True):
        gpu = gpu.cpu() if isinstance(gpu, Tensor) else gpu
        try:
            torch.testing.assert_close(cpu, again, rtol=0, atol=0)
        except AssertionError:
            continue
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-4)


def game(networks, copies, **options):
    torch.manual_seed(0)
    D, G = networks()
    image = isinstance(D, DCGANDiscriminator)
    data = torch.rand(64, 1, 16, 16) if image else torch.randn(64, 2)
    D, G, data = D.cuda(), G.cuda(), data.cuda()
    codes = 100 if image else 2
    players = non_saturating(D, G, d={"turns": 2}, lr=1e-3, average=0.9)
    history = play(players, minibatches(data, size=16, noise=codes), rounds=12, seed=0,
                   copies=copies, **options)  # fmt: skip
    return torch.stack([*history.losses.values()])


NETWORKS = {
    "images": lambda: (DCGANDiscriminator(16), DCGANGenerator(16)),
    "points": lambda: (mlp(2, 32, 1), mlp(2, 32, 2)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"graph": True}, {"compile": True}], ids=["graph", "compile"])
@pytest.mark.parametrize(("name", "copies"), [("images", None), ("points", None), ("points", 10)])
def test_a_captured_and_a_compiled_game_are_the_game(name, copies, options):
    plain = game(NETWORKS[name], copies)
    torch.testing.assert_close(game(NETWORKS[name], copies, **options), plain, rtol=0.01, atol=1e-3)


def test_no_step_of_pgd_waits():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).cuda().requires_grad_(False)
    x, y = torch.rand(8, 1, 4, 4).cuda(), torch.arange(8).cuda() % 5
    assert waits(model, x, y, 5) == waits(model, x, y, 50)


def waits(model, x, y, steps):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            pgd(model, x, y, 0.1, steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in found)
