"""Which substitute fools which server: a grid over what Papernot et al. leave open, recorded.

Introduced in the chapter *Black-box and physical attacks*.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax import recorded
from minimax.attacks.black_box import train_substitute
from minimax.attacks.gradient import fgsm, pgd
from minimax.data import Data, load
from minimax.evaluation import accuracy, predict_proba
from minimax.game import Player, minibatches, play
from minimax.networks import mlp
from minimax.recorded.origin import origin

RECORD = "black_box_and_physical_attacks/substitutes"
SEEDS = range(3)
EPSILONS = (0.2, 0.25, 0.3, 0.4)
SETTINGS: dict[str, Any] = {
    "seeds": 150, "augmentations": 6, "reservoir": (3, 1600), "epochs": 10, "every": 19,
    "momentum": 1.0, "steps": 10,
}  # fmt: skip


def convolutional(kernel: int, *dense: int, channels: tuple[int, int] = (16, 32)) -> nn.Sequential:
    """Return two convolutions of ``kernel``, each pooled, and ``dense`` layers, for (N, 1, 28, 28).

    Introduced in *Black-box and physical attacks*.
    """
    first, second = channels
    pad = kernel // 2 if kernel % 2 else 0
    size = 7 if pad else 6
    return nn.Sequential(
        nn.Conv2d(1, first, kernel, padding=pad), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel, padding=pad), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), mlp(size * size * second, *dense, 10),
    )  # fmt: skip


# "2 × 2" is after the convolutional substitute of Papernot et al. (2017), "MLP" the network of
# CleverHans' tutorial on it, and "5 × 5" that of the chapter's server.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: nn.Sequential(nn.Flatten(), mlp(784, 200, 200, 10)),
    "2 × 2": lambda: convolutional(2, 200, 200, channels=(32, 64)),
    "5 × 5": lambda: convolutional(5),
}
SERVERS = {  # the server's network, and for how many rounds it was trained
    "MLP": ("MLP", 1500),
    "5 × 5, 150 rounds": ("5 × 5", 150),
    "5 × 5, 300 rounds": ("5 × 5", 300),
    "5 × 5, 1,500 rounds": ("5 × 5", 1500),
}
PAIRS = [(server, "MLP") for server in SERVERS]
PAIRS += [("5 × 5, 1,500 rounds", "5 × 5"), ("5 × 5, 1,500 rounds", "2 × 2")]


@cache
def _mnist(split: str) -> Data:
    return load("mnist", split=split)


@cache
def _served(server: str, seed: int) -> nn.Module:
    """Return a network of SERVERS, trained on MNIST."""
    kind, rounds = SERVERS[server]
    torch.manual_seed(seed)
    network = NETWORKS[kind]()
    batches = minibatches(_mnist("train").x, _mnist("train").y, size=100)
    loss = Player(network, lambda x, y: cross_entropy(network(x), y))
    play([loss], batches, rounds=rounds)
    return network.eval()


def steal(server: str, substitute: str, seed: int, **changed: Any) -> dict[str, Any]:
    """Return how often images made for a substitute fool the server, and after how many labels.

    ``changed`` are other SETTINGS. Counted are test images (one in "every", none of the seeds) that
    the server answers otherwise than before; the noise is ±ε at random. Introduced in *Black-box
    and physical attacks*.
    """
    settings = SETTINGS | changed
    victim, test = _served(server, seed), _mnist("test")
    x, y_true = (part[settings["seeds"] :: settings["every"]] for part in (test.x, test.y))

    def answer(images: Tensor) -> Tensor:
        return predict_proba(victim, images).argmax(1)

    y = answer(x)

    def fooled(images: Tensor) -> float:
        return (answer(images) != y).float().mean().item()

    torch.manual_seed(seed)
    network = NETWORKS[substitute]()
    asked = train_substitute(
        answer, network, test.x[: settings["seeds"]], augmentations=settings["augmentations"],
        reservoir=settings["reservoir"], epochs=settings["epochs"],
        watch=lambda: fooled(fgsm(network, x, y, 0.3)),
    )  # fmt: skip
    coin = torch.randn_like(x).sign()
    measured = {
        "server right": accuracy(victim, x, y_true),
        "agreement": accuracy(network, x, y),
    }
    for epsilon in EPSILONS:
        iterated = pgd(
            network, x, y, epsilon, steps=settings["steps"], momentum=settings["momentum"],
            random_start=False, step_size=epsilon / settings["steps"],
        )  # fmt: skip
        measured |= {
            f"FGSM, ε = {epsilon}": fooled(fgsm(network, x, y, epsilon)),
            f"momentum, ε = {epsilon}": fooled(iterated),
            f"noise, ε = {epsilon}": fooled((x + epsilon * coin).clamp(0, 1)),
        }
    return {"measured": measured, "labels": asked.queries, "course": asked.watched}


def record_substitutes() -> None:
    """Record PAIRS of servers and substitutes on MNIST; those that are there are skipped.

    Introduced in *Black-box and physical attacks*.
    """
    for server, substitute in PAIRS:
        key = f"{server} | {substitute}"
        if key in (recorded.run(RECORD) or {}):
            continue
        began, begun = time.perf_counter(), origin()
        runs = [steal(server, substitute, seed) for seed in SEEDS]
        row = begun | {
            "seconds": time.perf_counter() - began, "seeds": list(SEEDS), "settings": SETTINGS,
            "labels": runs[0]["labels"], "course": [run["course"] for run in runs],
            "measured": {k: [run["measured"][k] for run in runs] for k in runs[0]["measured"]},
        }  # fmt: skip
        recorded.write_row(RECORD, key, row)
