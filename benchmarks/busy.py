"""What a busy machine costs: training beside processes that only spin, against its fair share.

    python benchmarks/busy.py [--beside 0 2 4 8] [--turns 3] [--set NAME=VALUE ...] [--chapter NAME]

Each run is a process of its own, with the package's settings; ``--set`` adds rows with other
variables of the environment, in turns with it (``--set OMP_NUM_THREADS=2`` is what torch would take
on two cores by itself). With ``--chapter`` it is a whole chapter at quick scale, imports included.
Beside n processes on c cores the fair share is c / (n + 1) cores, one at most of what ran on one
thread; 1 in the last column is the best of all rows alone.
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
print(time.perf_counter() - began, torch.get_num_threads())
"""

CHAPTER = """
from minimax.chapters import execute

notebook, seconds, *_ = execute({chapter!r}, {{"MINIMAX_SCALE": "quick"}})
print(seconds, "as set")
"""


def run(work: str, settings: dict[str, str], beside: int) -> tuple[float, str]:
    """Return what ``work`` takes beside so many processes that spin, and its threads."""
    spin = [sys.executable, "-c", "while True: pass"]
    # a session each, as other users have: where Linux shares by sessions (autogroup), a kernel,
    # which has its own, would get half the machine beside any number of one session's processes
    others = [subprocess.Popen(spin, start_new_session=True) for _ in range(beside)]
    try:
        time.sleep(1)
        done = subprocess.run(
            [sys.executable, "-c", work], env=os.environ | {"CI": "1"} | settings,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for other in others:
            other.kill()
            other.wait()
    taken, threads = done.stdout.split(maxsplit=1)
    return float(taken), threads.strip()


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], help="NAME=VALUE, a row for each")
    parser.add_argument("--chapter", help="a whole chapter, instead of the first's training")
    arguments = parser.parse_args()
    work = CHAPTER.format(chapter=arguments.chapter) if arguments.chapter else WORK
    rows = {"the package": {}} | {text: dict([text.split("=")]) for text in arguments.set}
    places = sorted({0, *arguments.beside})
    found = {
        (beside, name): [run(work, settings, beside)]
        for beside in places
        for name, settings in rows.items()
    }
    for _ in range(arguments.turns - 1):
        for (beside, name), runs in found.items():
            runs.append(run(work, rows[name], beside))
    best = {row: min(taken for taken, _ in runs) for row, runs in found.items()}
    alone = min(best[0, name] for name in rows)
    cores = len(os.sched_getaffinity(0))
    print("| beside | settings | threads | seconds, from … to | to its own alone "
          "| to the fair share |\n|---|---|---|---|---|---|")  # fmt: skip
    for (beside, name), runs in found.items():
        taken, threads = best[beside, name], ", ".join(sorted({threads for _, threads in runs}))
        worst = max(seconds for seconds, _ in runs)
        fair = alone * max(1, (beside + 1) / cores)
        print(f"| {beside} | {name} | {threads} | {taken:.2f} … {worst:.2f} "
              f"| {taken / best[0, name]:.2f} | {taken / fair:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
