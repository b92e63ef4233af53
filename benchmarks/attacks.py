"""PGD with 40 steps: images per second, ours against Foolbox's, in the same run.

    python benchmarks/attacks.py

Both attack the same network from the same start with the same step, alternately, and the best of
several rounds counts. "Fixed steps" does the same work; "until fooled" lets images leave the batch
once they are fooled, and is compared at equal robust accuracy.
"""

import argparse
import platform
import time
from collections.abc import Callable

import eagerpy
import foolbox
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks import pgd
from minimax.data import load
from minimax.evaluation import accuracy
from minimax.game import Player, minibatches, play
from minimax.networks import maxout_network

STEPS, STEP_SIZE = 40, 0.01  # with ε = 0.3, the setting of Madry et al. on MNIST


def convolutional() -> nn.Sequential:
    """The MNIST network of Madry et al.: two 5×5 convolutions and 1,024 hidden units."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10),
    )  # fmt: skip


def trained(model: nn.Module, rounds: int) -> nn.Module:
    """Train on scikit-learn's digits at 28×28 pixels."""
    data = load("digits", size=28)
    player = Player(model, lambda x, y: cross_entropy(model(x), y))
    play([player], minibatches(data.x, data.y, size=100), rounds=rounds)
    return model.eval()


def seconds(attack: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return how long ``attack`` takes, and what it returns."""
    began = time.perf_counter()
    result = attack()
    if result.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per attack")
    parser.add_argument("--images", type=int, default=360, help="how many test digits, at most 360")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, Foolbox {foolbox.__version__}, {name}, "
          f"{torch.get_num_threads()} threads, {arguments.images} images\n")  # fmt: skip
    data = load("digits", split="test", size=28)
    x, y = (t[: arguments.images].to(device) for t in (data.x, data.y))

    print("| network | ε | attack | images/s | ratio to Foolbox | accuracy left |")
    print("|---|---|---|---|---|---|")
    for title, build, rounds in NETWORKS:
        model = trained(build(), rounds).to(device)
        for epsilon in (0.1, 0.3):
            start = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
            results = compare(model, x, y, epsilon, start, arguments.rounds)
            base = results["Foolbox LinfPGD"][0]
            for label, (spent, left) in results.items():
                rate, ratio = len(x) / spent, base / spent
                cells = (title, epsilon, label, f"{rate:.0f}", f"{ratio:.2f}", f"{left:.3f}")
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def compare(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, start: Tensor, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the best time of each attack, in seconds, and the accuracy that it leaves."""

    class FromStart(foolbox.attacks.LinfPGD):
        """Foolbox's PGD, begun where ours begins."""

        def get_random_start(self, x0: object, epsilon: float) -> object:
            return eagerpy.astensor(start)

    theirs = FromStart(abs_stepsize=STEP_SIZE, steps=STEPS)
    wrapped = foolbox.PyTorchModel(model, (0, 1))

    def ours(until_fooled: bool) -> Tensor:
        options = {"steps": STEPS, "step_size": STEP_SIZE, "start": start}
        return pgd(model, x, y, epsilon, until_fooled=until_fooled, **options)

    runs: dict[str, Callable[[], Tensor]] = {
        "Foolbox LinfPGD": lambda: theirs(wrapped, x, y, epsilons=epsilon)[1],
        "ours, fixed steps": lambda: ours(until_fooled=False),
        "ours, until fooled": lambda: ours(until_fooled=True),
    }
    best = dict.fromkeys(runs, float("inf"))
    left = {}
    for turn in range(rounds + 1):
        for label, run in runs.items():
            spent, images = seconds(run)
            left[label] = accuracy(model, images, y)
            if turn > 0:  # the first turn warms up
                best[label] = min(best[label], spent)
    return {label: (best[label], left[label]) for label in runs}


NETWORKS = [
    ("convolutional", convolutional, 150),
    ("maxout", lambda: maxout_network(784), 500),
]

if __name__ == "__main__":
    main()
