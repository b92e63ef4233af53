"""What a GPU does with the book's kernels, in ten minutes and one file.

    python benchmarks/gpu.py [--out gpu.md] [--turns 3]

It runs the tests marked ``gpu``, which call every function there and compare it with the CPU; then
it measures the largest rate of matrix products that the card reaches, and how much of it a DCGAN
and ten stacked games reach: as they are, as one CUDA graph, compiled, and in bfloat16.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import game
import peers
from minimax import gans
from minimax.game import Batches, minibatches, play
from minimax.networks import DCGANDiscriminator, DCGANGenerator, mlp

TESTS = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:nbval"]
WAYS: dict[str, dict[str, Any]] = {
    "play": {},
    "graph": {"graph": True},
    "compile": {"compile": True},
    "compile, graph": {"compile": True, "graph": True},
}
HALF: dict[str, dict[str, Any]] = {f"{name}, bf16": o | {"bf16": True} for name, o in WAYS.items()}


def peak(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Return the rate of a large matrix product, in 10¹² operations a second."""
    side = side if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=dtype)
    spent = game.best_of(3, {"": game.timed(lambda n: [a @ a for _ in range(n)])}, rounds=10)[""]
    return 2 * side**3 / spent / 1e9


def work(players: Any, draw: Batches, **options: Any) -> float:
    """Return how many operations a round takes, counted as it runs."""
    with FlopCounterMode(display=False) as counter:
        play(players, draw, rounds=1, seed=0, **options)
    return float(counter.get_total_flops())


def experiments(device: torch.device) -> dict[str, tuple[Any, Batches, dict[str, Any]]]:
    """Return the games to time: players, batches, and what ``play`` is told of all of them."""
    small = device.type != "cuda"  # only to see that this file runs
    side, batch = (16, 4) if small else (64, 128)
    D, G = (net.to(device) for net in (DCGANDiscriminator(side, 3), DCGANGenerator(side, 3)))
    images = torch.rand(2 * batch, 3, side, side, device=device) * 2 - 1
    made = {
        f"DCGAN, {side} pixels, batch {batch}": (
            gans.non_saturating(D, G, **peers.ADAM),
            minibatches(images, size=batch, noise=100),
            {"channels_last": True},
        )
    }
    for hidden, rows in ((64, 128), (128, 512)):
        D, G = (mlp(2, hidden, hidden, outputs).to(device) for outputs in (1, 2))
        points = minibatches(torch.randn(10_000, 2, device=device), size=rows, noise=2)
        title = f"Ten games, batch {rows}, two layers of {hidden} units"
        made[title] = (gans.non_saturating(D, G, **peers.ADAM), points, {"copies": 10})
    return made


def main() -> None:
    """Test, measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each run")
    parser.add_argument("--device", default="cuda", help="cpu: only to see that this file runs")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU on this machine")
    game.DEVICE = device
    lines = [f"# {game.processor()}, torch {torch.__version__}\n"]
    tests = subprocess.run(
        [*TESTS, "tests/test_gpu.py"], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    lines += ["## Tests\n", "```", *tests.stdout.splitlines()[-30:], "```\n"]
    full, half = (peak(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    lines.append(f"Matrix products: {full:.3g} and, in bfloat16, {half:.3g} TFLOP/s.")
    for title, (players, draw, options) in experiments(device).items():
        flops = work(players, draw, **options)
        ways = (WAYS | HALF).items()
        runs = {name: game.played(players, draw, **options, **way) for name, way in ways}
        times = game.best_of(arguments.turns, runs, rounds=50 if device.type == "cuda" else 2)
        lines += [f"\n## {title}\n", "| run | ms a round | ratio to play | share of the peak |"]
        lines.append("|---|---|---|---|")
        for name, spent in times.items():
            share = flops / spent / 1e9 / (half if "bf16" in name else full)
            lines.append(f"| {name} | {spent:.3f} | {times['play'] / spent:.2f} | {share:.3f} |")
    text = "\n".join(lines) + "\n"
    arguments.out.write_text(text, "utf-8")
    print(text)
    sys.exit(tests.returncode if device.type == "cuda" else 0)


if __name__ == "__main__":
    main()
