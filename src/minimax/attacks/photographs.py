"""The attacks on photographs that a reader without the pretrained weights is shown as recorded.

Introduced in the chapter *Adversarial examples*.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimax import recorded
from minimax.attacks.gradient import fgsm, input_gradient
from minimax.attacks.minimal import lbfgs
from minimax.data import Pretrained, load, squeezenet
from minimax.evaluation import predict_proba
from minimax.recorded.origin import origin

EPSILONS = (0.0, 0.001, 0.002, 0.004, 0.007, 0.015, 0.03, 0.06)
OSTRICH = 9
RECORD = "adversarial_examples/squeezenet"


def attack_photograph(pretrained: Pretrained, photograph: Tensor) -> dict[str, Any]:
    """Return one FGSM step on ``photograph`` (3, H, W): its sign and what the network then says.

    ``rows`` has, for each ε of EPSILONS, label and probability after the step and after random
    noise of the same size. Introduced in *Adversarial examples*.
    """
    network, labels, source = pretrained
    x = photograph[None]
    y = predict_proba(network, x).argmax(1)
    attacked = predict_proba(network, fgsm(network, x, y, EPSILONS)[:, 0])
    generator = torch.Generator().manual_seed(0)
    coin = torch.randn(x.shape, generator=generator, device="cpu").sign().to(x)
    noisy = predict_proba(network, torch.cat([(x + e * coin).clamp(0, 1) for e in EPSILONS]))

    def said(row: Tensor) -> tuple[str, float]:
        return labels[row.argmax()], row.max().item()

    rows = [
        {"epsilon": epsilon, "attack": said(after), "noise": said(control)}
        for epsilon, after, control in zip(EPSILONS, attacked, noisy, strict=True)
    ]
    return {"sign": input_gradient(network, x, y).sign()[0], "rows": rows, "origin": source}


def turn_into_ostriches(
    pretrained: Pretrained, photographs: Tensor, **options: Any
) -> dict[str, Any]:
    """Return what L-BFGS adds to ``photographs`` (N, 3, H, W) to make ostriches of them.

    ``before`` and ``after`` are the network's labels and probabilities. The perturbations are
    rounded to 8 bits, as they are recorded. Introduced in *Adversarial examples*.
    """
    network, labels, source = pretrained
    target = torch.full((len(photographs),), OSTRICH, device=photographs.device)
    r = lbfgs(network, photographs, target, **options) - photographs
    step = r.abs().amax() / 127
    r = (r / step).round() * step

    def said(x: Tensor) -> list[tuple[str, float]]:
        return [(labels[row.argmax()], row.max().item()) for row in predict_proba(network, x)]

    adversarial = (photographs + r).clamp(0, 1)
    return {"r": r, "before": said(photographs), "after": said(adversarial), "origin": source}


def record_squeezenet() -> None:
    """Record the attacks on scikit-learn's photographs: a few bits per pixel and a table.

    Introduced in *Adversarial examples*.
    """
    began, begun = time.perf_counter(), origin()
    pretrained = squeezenet(download=True)
    photographs = load("photographs").x
    first = attack_photograph(pretrained, photographs[0])
    ostriches = turn_into_ostriches(pretrained, photographs)
    step = ostriches["r"].abs().amax() / 127
    bits = np.packbits(first["sign"].cpu().numpy().ravel() > 0)
    kept = {
        "sign_bits": torch.from_numpy(bits),
        "r": (ostriches["r"] / step).round().to(torch.int8),
        "step": step,
    }
    recorded.write_tensors(RECORD, kept)
    record = begun | {
        "seconds": time.perf_counter() - began,
        "weights": first["origin"],
        "rows": first["rows"],
        "before": ostriches["before"],
        "after": ostriches["after"],
    }
    recorded.write(RECORD, record)


def recorded_squeezenet() -> dict[str, Any]:
    """Return the recorded attacks in the form of the two functions above, in one.

    Introduced in *Adversarial examples*.
    """
    record, kept = recorded.run(RECORD) or {}, recorded.tensors(RECORD)
    bits = np.unpackbits(kept["sign_bits"].cpu().numpy())
    sign = torch.from_numpy(bits).to(kept["r"].device).float().view(3, 224, 224) * 2 - 1
    return record | {"sign": sign, "r": kept["r"].float() * kept["step"]}
