"""The training kernel against what a user would write instead, in the same run.

    python benchmarks/game.py [copies] [curve] [rules] [dcgan] [overhead]

The peers (``peers.py``) run alternately in one process, and the best of several turns counts; JAX
with optax is one of them where it is installed (pip install jax optax).
"""

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import peers
from minimax import gans
from minimax.game import Batches, minibatches, play
from minimax.networks import mlp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ADAM = peers.ADAM
HAS_JAX = all(importlib.util.find_spec(name) for name in ("jax", "optax"))


Run = Callable[[int], float]  # plays so many rounds and returns the seconds that they took


def best_of(
    turns: int, runs: dict[str, Run], rounds: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Return the best time of a round of each run, in milliseconds; the runs take turns.

    ``prepare`` is called before each run, and not timed. The first turn only warms up.
    """
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(turns + 1):
        for name, run in runs.items():
            prepare()
            spent = run(rounds) / rounds * 1e3
            best[name] = min(best[name], spent) if turn else float("inf")
    return best


def now() -> float:
    """Return the time, once the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[int], object]) -> Run:
    """Return a run of ``function``, all of which counts."""

    def run(rounds: int) -> float:
        began = now()
        function(rounds)
        return now() - began

    return run


def played(players: Any, draw: Batches, **options: Any) -> Run:
    """Return a run of ``play``; what happens once, a trace or a compilation, does not count."""

    def run(rounds: int) -> float:
        began = now()
        watch = {"time": lambda: now() - began}
        options.setdefault("seed", 0)
        history = play(players, draw, rounds=2 * rounds, every=rounds, watch=watch, **options)
        times = (
            history.watched["time"].flatten(1)[:, 0]
            if "copies" in options
            else history.watched["time"]
        )
        return float(times[2] - times[1])

    return run


def show(title: str, times: dict[str, float], against: list[str], unit: str = "a round") -> None:
    """Print a table with the ratio to each of ``against``."""
    against = [peer for peer in against if peer in times]
    print(
        f"\n{title}\n\n| run | ms {unit} | " + " | ".join(f"ratio to {p}" for p in against) + " |"
    )
    print("|---" * (2 + len(against)) + "|")
    for name, spent in times.items():
        ratios = " | ".join(f"{times[peer] / spent:.2f}" for peer in against)
        print(f"| {name} | {spent:.3f} | {ratios} |", flush=True)


def drawn(batches: Batches, rounds: int) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return (batches(generator) for _ in range(rounds))


def ring_runs(hidden: int, batch: int, games: int) -> dict[str, Run]:
    """Games of small networks on points of the plane: loops, stacked, and JAX."""
    data = torch.randn(10_000, 2)
    draw = minibatches(data.to(DEVICE), size=batch, noise=2)
    D, G = (mlp(2, hidden, hidden, outputs).to(DEVICE) for outputs in (1, 2))
    players = gans.non_saturating(D, G, **ADAM)

    def loops(rounds: int) -> None:
        for _ in range(games):
            peers.gan_loop(D, G, drawn(draw, rounds))

    runs = {
        "PyTorch loops": timed(loops),
        "play": played(players, draw, copies=games),
        "play, graph": played(players, draw, copies=games, graph=True),
        "play, compile": played(players, draw, copies=games, compile=True),
    }
    if DEVICE.type == "cpu" and HAS_JAX:
        runs["JAX"] = timed(peers.jax_game(data, hidden, batch, games))
    return runs


def copies(turns: int) -> None:
    """Ten games of small networks."""
    times = best_of(turns, ring_runs(64, 128, 10), rounds=100)
    show("Ten games, batch 128, two layers of 64 units", times, ["PyTorch loops", "JAX"])


