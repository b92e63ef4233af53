"""What a reader is shown of networks that did not learn here: attacks on photographs, airplanes.

Introduced in the chapters *Adversarial examples* and *Black-box and physical attacks*.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax import recorded
from minimax.attacks.gradient import fgsm, input_gradient
from minimax.attacks.minimal import lbfgs
from minimax.attacks.physical import PrintAndPhotograph, Through, basic_iterative
from minimax.data import Pretrained, load, squeezenet
from minimax.evaluation import accuracy, predict_proba
from minimax.game import Player, minibatches, play, reinitialise
from minimax.recorded.origin import origin

EPSILONS = (0.0, 0.001, 0.002, 0.004, 0.007, 0.015, 0.03, 0.06)
OSTRICH = 9
RECORD = "adversarial_examples/squeezenet"
COLOUR = "adversarial_examples/colour_network"
SEEDS = (0, 1, 2)  # of the network of colours
CAMERA = "black_box_and_physical_attacks/camera"
LEVELS, SHOTS, SHOT_SEEDS = (8, 16), 5, range(5)


def attack_photograph(pretrained: Pretrained, photograph: Tensor) -> dict[str, Any]:
    """Return one FGSM step on ``photograph`` (3, H, W): its sign and what the network then says.

    ``rows`` has, for each ε of EPSILONS, label and probability after the step and after random
    noise of the same size; ``sign_says`` what the network says of the sign as an image, black and
    white. Introduced in *Adversarial examples*.
    """
    network, labels, source = pretrained
    x = photograph[None]
    y = predict_proba(network, x).argmax(1)
    attacked = predict_proba(network, fgsm(network, x, y, EPSILONS)[:, 0])
    generator = torch.Generator().manual_seed(0)
    coin = torch.randn(x.shape, generator=generator, device="cpu").sign().to(x)
    noisy = predict_proba(network, torch.cat([(x + e * coin).clamp(0, 1) for e in EPSILONS]))
    sign = input_gradient(network, x, y).sign()

    def said(row: Tensor) -> tuple[str, float]:
        return labels[row.argmax()], row.max().item()

    rows = [
        {"epsilon": epsilon, "attack": said(after), "noise": said(control)}
        for epsilon, after, control in zip(EPSILONS, attacked, noisy, strict=True)
    ]
    says = said(predict_proba(network, sign / 2 + 0.5)[0])
    return {"sign": sign[0], "sign_says": says, "rows": rows, "origin": source}


def turn_into_ostriches(
    pretrained: Pretrained, photographs: Tensor, **options: Any
) -> dict[str, Any]:
    """Return what L-BFGS adds to ``photographs`` (N, 3, H, W) to make ostriches of them.

    ``before`` and ``after`` are the network's labels and probabilities, ``noise`` those after
    Gaussian noise of the size of each perturbation ``r``. Introduced in *Adversarial examples*.
    """
    target = torch.full((len(photographs),), OSTRICH, device=photographs.device)
    r = lbfgs(pretrained.network, photographs, target, **options) - photographs
    return _answers(pretrained, photographs, r)


def _answers(pretrained: Pretrained, photographs: Tensor, r: Tensor) -> dict[str, Any]:
    """Return ``r`` with what the network says before it, after it, and after noise of its size."""
    network, labels, source = pretrained

    def said(x: Tensor) -> list[tuple[str, float]]:
        return [(labels[row.argmax()], row.max().item()) for row in predict_proba(network, x)]

    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(r.shape, generator=generator, device="cpu").to(r)
    noise = r.pow(2).mean((1, 2, 3), keepdim=True).sqrt() * gauss
    added = {"before": 0 * r, "after": r, "noise": noise}
    answers = {when: said((photographs + what).clamp(0, 1)) for when, what in added.items()}
    return answers | {"r": r, "origin": source}


def record_squeezenet() -> None:
    """Record the attacks on scikit-learn's photographs: a few bits per pixel and a table.

    Introduced in *Adversarial examples*.
    """
    began, begun = time.perf_counter(), origin()
    pretrained = squeezenet(download=True)
    photographs = load("photographs").x
    first = attack_photograph(pretrained, photographs[0])
    r = turn_into_ostriches(pretrained, photographs)["r"]
    step = r.abs().amax((1, 2, 3), keepdim=True) / 127
    r = (r / step).round()  # what is recorded is what the network is asked about
    ostriches = _answers(pretrained, photographs, r * step)
    bits = np.packbits(first["sign"].cpu().numpy().ravel() > 0)
    kept = {
        "sign_bits": torch.from_numpy(bits),
        "r": r.to(torch.int8),
        "step": step,
    }
    recorded.write_tensors(RECORD, kept)
    record = (
        begun
        | {
            "seconds": time.perf_counter() - began,
            "weights": first["origin"],
            "rows": first["rows"],
            "sign_says": first["sign_says"],
        }
        | {when: ostriches[when] for when in ("before", "after", "noise")}
    )
    recorded.write(RECORD, record)


def recorded_squeezenet() -> dict[str, Any]:
    """Return the recorded attacks in the form of the two functions above, in one.

    Introduced in *Adversarial examples*.
    """
    record, kept = recorded.run(RECORD) or {}, recorded.tensors(RECORD)
    bits = np.unpackbits(kept["sign_bits"].cpu().numpy())
    sign = torch.from_numpy(bits).to(kept["r"].device).float().view(3, 224, 224) * 2 - 1
    return record | {"sign": sign, "r": kept["r"].float() * kept["step"]}


def colour_network(classes: int = 10) -> nn.Sequential:
    """Return a small convolutional network for images (N, 3, 32, 32).

    Introduced in *Adversarial examples*.
    """
    widths = ((3, 32), (32, 64), (64, 64))
    halved = [[nn.Conv2d(*pair, 3, stride=2, padding=1), nn.ReLU()] for pair in widths]
    head = [nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)]
    return nn.Sequential(*(layer for pair in halved for layer in pair), *head)


def record_colour_network(rounds: int = 3_000) -> None:
    """Record weights of ``colour_network``, trained on the JPEG copy of CIFAR-10: the first seed's.

    Their accuracy is that on the copy's test images. Introduced in *Adversarial examples*.
    """
    began, begun, right = time.perf_counter(), origin(), []
    train, test = (load("cifar10_jpeg", split=split) for split in ("train", "test"))
    network = colour_network()
    players = [Player(network, lambda x, y: cross_entropy(network(x), y))]
    for seed in SEEDS:
        torch.manual_seed(seed)
        reinitialise(network)
        play(players, minibatches(train.x, train.y, size=100), rounds=rounds, seed=seed)
        halves = {name: weight.half() for name, weight in network.state_dict().items()}
        network.load_state_dict(halves)  # what is measured is what is kept
        right.append(accuracy(network, test.x, test.y))
        if seed == SEEDS[0]:
            recorded.write_tensors(COLOUR, halves)
    record = begun | {
        "seconds": time.perf_counter() - began,
        "seeds": list(SEEDS),
        "settings": {"data": "cifar10_jpeg", "rounds": rounds, "batch": 100, "lr": 1e-3},
        "measured": {"accuracy on the JPEG copy's test images": right},
    }
    recorded.write(COLOUR, record)


def recorded_colour_network() -> nn.Module:
    """Return ``colour_network`` with its recorded weights. Introduced in *Adversarial examples*."""
    network = colour_network()
    network.load_state_dict(recorded.tensors(COLOUR))
    return network.eval()


def record_camera() -> None:
    """Record what the attacks of Kurakin et al. (2017) leave of photographs behind a camera.

    For each of SHOT_SEEDS, attack and ε (in grey levels of 255) two lists: whether the network is
    right about each attacked image, and in which share of SHOTS photographs of it. Seeds that are
    there are skipped. Introduced in *Black-box and physical attacks*.
    """
    network, _, source = squeezenet()
    data = load("imagenet_photographs")
    x, y, camera = data.x, data.y, PrintAndPhotograph()
    least = predict_proba(network, x, batch_size=8).argmin(1)

    def right(pictures: Tensor) -> Tensor:
        return (predict_proba(network, pictures, batch_size=8).argmax(1) == y).float()

    def still(levels: int) -> dict[str, Tensor]:  # what draws nothing at random
        step = partial(basic_iterative, network, x, levels=levels, batch_size=8)
        return {
            "none": x,
            "fast": fgsm(network, x, y, levels / 255, batch_size=8),
            "basic iterative": step(y=y),
            "least likely": step(y=least, targeted=True),
        }

    through = Through(network, camera, views=4)
    attacks = {levels: still(levels) for levels in LEVELS}
    for seed in SHOT_SEEDS:
        if f"seed {seed}" in (recorded.run(CAMERA) or {}):
            continue
        began, begun = time.perf_counter(), origin()
        torch.manual_seed(seed)
        kept = {}
        for levels in LEVELS:
            random = {
                "noise": (x + levels / 255 * torch.randn_like(x).sign()).clamp(0, 1),
                "basic iterative, expected": basic_iterative(through, x, y, levels, batch_size=8),
            }
            for name, pictures in (attacks[levels] | random).items():
                shots = torch.stack([right(camera(pictures)) for _ in range(SHOTS)])
                kept[f"{name}, {levels}"] = [right(pictures).tolist(), shots.mean(0).tolist()]
        row = begun | {
            "seconds": time.perf_counter() - began, "seeds": [seed], "weights": source,
            "shots": SHOTS, "photographs": kept,
        }  # fmt: skip
        recorded.write_row(CAMERA, f"seed {seed}", row)
