"""The training kernel: ten copies of a game against ten games, and a DCGAN step against the loop
of PyTorch's own DCGAN example, in the same run.

    python benchmarks/game.py [copies] [dcgan]

The peers run alternately in one process, and the best of several rounds counts.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, softplus

from minimax.game import Batches, minibatches, play
from minimax.gans import non_saturating
from minimax.networks import mlp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}


def best_of(
    turns: int, runs: dict[str, Callable[[], object]], prepare: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Return the best time of each run in seconds; they take turns, and the first only warms up.

    ``prepare`` is called before each run, and not timed.
    """
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(turns + 1):
        for name, run in runs.items():
            prepare()
            began = time.perf_counter()
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn > 0:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def show(title: str, unit: str, times: dict[str, float], peers: list[str]) -> None:
    """Print a table with the ratio to each of the peers."""
    print(f"\n{title}\n\n| run | {unit} | " + " | ".join(f"ratio to {p}" for p in peers) + " |")
    print("|---" * (2 + len(peers)) + "|")
    for name, spent in times.items():
        ratios = " | ".join(f"{times[peer] / spent:.2f}" for peer in peers)
        print(f"| {name} | {spent * 1e3:.2f} | {ratios} |", flush=True)


def copies(turns: int) -> None:
    """Ten games of small networks on a line of points, stacked and one after another."""
    hidden, batch, rounds, games = 64, 128, 200, 10
    data = torch.randn(10_000, 2, device=DEVICE)
    draw = minibatches(data, size=batch, noise=2)
    D, G = (mlp(2, hidden, hidden, outputs).to(DEVICE) for outputs in (1, 2))
    players = non_saturating(D, G, **ADAM)

    def loop() -> None:
        for _ in range(games):
            pytorch_loop(D, G, drawn(draw, rounds), logits=True)

    runs = {
        "ten plain PyTorch loops": loop,
        "ten times play": lambda: [play(players, draw, rounds=rounds) for _ in range(games)],
        "play with copies=10": lambda: play(players, draw, rounds=rounds, copies=games),
    }
    times = {name: spent / rounds for name, spent in best_of(turns, runs).items()}
    title = f"Ten games, batch {batch}, two layers of {hidden} units"
    show(title, "ms a round of all ten", times, ["ten plain PyTorch loops", "ten times play"])


def drawn(batches: Batches, rounds: int) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return (batches(generator) for _ in range(rounds))


def pytorch_loop(
    D: nn.Module, G: nn.Module, batches: Iterator[tuple[Tensor, ...]], *,
    logits: bool = False, bf16: bool = False,
) -> None:  # fmt: skip
    """Train as PyTorch's DCGAN example does: the fakes of D's turn serve G's turn as well."""
    half = torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16)
    d, g = (torch.optim.Adam(net.parameters(), **ADAM) for net in (D, G))

    def loss(output: Tensor, label: float) -> Tensor:
        if logits:
            return softplus(-output if label else output).mean()
        output = output.view(-1)
        return binary_cross_entropy(output, torch.full_like(output, label))

    for real, noise in batches:
        D.zero_grad()
        with half:
            real_loss = loss(D(real), 1.0)
        real_loss.backward()
        with half:
            fake = G(noise)
            fake_loss = loss(D(fake.detach()), 0.0)
        fake_loss.backward()
        d.step()
        G.zero_grad()
        with half:
            generator_loss = loss(D(fake), 1.0)
        generator_loss.backward()
        g.step()


def example_networks(size: int, width: int = 64, codes: int = 100) -> tuple[nn.Module, nn.Module]:
    """The networks of PyTorch's DCGAN example, for images of ``size`` × ``size`` pixels."""
    widths = [width * 2**k for k in range((size // 8).bit_length())]  # 64, 128, … from the image in
    G: list[nn.Module] = []
    for inputs, outputs in zip([codes, *widths[:0:-1]], widths[::-1], strict=True):
        stride, padding = (1, 0) if not G else (2, 1)
        G.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
        G += [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    G += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    D: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for inputs, outputs in itertools.pairwise(widths):
        D.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        D += [nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    D.append(nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False))
    return nn.Sequential(*D).to(DEVICE), nn.Sequential(*G).to(DEVICE)


def dcgan(turns: int) -> None:
    """A step of DCGAN at 32 and 64 pixels, batch 64."""
    rounds = 200 if DEVICE.type == "cuda" else 4
    for size in (32, 64):
        times = best_of(turns, *dcgan_runs(size, rounds))
        times = {name: spent / rounds for name, spent in times.items()}
        peers = ["PyTorch's example", "the same in bf16"]
        show(f"DCGAN, {size} pixels, batch 64", "ms a step", times, peers)


def dcgan_runs(
    size: int, rounds: int
) -> tuple[dict[str, Callable[[], object]], Callable[[], object]]:
    """The runs to compare, and what gives the networks their own layout back before each."""
    real = torch.rand(256, 3, size, size, device=DEVICE) * 2 - 1
    pairs = minibatches(real, size=64, noise=100)
    D, G = example_networks(size)
    players = non_saturating(D, G, **ADAM)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        images, noise = pairs(generator)
        return images, noise[:, :, None, None]

    def theirs(judge: nn.Module, bf16: bool) -> Callable[[], object]:
        return lambda: pytorch_loop(judge, G, drawn(draw, rounds), logits=bf16, bf16=bf16)

    def ours(**options: bool) -> Callable[[], object]:
        return lambda: play(players, draw, rounds=rounds, **options)

    def as_built() -> None:
        for net in (D, G):
            net.to(memory_format=torch.contiguous_format)

    runs = {
        "PyTorch's example": theirs(nn.Sequential(D, nn.Sigmoid()), bf16=False),
        "the same in bf16": theirs(D, bf16=True),
        "play": ours(),
        "play, channels last": ours(channels_last=True),
        "play, channels last, bf16": ours(channels_last=True, bf16=True),
    }
    if DEVICE.type == "cuda":
        runs["play, channels last, graph"] = ours(channels_last=True, graph=True)
        runs["play, channels last, bf16, graph"] = ours(channels_last=True, bf16=True, graph=True)
    return runs, as_built


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["copies", "dcgan"], help="copies, dcgan")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads")
    for what in arguments.what:
        {"copies": copies, "dcgan": dcgan}[what](arguments.turns)


if __name__ == "__main__":
    main()
