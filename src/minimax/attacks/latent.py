"""Attacks on a variational autoencoder: its reconstruction becomes another image.

Kos, Fischer and Song (2017). Introduced in *Adversarial examples*.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks.gradient import frozen
from minimax.errors import (
    Words,
    check_choice,
    check_count,
    check_labels,
    check_logits,
    check_model,
    check_number,
    check_pixels,
    refuse,
)
from minimax.networks import VAE

ATTACKS = ("latent", "loss", "classifier")


def reconstruct_as(
    vae: VAE,
    x: Tensor,
    target: Tensor,
    *,
    attack: str = "latent",
    classifier: nn.Module | None = None,
    c: float = 1.0,
    steps: int = 200,
    lr: float = 0.02,
) -> Tensor:
    """Return images near ``x`` whose reconstruction looks like ``target`` instead.

    Kos, Fischer and Song (2017), section 4: minimise attack(x′) + c·‖x′ − x‖² over the box [0, 1]
    by Adam, where the attack's loss is

    - "latent": ‖encode(target) − encode(x′)‖², equation 7;
    - "loss": the VAE's own −ELBO with ``target`` as the image to be explained, in nats;
    - "classifier": the cross-entropy of a ``classifier`` of codes towards class ``target`` (N,).

    ``x`` and, for the first two, ``target`` have shape (N, channels, H, W). Raises ValueError for
    an unknown attack, a missing classifier, shapes that do not fit, images outside [0, 1] or of
    another precision than the ``vae``, and NaN. Introduced in *Adversarial examples*.
    """
    check_choice("attack", attack, ATTACKS)
    steps = check_count("steps", steps)
    c = check_number("c", c)
    lr = check_number("lr", lr, at_least=1e-12)
    wanted = x.shape[:1] if attack == "classifier" else x.shape
    if target.shape != wanted:
        refuse("target", tuple(target.shape), f"of shape {tuple(wanted)} for attack {attack!r}")
    check_pixels("x", x)
    check_model(vae, "vae")
    weight = next(vae.parameters(), x)
    if x.dtype != weight.dtype:
        refuse("x", Words(str(x.dtype)), f"{weight.dtype}, as the weights of the model are")
    if attack != "classifier":
        check_pixels("target", target)
        target = target.to(x.dtype)
    elif classifier is None:
        refuse("classifier", None, "a network that maps codes to classes, for this attack")
    else:
        check_model(classifier, "classifier")
        target = check_labels("target", target, len(x))

    with frozen(vae), frozen(classifier or nn.Identity()):
        objective = _objective(vae, target, attack, classifier)
        image = x.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([image], lr=lr)
        for _ in range(steps):
            loss = objective(image) + c * ((image - x) ** 2).sum()
            (image.grad,) = torch.autograd.grad(loss, image)
            if not image.grad.isfinite().all():
                refuse("vae", Words("with a gradient that is NaN or infinite"), "finite in [0, 1]")
            optimiser.step()
            with torch.no_grad():
                image.clamp_(0, 1)
    return image.detach()


def _objective(
    vae: VAE, target: Tensor, attack: str, classifier: nn.Module | None
) -> Callable[[Tensor], Tensor]:
    if attack == "latent":
        code = vae.encode(target)[0]
        return lambda image: ((code - vae.encode(image)[0]) ** 2).sum()
    if attack == "loss":
        return lambda image: vae.negative_elbo(image, target).sum()
    assert classifier is not None

    def towards_target(image: Tensor) -> Tensor:
        codes = vae.encode(image)[0]
        logits = check_logits(classifier(codes), len(image), target, "classifier", "target")
        return cross_entropy(logits, target, reduction="sum")

    return towards_target
