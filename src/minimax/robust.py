"""The robust networks of *Defenses* and *Evaluating defenses*, which a paper-scale run takes.

Floor 4; called by listing, reproduce.
"""

import shutil
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax import recorded
from minimax.attacks import fgsm, pgd
from minimax.attacks.black_box import hop_skip_jump, square
from minimax.attacks.ensemble import auto_attack
from minimax.attacks.physical import Through
from minimax.data import load
from minimax.defenses import adversarial_training
from minimax.evaluation import accuracy, predict_proba
from minimax.game import History, Player, minibatches, play
from minimax.game.player import Options
from minimax.networks import maxout_network, strided_network
from minimax.recorded.origin import checkpoint_folder, origin

RECORD = "defenses/robust_mnist"
SETTINGS: dict[str, Any] = {"epochs": 25.0, "epsilon": 0.3, "steps": 10, "lr": 2e-3, "batch": 100}

FAST = "defenses/fast_mnist"
FAST_SETTINGS: dict[str, Any] = {
    "epochs": 10, "epsilon": 0.3, "step_size": 0.375, "lr": 5e-3, "peak": 0.4, "batch": 100,
}  # fmt: skip
STARTS: dict[str, dict[str, Any]] = {
    "the image": {},
    "the ball, clipped": {"random_start": True, "clip_start": True},
    "the ball": {"random_start": True},
}
MAXOUT = "defenses/maxout_mnist"
MAXOUT_SETTINGS: dict[str, Any] = {
    "epochs": 40, "epsilon": 0.25, "mix": 0.5, "lr": 0.1, "momentum": 0.7, "norm": 1.9365,
    "batch": 100,
}  # fmt: skip
ATTACKED = "evaluating_defenses/attacked"
ATTACK_SETTINGS: dict[str, Any] = {
    "epsilon": 0.3, "queries": [200, 1000, 5000], "radii": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
    "steps": 50, "noise": 0.2, "views": 4, "walks": 5000,
}  # fmt: skip
SETTINGS_OF = {
    RECORD: SETTINGS, FAST: FAST_SETTINGS, MAXOUT: MAXOUT_SETTINGS, ATTACKED: ATTACK_SETTINGS
}  # fmt: skip


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
        player = adversarial_training(
            network, epsilon, steps=steps, random_start=True, clip_start=True, **options
        )
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