def curve(turns: int) -> None:
    """The same with more units and rows, for more and more copies, and the products' own limit."""
    for games in (1, 4, 10, 32, 64):
        times = best_of(turns, ring_runs(128, 512, games), rounds=max(2, 60 // games))
        times["the matrix products alone"] = products(128, 512, games)
        title = f"{games} games, batch 512, two layers of 128 units"
        show(title, times, ["PyTorch loops", "JAX"])


def products(hidden: int, batch: int, games: int) -> float:
    """Return the ms that the twelve large products of a round take, by ``torch.bmm``.

    D judges data and samples (2) and G makes them (1); D's gradient (4); then G once more (1),
    through D there and back (2), and G's own gradient (2).
    """
    x = torch.randn(games, batch, hidden, device=DEVICE)
    w = torch.randn(games, hidden, hidden, device=DEVICE)
    return best_of(5, {"": timed(lambda n: [torch.bmm(x, w) for _ in range(12 * n)])}, rounds=5)[""]


def rules(turns: int) -> None:
    """Rounds with slopes and unrolled steps, against loops with ``autograd.grad``."""
    for title, rule, losses, steps in (
        ("RpGAN + R1 + R2", gans.relativistic, peers.relativistic_losses, 1),
        ("WGAN-GP, five turns of D", gans.wasserstein, peers.wasserstein_losses, 5),
        ("Unrolled, five steps", gans.unrolled, peers.unrolled_losses, 1),
    ):
        for games in (1, 10):
            runs = rule_runs(rule, losses, steps, games)
            rounds = 40 if games == 1 else 20
            title = title if games == 1 else f"{title}, ten games"
            show(title, best_of(turns, runs, rounds), ["PyTorch loops"])


def rule_runs(rule: Any, losses: Any, steps: int, games: int) -> dict[str, Run]:
    """Games by one of our rules, and its loop by hand; D takes so many steps a round."""
    draw = minibatches(torch.randn(10_000, 2, device=DEVICE), size=128, noise=2)
    networks = mlp(2, 64, 64, 1).to(DEVICE), mlp(2, 64, 64, 2).to(DEVICE)
    players, by_hand = rule(*networks, **ADAM), losses(*networks)

    def loops(rounds: int) -> None:
        for _ in range(games):
            batches = drawn(draw, rounds * steps)
            peers.loop(
                networks, by_hand, ([next(batches) for _ in range(steps)] for _ in range(rounds))
            )

    options = {} if games == 1 else {"copies": games}
    return {
        "PyTorch loops": timed(loops),
        "play": played(players, draw, **options),
        "play, graph": played(players, draw, graph=True, **options),
        "play, compile": played(players, draw, compile=True, **options),
    }


def dcgan(turns: int) -> None:
    """A step of DCGAN at 32 and 64 pixels, batch 64."""
    rounds = 200 if DEVICE.type == "cuda" else 3
    for size in (32, 64):
        times = best_of(turns, *dcgan_runs(size, rounds))
        against = ["PyTorch's example", "the same compiled", "the same in bf16"]
        show(f"DCGAN, {size} pixels, batch 64", times, against, "a step")


def dcgan_runs(size: int, rounds: int) -> tuple[dict[str, Any], int, Callable[[], object]]:
    """The runs to compare, how many rounds, and what gives the networks their layout back."""
    from minimax.game.engine import bf16_pays

    real = torch.rand(256, 3, size, size, device=DEVICE) * 2 - 1
    pairs = minibatches(real, size=64, noise=100)
    D, G = (net.to(DEVICE) for net in peers.example_networks(size))
    players = gans.non_saturating(D, G, **ADAM)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        images, noise = pairs(generator)
        return images, noise[:, :, None, None]

    def theirs(**options: Any) -> Run:
        return timed(lambda rounds: peers.gan_loop(D, G, drawn(draw, rounds), **options))

    def last(rounds: int) -> None:
        for net in (D, G):
            net.to(memory_format=torch.channels_last)
        batches = ((x.to(memory_format=torch.channels_last), z) for x, z in drawn(draw, rounds))
        peers.gan_loop(D, G, batches)

    def as_built() -> None:
        for net in (D, G):
            net.to(memory_format=torch.contiguous_format)

    runs = {
        "PyTorch's example": theirs(),
        "the same compiled": theirs(compiled=True),
        "the same, channels last": timed(last),
        "play": played(players, draw),
        "play, channels last": played(players, draw, channels_last=True),
        "play, channels last, graph": played(players, draw, channels_last=True, graph=True),
    }
    if bf16_pays(DEVICE):
        half = torch.autocast(DEVICE.type, torch.bfloat16)
        runs["the same in bf16"] = theirs(half=half)
        runs["play, channels last, bf16"] = played(players, draw, channels_last=True, bf16=True)
    return runs, rounds, as_built


def overhead(turns: int) -> None:
    """A round of one game against the same operations by hand: nothing is shared or stacked."""
    for hidden, batch in ((64, 128), (256, 512)):
        D, G = (mlp(2, hidden, hidden, outputs).to(DEVICE) for outputs in (1, 2))
        draw = minibatches(torch.randn(10_000, 2, device=DEVICE), size=batch, noise=2)

        def by_hand(rounds: int, D: nn.Module = D, G: nn.Module = G, draw: Any = draw) -> None:
            d, g = (torch.optim.Adam(net.parameters(), fused=True, **ADAM) for net in (D, G))
            for real, noise in drawn(draw, rounds):
                D.requires_grad_(True), G.requires_grad_(False)
                (softplus(-D(real)).mean() + softplus(D(G(noise))).mean()).backward()
                d.step(), d.zero_grad()
                D.requires_grad_(False), G.requires_grad_(True)
                softplus(-D(G(noise))).mean().backward()
                g.step(), g.zero_grad()
            D.requires_grad_(True)

        players = gans.non_saturating(D, G, **ADAM)
        runs = {
            "the loop by hand": timed(by_hand),
            "play": played(players, draw),
            "play, graph": played(players, draw, graph=True),
        }
        title = f"One game, batch {batch}, two layers of {hidden} units"
        show(title, best_of(turns, runs, rounds=200), ["the loop by hand"])


def processor() -> str:
    """Return the processor's name and the instruction sets on which the ratios hang."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    flags = found.get("flags", "").split()
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    return f"{found.get('model name', platform.machine())} ({', '.join(sets)})"


def main() -> None:
    """Measure and print the tables."""
    tables = {f.__name__: f for f in (copies, curve, rules, dcgan, overhead)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=list(tables), help=", ".join(tables))
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads")
    if not HAS_JAX:
        print("JAX is left out: pip install jax optax")
    for what in arguments.what:
        tables[what](arguments.turns)


if __name__ == "__main__":
    main()
