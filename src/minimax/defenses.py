"""What a classifier minimises that expects an adversary, and what it can prove afterwards.

Images are float tensors in [0, 1]; ε is in the same pixel units. The players are ready for
``play``, with copies or without. Introduced in the chapters *Defenses* and *Evaluating defenses*.

Floor 3; called by the book, robust.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from minimax.errors import (
    Words,
    all_copies,
    check_batch_size,
    check_classes_of_loss,
    check_count,
    check_labels,
    check_model,
    check_number,
    check_pixels,
    logits_of,
    refuse,
)
from minimax.evaluation import evaluating, statistics_held
from minimax.game import Options, Player
from minimax.later import Later
from minimax.scale import device_of

stats = Later("scipy.stats")


def _positive(argument: str, value: float) -> float:
    if (number := check_number(argument, value)) == 0:
        refuse(argument, value, "above 0")
    return number


def _answers(network: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the logits of ``network``; of one class alone, nothing could ever be wrong.

    Labels ``y`` that are none of its classes are refused, on a CPU: on a GPU nothing may wait.
    """
    logits = network(x)
    if logits.dim() != 2 or logits.shape[1] < 2:
        got = Words(f"giving shape {tuple(logits.shape)}")
        refuse("network", got, f"giving ({len(x)}, classes), of two classes or more")
    if y is not None:
        check_classes_of_loss(y, logits.shape[1])
    return logits


def worst_case(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    epsilon: float,
    *,
    steps: int = 1,
    step_size: float | None = None,
    random_start: bool = False,
    clip_start: bool = False,
) -> Tensor:
    """Return images near ``x`` at which ``loss`` is high: steps along the sign of its gradient.

    The inner maximum of Madry et al. (2018), equation 2.1, for use inside a player's loss: unlike
    ``attacks.pgd`` it runs under ``torch.func.vmap`` and checks nothing: where a gradient is NaN,
    so is the image. ``loss`` maps images of
    the shape of ``x`` to a scalar that sums over them. The result lies within |δ| ≤ ``epsilon`` and
    in [0, 1]; no gradient passes through it. ``step_size`` is in pixels (default 2.5·ε/steps, for
    one step ε). A ``random_start`` is drawn from the ball and may lie outside [0, 1] until the
    first step is taken, as in the code of Wong et al. (2020); with ``clip_start`` it is clipped
    before, as in that of Madry et al. Batch normalisations in training go by the batch, and their
    running statistics don't count what is only tried. Introduced in *Defenses*.
    """
    size = (epsilon if steps == 1 else 2.5 * epsilon / steps) if step_size is None else step_size
    # No gradient of the steps; that of the loss inside is torch.func's own.
    with torch.no_grad(), statistics_held():
        moved = x + epsilon * (2 * torch.rand_like(x) - 1) if random_start else x
        moved = moved.clamp(0, 1) if clip_start else moved
        for _ in range(steps):
            slope = torch.func.grad(loss)(moved)
            up = torch.where(slope.isnan(), slope, slope.sign())  # the sign of NaN would be 0
            moved = moved + size * up
            moved = (x + (moved - x).clamp(-epsilon, epsilon)).clamp(0, 1)
    return moved


def adversarial_training(
    network: nn.Module,
    epsilon: float,
    *,
    steps: int = 1,
    step_size: float | None = None,
    random_start: bool = False,
    clip_start: bool = False,
    mix: float = 1.0,
    **options: Unpack[Options],
) -> Player:
    """Return the player that minimises the loss at the worst images within ``epsilon``.

    min over θ of E[mix · max over |δ| ≤ ε of ℓ(x + δ, y) + (1 − mix) · ℓ(x, y)], the maximum found
    by ``worst_case``. One step without a random start and ``mix=0.5`` is Goodfellow et al. (2015),
    section 6; forty steps of 0.01 from a random start with ``clip_start`` are Madry et al. (2018)
    on MNIST; one step of 1.25·ε from a random start without it is Wong et al. (2020). A batch is
    (x, y); ``options`` go to ``Player``. Raises ValueError for arguments out of range, and the loss
    for images outside [0, 1], labels that are none, and a network that does not tell classes apart.
    Introduced in *Defenses*.
    """
    epsilon, mix = check_number("epsilon", epsilon), check_number("mix", mix)
    if mix > 1:
        refuse("mix", mix, "between 0 and 1")
    for name, value in (("random_start", random_start), ("clip_start", clip_start)):
        if value not in (True, False):
            refuse(name, value, "True or False")
    kwargs: dict[str, Any] = {
        "steps": check_count("steps", steps),
        "step_size": None if step_size is None else check_number("step_size", step_size),
        "random_start": random_start,
        "clip_start": clip_start,
    }

    def adversarial_loss(x: Tensor, y: Tensor) -> Tensor:
        y = check_labels("y", y, len(x))
        if x.device.type == "cpu":  # on a GPU, nothing may wait for what the numbers are
            check_pixels("x", all_copies(x))

        def total(images: Tensor) -> Tensor:
            return cross_entropy(_answers(network, images, y), y, reduction="sum")

        loss = mix * cross_entropy(network(worst_case(total, x, epsilon, **kwargs)), y)
        return loss if mix == 1 else loss + (1 - mix) * cross_entropy(network(x), y)

    return Player(network, adversarial_loss, **options)