def train_fast_mnist(network: nn.Module, start: str, seed: int = 0) -> History:
    """Train ``network`` on MNIST with single steps from ``start``, one of ``STARTS``.

    From "the ball" it is Wong et al. (2020), algorithm 3, with the values of their code on MNIST:
    ten epochs of batches of 100 (here drawn with replacement), Adam's rate up to 0.005 and down, a
    step of 0.375 for ε = 0.3. The history watches one step and ten on 500 training images.
    Introduced in *Defenses*.
    """
    data, s = load("mnist"), FAST_SETTINGS
    x, y = data.x[-500:], data.y[-500:]

    def watched(**options: Any) -> float:
        attack = pgd if options else fgsm
        return accuracy(network, attack(network, x, y, s["epsilon"], **options), y)

    player = adversarial_training(
        network, s["epsilon"], step_size=s["step_size"], lr=s["lr"], **STARTS[start],
        schedule=lambda progress: float(np.interp(progress, [0, s["peak"], 1], [0, 1, 0])),
    )  # fmt: skip
    rounds = len(data) // s["batch"] * s["epochs"]
    watch = {"one step": watched, "ten steps": lambda: watched(steps=10, until_fooled=True)}
    batches = minibatches(data.x, data.y, size=s["batch"])
    return play([player], batches, rounds=rounds, watch=watch, every=rounds // 20, seed=seed)


def record_fast_mnist(seeds: Iterable[int] = (0, 1, 2), images: int = 2_000) -> None:
    """Record how networks trained by single steps do, from each of ``STARTS``.

    Tested on the first ``images`` of the test set by 50 steps of 0.01 and two restarts, where Wong
    et al. (2020) take ten on all. A killed run goes on with what lacks a record. Introduced in
    *Defenses*.
    """
    test = load("mnist", split="test")
    x, y = test.x[:images], test.y[:images]
    for seed in seeds:
        for start in reversed(STARTS):
            key = f"{start}, seed {seed}"
            if key in (recorded.run(FAST) or {}):
                continue
            began, begun = time.perf_counter(), origin()
            torch.manual_seed(seed)
            network = strided_network()
            history = train_fast_mnist(network, start, seed)
            trained = time.perf_counter() - began
            many = pgd(network, x, y, 0.3, steps=50, step_size=0.01, restarts=2, until_fooled=True)
            one = fgsm(network, x, y, 0.3)
            measured = {
                "clean": accuracy(network, x, y),
                "one step": accuracy(network, one, y),
                "PGD-50, restarts: 2": accuracy(network, many, y),
            }
            course = {name: [round(float(v), 3) for v in values]
                      for name, values in history.watched.items()}  # fmt: skip
            row = begun | {
                "seconds": time.perf_counter() - began, "seconds_of_training": trained,
                "seeds": [seed], "settings": FAST_SETTINGS, "start": start, "images": len(x),
                "measured": measured, "rounds": list(history.rounds), "course": course,
            }  # fmt: skip
            recorded.write_row(FAST, key, row)


class _MaxNorm(torch.optim.SGD):
    """Steps after which no unit's incoming weights have a norm above that of the settings."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for w in group["params"]:
                if w.dim() > 1:
                    w.renorm_(2, 0, MAXOUT_SETTINGS["norm"])
        return loss


def train_maxout_mnist(network: nn.Module, by_fgsm: bool, seed: int = 0) -> None:
    """Train ``network`` on MNIST by its clean images alone, or in equal parts by those of FGSM.

    Dropout, momentum and the bound on the weights are those of Goodfellow et al.'s maxout networks
    (2013), the objective with FGSM that of Goodfellow et al. (2015, section 6). They train longer,
    end by a validation set, and take 1,600 units a layer when FGSM takes part; here it is the same
    network twice, and the rate falls in a straight line to nothing. Introduced in *Defenses*.
    """
    data, s = load("mnist"), MAXOUT_SETTINGS
    options: Options = {
        "lr": s["lr"], "schedule": lambda progress: 1 - progress,
        "optimiser": partial(_MaxNorm, momentum=s["momentum"]),
    }  # fmt: skip
    if by_fgsm:
        player = adversarial_training(network, s["epsilon"], mix=s["mix"], **options)
    else:
        player = Player(network, lambda x, y: cross_entropy(network(x), y), **options)
    batches = minibatches(data.x, data.y, size=s["batch"])
    play([player], batches, rounds=len(data) // s["batch"] * s["epochs"], seed=seed)


def record_maxout_mnist(seeds: Iterable[int] = (0, 1, 2)) -> None:
    """Record how often maxout networks err, trained with FGSM and without, under it and without.

    On all test images; the noise is ±ε at random. A killed run goes on with what lacks a record.
    Introduced in *Defenses*.
    """
    test, epsilon = load("mnist", split="test"), MAXOUT_SETTINGS["epsilon"]
    x, y = test.x, test.y
    for seed in seeds:
        for trained, by_fgsm in {"clean": False, "FGSM": True}.items():
            key = f"{trained}, seed {seed}"
            if key in (recorded.run(MAXOUT) or {}):
                continue
            began, begun = time.perf_counter(), origin()
            torch.manual_seed(seed)
            network = maxout_network(784)
            train_maxout_mnist(network, by_fgsm, seed)
            noisy = (x + epsilon * torch.randn_like(x).sign()).clamp(0, 1)
            said = predict_proba(network, fgsm(network, x, y, epsilon))
            wrong = said.argmax(1) != y
            measured = {
                "clean": 1 - accuracy(network, x, y),
                "noise": 1 - accuracy(network, noisy, y),
                "FGSM": wrong.float().mean().item(),
                "confidence when wrong": said[wrong].amax(1).mean().item(),
            }
            row = begun | {
                "seconds": time.perf_counter() - began, "seeds": [seed], "trained": trained,
                "settings": MAXOUT_SETTINGS, "images": len(x), "measured": measured,
            }  # fmt: skip
            recorded.write_row(MAXOUT, key, row)


def record_attacks(images: int = 500, walked: int = 200) -> None:
    """Record what strong attacks leave of the recorded network and of an ordinary one, on MNIST.

    The first ``images`` of the test set in L∞: PGD, Square with more and more queries, the whole
    ensemble. The first ``walked`` in L2, against several radii: PGD, PGD through noise, whose
    gradient is that of an average, and HopSkipJump from the nearest training image of another
    class. Introduced in *Evaluating defenses*.
    """
    s, train, test = ATTACK_SETTINGS, load("mnist"), load("mnist", split="test")
    ordinary, robust = strided_network(), strided_network()
    robust.load_state_dict(recorded.tensors(RECORD))
    for name, network in {"robust": robust, "ordinary": ordinary}.items():
        began, begun = time.perf_counter(), origin()
        torch.manual_seed(0)
        if network is ordinary:
            network.load_state_dict(strided_network().state_dict())
            player = Player(network, lambda x, y: cross_entropy(ordinary(x), y))
            play([player], minibatches(train.x, train.y, size=100), rounds=3_000)
        x, y = test.x[:images], test.y[:images]
        measured: dict[str, Any] = {"clean": accuracy(network, x, y)}
        moved = pgd(network, x, y, s["epsilon"], steps=s["steps"], until_fooled=True)
        measured["PGD-50"] = accuracy(network, moved, y)
        for queries in s["queries"]:
            found = square(network, x, y, s["epsilon"], queries=queries)
            measured[f"Square, {queries} queries"] = accuracy(network, found.images, y)
        ensemble = auto_attack(network, x, y, s["epsilon"])
        row = begun | {
            "seeds": [0], "settings": s, "images": images, "walked": walked,
            "measured": measured, "ensemble": ensemble.after, "left_out": ensemble.left_out,
            "L2": _in_l2(network, test.x[:walked], test.y[:walked], train.x, train.y),
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
        recorded.write_row(ATTACKED, name, row)


def _in_l2(
    network: nn.Module, x: Tensor, y: Tensor, others: Tensor, classes: Tensor
) -> dict[str, list[float]]:
    """Return the accuracy at each radius under each attack, and under the best for each image."""
    s = ATTACK_SETTINGS

    def says(images: Tensor) -> Tensor:
        return predict_proba(network, images).argmax(1)

    noisy = Through(network, lambda z: z + s["noise"] * torch.randn_like(z), views=s["views"])
    right, left = says(x) == y, {}
    for name, asked in {"PGD": network, "PGD through noise": noisy}.items():
        ends = pgd(asked, x, y, s["radii"], norm="l2", steps=s["steps"])
        left[name] = torch.stack([says(images) == y for images in ends])
    others, classes = others[says(others) == classes], classes[says(others) == classes]
    apart = torch.cdist(x[right].flatten(1), others.flatten(1))
    apart = apart.masked_fill(y[right, None] == classes, torch.inf)
    start = others[apart.argmin(1)]
    near = hop_skip_jump(says, x[right], y[right], start, queries=s["walks"]).images
    distance = torch.zeros(len(x)).masked_scatter(right, (near - x[right]).flatten(1).norm(dim=1))
    left["HopSkipJump"] = distance > torch.tensor(s["radii"])[:, None]
    left["the best of them"] = torch.stack(list(left.values())).all(0)
    return {name: kept.float().mean(1).tolist() for name, kept in left.items()}
