"""How time and memory of a round grow, as a figure: with copies, batch, side and processes.

    python benchmarks/growth.py [--out benchmarks/growth.svg]

Each point is a process of its own, on one thread. A line through the upper half of the points, on
logarithmic axes, has the exponent as its slope: 1 is "twice as much takes twice as long". Memory is
what the process takes at its most, less what a tiny game has taken before.
"""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

RING = {"copies": 10, "batch": 128}
AXES: dict[str, tuple[list[int], dict[str, int]]] = {
    "copies": ([1, 2, 4, 8, 16, 32, 64], RING),
    "batch": ([32, 64, 128, 256, 512, 1024, 2048], RING),
    "side": ([8, 16, 32, 64], {"batch": 32}),
    "processes": ([1, 2], {"side": 32, "batch": 32}),
}
WORK = """
import sys, time, resource, torch
from minimax.game import minibatches, parallel, play
from minimax.gans import non_saturating
from minimax.networks import DCGANDiscriminator, DCGANGenerator, mlp

size = {name: int(value) for name, value in (text.split("=") for text in sys.argv[1:])}
parallel.start()
torch.manual_seed(0)
if "side" in size:
    D, G = DCGANDiscriminator(size["side"]), DCGANGenerator(size["side"])
    data, codes, rounds = torch.rand(256, 1, size["side"], size["side"]), 100, 5
else:
    D, G, data, codes, rounds = mlp(2, 64, 64, 1), mlp(2, 64, 64, 2), torch.randn(10_000, 2), 2, 40
small = mlp(2, 4, 1), mlp(2, 4, 2)  # loads what is loaded once
tiny = minibatches(torch.zeros(9, 2), size=2, noise=2)
play(non_saturating(*small), tiny, rounds=2, copies=size.get("copies"))
began, times = time.perf_counter(), []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = minibatches(data, size=size["batch"], noise=codes)
watch = {"time": lambda: times.append(time.perf_counter() - began) or 0.0}
play(non_saturating(D, G), batches, rounds=5 * rounds, every=rounds, watch=watch,
     copies=size.get("copies"))
times = sorted(set(times))[:: size.get("copies", 1)]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
if parallel.is_first():
    print(min(b - a for a, b in zip(times, times[1:])) / rounds * 1e3, grown / 1e3)
"""


def point(size: dict[str, int]) -> tuple[float, float]:
    """Return the milliseconds of a round, and the MB that the game takes."""
    given = [f"{name}={value}" for name, value in size.items() if name != "processes"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CI": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings["MASTER_PORT"] = str(free.getsockname()[1])
    several = size.get("processes", 1)
    runs = []
    for rank in range(several):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(several)}
        environment = settings | (own if several > 1 else {})
        command = [sys.executable, "-c", WORK, *given]
        runs.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [run.communicate()[0] for run in runs]
    milliseconds, megabytes = printed[0].split()
    return float(milliseconds), float(megabytes)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".svg"))
    out = parser.parse_args().out
    fig, panels = plt.subplots(2, len(AXES), figsize=(11, 5), sharex="col", layout="constrained")
    print(
        "| what grows | values | ms a round | exponent | MB | exponent |\n|---|---|---|---|---|---|"
    )
    for (name, (values, fixed)), column in zip(AXES.items(), panels.T, strict=True):
        measured = np.array([point(fixed | {name: value}) for value in values]).T
        slopes = []
        for ax, found, colour in zip(column, measured, ("C0", "C1"), strict=True):
            upper = slice(-max(2, len(values) // 2 + 1), None)
            slope, start = np.polyfit(np.log(values[upper]), np.log(found[upper]), 1)
            slopes.append(slope)
            ax.loglog(values, found, "o", color=colour)
            ax.loglog(values, np.exp(start) * np.array(values) ** slope, color=colour, lw=1)
            ax.set_title(f"exponent {slope:.2f}", fontsize=10)
            ax.set_xticks(values, [str(value) for value in values], minor=False)
            ax.minorticks_off()
        column[1].set_xlabel(name)
        rows = (", ".join(f"{value:.3g}" for value in found) for found in (values, *measured))
        shown, times, memory = rows
        print(f"| {name} | {shown} | {times} | {slopes[0]:.2f} | {memory} | {slopes[1]:.2f} |")
    panels[0, 0].set_ylabel("ms a round")
    panels[1, 0].set_ylabel("MB")
    fig.savefig(out)


if __name__ == "__main__":
    main()