def virtual_adversarial_loss(
    network: nn.Module,
    x: Tensor,
    epsilon: float,
    *,
    steps: int = 1,
    xi: float = 1e-2,
) -> Tensor:
    """Return how much the network's answer changes where it changes most: a mean over ``x``.

    Miyato et al. (2018), equations 5 to 10: KL(p(·|x) ‖ p(·|x + r)) in nats, with ‖r‖₂ =
    ``epsilon`` in the direction that ``steps`` of the power method find, probing at distance
    ``xi``. No label is needed. ``x`` is (N, …). As in the paper's code, batch normalisations in
    training go by the batch and leave their running statistics. Raises ValueError for arguments out
    of range, and for a network that does not tell classes apart. Introduced in *Defenses*.
    """
    epsilon, xi = check_number("epsilon", epsilon), _positive("xi", xi)
    steps = check_count("steps", steps)

    def unit(direction: Tensor) -> Tensor:
        length = direction.flatten(1).norm(dim=1).clamp(min=1e-12)
        return direction / length.view(-1, *[1] * (x.dim() - 1))

    def change(r: Tensor) -> Tensor:
        return (before.exp() * (before - network(x + r).log_softmax(1))).sum()

    with statistics_held():
        before = _answers(network, x).detach().log_softmax(1)
        with torch.no_grad():
            direction = unit(torch.randn_like(x))
            for _ in range(steps):
                direction = unit(torch.func.grad(change)(xi * direction))
        return change(epsilon * direction) / len(x)


def virtual_adversarial_training(
    network: nn.Module,
    epsilon: float,
    *,
    weight: float = 1.0,
    steps: int = 1,
    xi: float = 1e-2,
    **options: Unpack[Options],
) -> Player:
    """Return the player that fits the labels and answers alike near every image, labelled or not.

    Miyato et al. (2018), equation 8, ``weight`` being its α. A batch is (x, y, unlabelled images);
    ``epsilon`` is an L2 radius in pixels; ``options`` go to ``Player``. Raises ValueError for
    arguments out of range, and the loss for labels that are none, images of two shapes, and a
    network that does not tell classes apart. Introduced in *Defenses*.
    """
    epsilon, weight = check_number("epsilon", epsilon), check_number("weight", weight)
    steps, xi = check_count("steps", steps), _positive("xi", xi)

    def virtual_adversarial(x: Tensor, y: Tensor, unlabelled: Tensor) -> Tensor:
        y = check_labels("y", y, len(x))
        if unlabelled.shape[1:] != x.shape[1:]:
            got = Words(f"of shape {tuple(unlabelled.shape)}")
            refuse("unlabelled", got, f"of shape (N, …) like x, {tuple(x.shape)}")
        everything = torch.cat([x, unlabelled])
        smoothness = virtual_adversarial_loss(network, everything, epsilon, steps=steps, xi=xi)
        return cross_entropy(_answers(network, x, y), y) + weight * smoothness

    return Player(network, virtual_adversarial, **options)


