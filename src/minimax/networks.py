"""The architectures that the chapters share. A classifier takes images in [0, 1]."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from minimax.errors import Words, check_count, refuse


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` into evaluation mode; each of their parts gets its own mode back at the end.

    Introduced in *The minimax game*.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def reinitialise(network: nn.Module) -> None:
    """Draw new weights for ``network`` as its layers' own ``reset_parameters`` do.

    Parts come before the whole, so that a network with a rule of its own has the last word. Raises
    ValueError if there are weights that no such method draws. Introduced in *The minimax game*.
    """
    ruled = [name for name, m in network.named_modules() if hasattr(m, "reset_parameters")]
    for name, _ in network.named_parameters():
        if not any(rule == "" or name.startswith(rule + ".") for rule in ruled):
            allowed = "part of a module with a method reset_parameters, which draws it anew"
            refuse("the weight", Words(f"{name} of {type(network).__name__}"), allowed)
    for name in reversed(ruled):
        network.get_submodule(name).reset_parameters()  # type: ignore[operator]


class Normalise(nn.Module):
    """Subtract ``mean`` and divide by ``sd``, channel by channel, inside the network.

    So ε stays in pixels of [0, 1]. Introduced in *Adversarial examples*.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(sd).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images, of the shape (N, channels, height, width) of ``x``."""
        return (x - self.mean) / self.sd


class Maxout(nn.Module):
    """A layer whose units each take the largest of several linear pieces.

    Goodfellow et al. (2013), equation 2. Maps (N, inputs) to (N, outputs). Raises ValueError for
    counts below 1. Introduced in *Adversarial examples*.
    """

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        for name, count in (("inputs", inputs), ("outputs", outputs), ("pieces", pieces)):
            check_count(name, count)
        self.pieces = pieces
        self.linear = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """Return max over the pieces of each unit."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers of these ``sizes``, from input to output, an activation between them.

    ``mlp(1, 64, 1)`` maps (N, 1) to (N, 1) through 64 hidden units. Raises ValueError for fewer
    than two sizes, or one below 1. Introduced in *The minimax game*.
    """
    if len(sizes) < 2:
        refuse("sizes", sizes, "at least two: what comes in and what goes out")
    for size in sizes:
        check_count("sizes", size)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def softmax_regression(pixels: int, classes: int = 10) -> nn.Sequential:
    """Return a linear classifier of flattened images. Introduced in *Adversarial examples*."""
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def maxout_network(
    pixels: int, classes: int = 10, units: int = 240, pieces: int = 5
) -> nn.Sequential:
    """Return two maxout layers and a linear one: the network of Goodfellow et al. (2015) on MNIST.

    240 units of 5 pieces are the maxout paper's; dropout of 0.2 and 0.5 acts in training only.
    Introduced in *Adversarial examples*.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        Maxout(pixels, units, pieces),
        nn.Dropout(0.5),
        Maxout(units, units, pieces),
        nn.Dropout(0.5),
        nn.Linear(units, classes),
    )


def strided_network(classes: int = 10) -> nn.Sequential:
    """Return two strided convolutions and two linear layers, for 28×28 grey images.

    The network of Wong et al. (2020) on MNIST: small, so that attacks inside training are cheap.
    Introduced in *Defenses*.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


class VAE(nn.Module):
    """A variational autoencoder with Bernoulli pixels: one hidden layer on either side.

    Kingma and Welling (2014), appendix C. Images have shape (N, channels, height, width), codes
    (N, ``codes``). Introduced in *Adversarial examples*.
    """

    def __init__(self, shape: Sequence[int], codes: int = 16, hidden: int = 256) -> None:
        super().__init__()
        pixels = int(torch.tensor(shape).prod())
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, codes)
        self.log_variance = nn.Linear(hidden, codes)
        self.decoder = nn.Sequential(
            nn.Linear(codes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
            nn.Unflatten(1, tuple(shape)),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(z | x), each (N, codes)."""
        hidden = self.encoder(x)
        return self.mean(hidden), self.log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Return the logits of the pixels of p(x | z), of the shape of the images."""
        return self.decoder(z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean image decoded from the mean code: no sampling."""
        return self.decode(self.encode(x)[0]).sigmoid()

    def negative_elbo(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """Return −ELBO of each image (N,) in nats, with one sample of z.

        ``target`` are the pixels to be explained: those of ``x`` unless an attack wants others.
        """
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        pixels = nn.functional.binary_cross_entropy_with_logits(
            self.decode(z), x if target is None else target, reduction="none"
        )
        kl = (mean**2 + log_variance.exp() - 1 - log_variance) / 2
        return pixels.flatten(1).sum(1) + kl.sum(1)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Return ``model``'s class probabilities (N, classes) in evaluation mode.

    The model's mode comes back as it was. Introduced in *Adversarial examples*.
    """
    with evaluating(model):
        return torch.cat([model(part).softmax(1) for part in x.split(batch_size)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of ``x`` that ``model`` puts into class ``y``.

    Introduced in *Adversarial examples*.
    """
    return (predict(model, x).argmax(1) == y).float().mean().item()
