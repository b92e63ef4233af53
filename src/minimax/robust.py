"""The adversarially trained network of *Defenses*, which a paper-scale run takes as recorded.

Floor 4; called by listing, reproduce.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minimax import recorded
from minimax.attacks import pgd
from minimax.data import load
from minimax.defenses import adversarial_training
from minimax.evaluation import accuracy
from minimax.game import minibatches, play
from minimax.networks import strided_network
from minimax.recorded.origin import checkpoint_folder, origin

RECORD = "defenses/robust_mnist"
SETTINGS: dict[str, Any] = {"epochs": 25.0, "epsilon": 0.3, "steps": 10, "lr": 2e-3, "batch": 100}


def train_robust_mnist(
    network: nn.Module, epochs: float = 25.0, checkpoints: Path | None = None
) -> None:
    """Train ``network`` on MNIST against ten PGD steps of ε = 0.3, after an epoch at 0.1 and 0.2.

    Madry et al. (2018) begin with 0.3 at once; a network this small then stays at chance. A killed
    run goes on from what the folder ``checkpoints`` holds. Introduced in *Defenses*.
    """
    data = load("mnist")
    batches = minibatches(data.x, data.y, size=SETTINGS["batch"])
    slower = {"lr": SETTINGS["lr"], "schedule": lambda progress: 1 - progress}
    for epsilon, steps, rounds, options in (
        (0.1, 5, 600, {}),
        (0.2, 5, 600, {}),
        (SETTINGS["epsilon"], SETTINGS["steps"], round(600 * epochs), slower),
    ):
        player = adversarial_training(network, epsilon, steps=steps, random_start=True, **options)
        kept = checkpoints and checkpoints / str(epsilon)
        play([player], batches, rounds=rounds, checkpoint=kept)


def record_robust_mnist(epochs: float = 25.0, images: int = 10_000) -> None:
    """Record the weights of an adversarially trained network, and how it does under PGD.

    Introduced in *Defenses*.
    """
    began, begun = time.perf_counter(), origin()
    torch.manual_seed(0)
    network = strided_network()
    kept = checkpoint_folder(Path(tempfile.gettempdir()), "robust", {"epochs": epochs})
    train_robust_mnist(network, epochs, kept)
    halves = {name: weight.half() for name, weight in network.state_dict().items()}
    network.load_state_dict(halves)  # what is measured is what is kept
    test = load("mnist", split="test")
    x, y = test.x[:images], test.y[:images]
    measured = {"clean": [accuracy(network, x, y)]}
    for restarts in (1, 10):
        attacked = pgd(
            network, x, y, 0.3, steps=100, step_size=0.01, restarts=restarts, until_fooled=True
        )
        measured[f"PGD-100, restarts: {restarts}"] = [accuracy(network, attacked, y)]
    recorded.write_tensors(RECORD, halves)
    record = begun | {
        "seconds": time.perf_counter() - began,
        "seeds": [0],
        "settings": SETTINGS | {"epochs": epochs},
        "images": images,
        "measured": measured,
    }
    recorded.write(RECORD, record)
    shutil.rmtree(kept)
