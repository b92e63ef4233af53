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
from minimax.networks import accuracy, maxout_network

EPSILON, STEPS, STEP_SIZE = 0.1, 40, 0.01


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
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(rounds):
        rows = torch.randint(len(data), (100,))
        optimiser.zero_grad()
        cross_entropy(model(data.x[rows]), data.y[rows]).backward()
        optimiser.step()
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
    start = (x + EPSILON * (2 * torch.rand_like(x) - 1)).clamp(0, 1)

    class FromStart(foolbox.attacks.LinfPGD):
        """Foolbox's PGD, begun where ours begins."""

        def get_random_start(self, x0: object, epsilon: float) -> object:
            return eagerpy.astensor(start)

    print("| network | attack | images/s | ratio to Foolbox | accuracy left |")
    print("|---|---|---|---|---|")
    networks = {"convolutional": (convolutional(), 150), "maxout": (maxout_network(784), 500)}
    for title, (model, rounds) in networks.items():
        model = trained(model, rounds).to(device)
        theirs, attack = foolbox.PyTorchModel(model, (0, 1)), FromStart(
            abs_stepsize=STEP_SIZE, steps=STEPS
        )  # fmt: skip
        kw = {"steps": STEPS, "step_size": STEP_SIZE, "start": start}
        runs: dict[str, Callable[[], Tensor]] = {
            "Foolbox LinfPGD": lambda a=attack, t=theirs: a(t, x, y, epsilons=EPSILON)[1],
            "ours, fixed steps": lambda m=model, k=kw: pgd(m, x, y, EPSILON, **k),
            "ours, until fooled": lambda m=model, k=kw: pgd(
                m, x, y, EPSILON, until_fooled=True, **k
            ),
        }
        best = dict.fromkeys(runs, float("inf"))
        left = {}
        for _ in range(arguments.rounds + 1):  # the first one warms up
            for label, run in runs.items():
                spent, images = seconds(run)
                best[label] = min(best[label], spent)
                left[label] = accuracy(model, images, y)
        for label, spent in best.items():
            ratio = best["Foolbox LinfPGD"] / spent
            rate = len(x) / spent
            print(f"| {title} | {label} | {rate:.0f} | {ratio:.2f} | {left[label]:.3f} |")


if __name__ == "__main__":
    main()