class Bounds(NamedTuple):
    """The ``lower`` and ``upper`` bounds of the logits, each (N, classes).

    Introduced in *Evaluating defenses*.
    """

    lower: Tensor
    upper: Tensor

    def worst(self, y: Tensor) -> Tensor:
        """Return the least favourable logits (N, classes): the lower one of class ``y`` (N,)."""
        own = one_hot(y, self.lower.shape[1]).bool()
        return torch.where(own, self.lower, self.upper)


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers in the order in which images pass them."""
    if isinstance(network, nn.Sequential):
        for part in network:
            yield from _layers(part)
    else:
        yield network


def interval_bounds(network: nn.Module, x: Tensor, epsilon: float) -> Bounds:
    """Return bounds of the logits over all images in [0, 1] with |δ| ≤ ``epsilon``, layer by layer.

    Gowal et al. (2018), section 3.1, without their merging of the last layer with the difference of
    two logits: through a layer W the centre of an interval goes as an image does, its radius
    through |W|; what is monotone maps the ends. ``network`` has linear and convolutional layers,
    ReLU and Flatten; a gradient passes through, so a player can minimise a loss of the bounds.
    Where ``argmax`` of ``worst(y)`` is ``y``, no image of the ball (N, …) around ``x`` is misread.
    Raises ValueError for arguments out of range and for other layers. Introduced in *Evaluating
    defenses*.
    """
    check_model(network, "network")
    if x.device.type == "cpu":  # a GPU would wait, in a player's loss
        check_pixels("x", all_copies(x))
    epsilon = check_number("epsilon", epsilon)
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    for layer in _layers(network):
        if isinstance(layer, (nn.ReLU, nn.Flatten)):
            low, high = layer(low), layer(high)
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            weights = {"weight": layer.weight.abs()}
            if layer.bias is not None:
                weights["bias"] = torch.zeros_like(layer.bias)
            centre = layer((low + high) / 2)
            radius = torch.func.functional_call(layer, weights, ((high - low) / 2,))
            low, high = centre - radius, centre + radius
        else:
            got = Words(f"with a layer of type {type(layer).__name__}")
            refuse("network", got, "of linear and convolutional layers, ReLU and Flatten")
    return Bounds(low, high)


class Certified(NamedTuple):
    """``labels`` (N,), −1 where the smoothed classifier abstains, and L2 ``radii`` (N,) in pixels.

    Introduced in *Evaluating defenses*.
    """

    labels: Tensor
    radii: Tensor


@torch.no_grad()
def certify(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    *,
    first: int = 100,
    samples: int = 10_000,
    alpha: float = 0.001,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Certified:
    """Return the answer of the smoothed classifier and a radius in which it can't change.

    Cohen, Rosenfeld and Kolter (2019), CERTIFY: the smoothed classifier says what ``model`` says
    most often under Gaussian noise of ``sigma`` pixels. ``first`` draws guess the class,
    ``samples`` more bound its probability p from below (Clopper and Pearson, one-sided); the radius
    is ``sigma``·Φ⁻¹(p), wrong with probability at most ``alpha`` for each image (N, …) of ``x``. It
    abstains where p ≤ ½. Raises ValueError for arguments out of range, and for a model that does
    not return finite logits. Introduced in *Evaluating defenses*.
    """
    check_model(model)
    check_pixels("x", x)
    sigma, alpha = _positive("sigma", sigma), _positive("alpha", alpha)
    if alpha >= 1:
        refuse("alpha", alpha, "between 0 and 1")
    first, samples = check_count("first", first), check_count("samples", samples)
    batch_size, drawn_on = check_batch_size(batch_size, x), device_of(generator, x)

    def votes(image: Tensor, count: int) -> Tensor:
        """Return how often each class is the answer (classes,)."""
        said = []
        for part in torch.arange(count).split(batch_size):
            shape = (len(part), *image.shape)
            noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=drawn_on)
            logits = logits_of(model, image + sigma * noise.to(x.device))
            said.append(one_hot(logits.argmax(1), logits.shape[1]).sum(0))
        return torch.stack(said).sum(0)

    labels, radii = [], []
    with evaluating(model):
        for image in x:
            guess = int(votes(image, first).argmax())
            hits = int(votes(image, samples)[guess])
            p = float(stats.beta.ppf(alpha, hits, samples - hits + 1)) if hits else 0.0
            labels.append(guess if p > 0.5 else -1)
            radii.append(sigma * float(stats.norm.ppf(p)) if p > 0.5 else 0.0)
    return Certified(*(torch.tensor(found, device=x.device) for found in (labels, radii)))
