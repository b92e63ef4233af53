"""What a busy machine costs: training beside processes that only spin, against its fair share.

    python benchmarks/busy.py [--beside 0 2 4 8] [--turns 2] [--set NAME=VALUE ...]

Each run is a process of its own, with the package's settings; ``--set`` adds rows with other
variables of the environment, in turns with it (``--set OMP_NUM_THREADS=2`` is what torch would take
on two cores by itself). Beside n processes on c cores the fair share is c / (n + 1) cores, one at
most of what ran on one thread.
"""

import argparse
import os
import subprocess
import sys
import time

WORK = """
from minimax import scale
import time, torch
from torch.nn.functional import cross_entropy
from minimax.game import Player, minibatches, play
from minimax.gans import non_saturating
from minimax.networks import maxout_network, mlp

torch.manual_seed(0)
network = maxout_network(784)
x, y = torch.rand(2_000, 1, 28, 28), torch.randint(10, (2_000,))
classify = Player(network, lambda x, y: cross_entropy(network(x), y))
D, G = mlp(2, 64, 64, 1), mlp(2, 64, 64, 2)
ring = minibatches(torch.randn(2_000, 2), size=128, noise=2)

def game(rounds):
    play([classify], minibatches(x, y, size=100), rounds=rounds)
    play(non_saturating(D, G), ring, rounds=4 * rounds, copies=10)

game(3)
began = time.perf_counter()
game(60)
print(time.perf_counter() - began)
"""


def seconds(settings: dict[str, str], beside: int) -> float:
    """Return what the work takes beside so many processes that spin."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(beside)]
    try:
        time.sleep(1)
        done = subprocess.run(
            [sys.executable, "-c", WORK], env=os.environ | {"CI": "1"} | settings,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], help="NAME=VALUE, a row for each")
    arguments = parser.parse_args()
    rows = {"the package": {}} | {text: dict([text.split("=")]) for text in arguments.set}
    alone: dict[str, float] = {}
    cores = len(os.sched_getaffinity(0))
    print("| beside | settings | seconds | to its own alone | to the fair share |")
    print("|---|---|---|---|---|")
    for beside in arguments.beside:
        best = dict.fromkeys(rows, float("inf"))
        for _ in range(arguments.turns):
            for name, settings in rows.items():
                best[name] = min(best[name], seconds(settings, beside))
        for name, taken in best.items():
            alone.setdefault(name, taken)
            fair = min(alone.values()) * max(1, (beside + 1) / cores)
            print(f"| {beside} | {name} | {taken:.2f} | {taken / alone[name]:.2f} "
                  f"| {taken / fair:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
