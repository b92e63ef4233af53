"""The architectures that the chapters share. A classifier takes images in [0, 1].

Floor 1; called by the book, data, likelihood, attacks, collapse, dcgan, robust.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from minimax.errors import (
    check_count,
    refuse,
)
from minimax.evaluation import evaluating

LEAKY_RELU = partial(nn.LeakyReLU, 0.2)


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


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
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


class DCGANGenerator(nn.Module):
    """The generator of a DCGAN: codes (N, ``codes``) become images (N, channels, size, size).

    Radford et al. (2016), section 3, with kernels of 4×4: strided transposed convolutions from a
    map of 4×4 (7×7 for images of 28×28), doubling its side and halving its channels down to
    ``features``. The output's tanh is mapped to [0, 1] here. The keywords switch the paper's
    guidelines off: ``batch_norm``; ``strided`` (else nearest upsampling, then a convolution);
    ``hidden_layer`` inserts a fully connected one; ``activation``. Raises ValueError for a size
    that is not 4 to 7 times a power of two. Introduced in *DCGAN*.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        features: int = 32,
        codes: int = 100,
        *,
        batch_norm: bool = True,
        strided: bool = True,
        hidden_layer: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        side, stages = _stages(size)
        wide = [features * 2**stage for stage in reversed(range(stages))]

        def norm(width: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(width)] if batch_norm else []

        layers: list[nn.Module] = []
        if hidden_layer:
            layers += [nn.Linear(codes, 512), activation()]
        layers += [nn.Unflatten(1, (-1, 1, 1))]
        layers += [nn.ConvTranspose2d(512 if hidden_layer else codes, wide[0], side)]
        layers += [*norm(wide[0]), activation()]
        for inputs, outputs in pairwise([*wide, channels]):
            if strided:
                layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1)]
            layers += [*norm(outputs), activation()]
        self.layers = nn.Sequential(*layers[: -1 - len(norm(1))], nn.Tanh())
        self.codes = codes
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights as the paper does: N(0, 0.02²), gains N(1, 0.02²), biases 0."""
        _normal_weights(self)

    def forward(self, z: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return (self.layers(z) + 1) / 2


class DCGANDiscriminator(nn.Module):
    """The discriminator of a DCGAN: images (N, channels, size, size) in [0, 1] to logits (N,).

    The mirror image of ``DCGANGenerator``, with the same keywords: strided convolutions (else
    convolution and max pooling), batch normalisation on all but the first, LeakyReLU of slope 0.2.
    Introduced in *DCGAN*.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        features: int = 32,
        *,
        batch_norm: bool = True,
        strided: bool = True,
        hidden_layer: bool = False,
        activation: Callable[[], nn.Module] = LEAKY_RELU,
    ) -> None:
        super().__init__()
        side, stages = _stages(size)
        wide = [features * 2**stage for stage in range(stages)]
        self.stages = nn.ModuleList()
        for inputs, outputs in pairwise([channels, *wide]):
            if strided:
                layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)]
            else:
                layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2)]
            if batch_norm and len(self.stages) > 0:
                layers.append(nn.BatchNorm2d(outputs))
            self.stages.append(nn.Sequential(*layers, activation()))
        flat = wide[-1] * side**2
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(flat, 1))
        if hidden_layer:
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(flat, 512), activation(), nn.Linear(512, 1)
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights as the paper does: N(0, 0.02²), gains N(1, 0.02²), biases 0."""
        _normal_weights(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages, (N, width, height, width)."""
        x, maps = 2 * x - 1, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of "real", (N,)."""
        return self.head(self.maps(x)[-1])[:, 0]

    @torch.no_grad()
    def pooled_features(self, x: Tensor, batch_size: int = 500) -> Tensor:
        """Return the maps of all stages, max-pooled to 4×4 and flattened (N, d): section 5.1."""
        with evaluating(self):
            parts = [
                torch.cat([nn.functional.adaptive_max_pool2d(one, 4).flatten(1) for one in maps], 1)
                for maps in map(self.maps, x.split(batch_size))
            ]
        return torch.cat(parts)


def _stages(size: int) -> tuple[int, int]:
    """Return the side of the smallest map, and how often it is doubled to ``size``."""
    side, stages = check_count("size", size), 0
    while side % 2 == 0 and side >= 8:
        side, stages = side // 2, stages + 1
    if not 4 <= side <= 7 or stages == 0:
        refuse("size", size, "4 to 7 times a power of two, as are 16, 28, 32 and 64")
    return side, stages


def _normal_weights(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            nn.init.normal_(part.weight, 1.0, 0.02)
            nn.init.zeros_(part.bias)
        elif isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(part.weight, 0.0, 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class UNet(nn.Module):
    """An image from an image: (N, ``channels``, size, size) to (N, ``colours``, size, size).

    Isola et al. (2017), appendix 6.1: strided convolutions down to a side of size / 2^``depth`` and
    back, each map joined to the one of the same size on the way down (without ``skips``: not). The
    only noise is dropout in the inner half of the way up. The output is in [0, 1]. Introduced in
    *Applications*.
    """

    def __init__(
        self, channels: int, colours: int = 3, features: int = 32, depth: int = 3, *,
        skips: bool = True, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = [features * 2**level for level in range(check_count("depth", depth))]
        self.skips = skips
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise([channels, *wide]):
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)]
            if len(self.down) > 0:
                layers.append(nn.BatchNorm2d(outputs))
            self.down.append(nn.Sequential(*layers, LEAKY_RELU()))
        for inputs, outputs in pairwise([*reversed(wide), colours]):
            joined = inputs * (2 if skips and len(self.up) > 0 else 1)
            layers = [nn.ConvTranspose2d(joined, outputs, 4, stride=2, padding=1)]
            if len(self.up) < depth - 1:
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            if len(self.up) < depth // 2:
                layers.append(nn.Dropout(dropout))
            self.up.append(nn.Sequential(*layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02²), gains from N(1, 0.02²); biases are 0."""
        _normal_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image that belongs to ``x``."""
        on_the_way = []
        for stage in self.down:
            x = stage(x)
            on_the_way.append(x)
        for level, stage in enumerate(self.up):
            if self.skips and level > 0:
                x = torch.cat([x, on_the_way[-1 - level]], 1)
            x = stage(x)
        return x.sigmoid()


class PatchDiscriminator(nn.Module):
    """Logits of "real" for each patch of an image: (N, channels, size, size) to (N, patches).

    Isola et al. (2017), section 3.2.2: a convolutional network whose outputs each see a part only,
    with ``stages`` strided convolutions 10, 22 or 46 pixels wide for 1, 2 or 3. Introduced in
    *Applications*.
    """

    def __init__(self, channels: int, features: int = 32, stages: int = 2) -> None:
        super().__init__()
        wide = [features * 2**stage for stage in range(check_count("stages", stages))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *wide]):
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            if inputs != channels:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(LEAKY_RELU())
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide[-1], 1, 4, padding=1), nn.Flatten())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02²), gains from N(1, 0.02²); biases are 0."""
        _normal_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit for each patch."""
        return self.layers(x)


class Refiner(nn.Module):
    """A residual network that keeps an image's size: (N, channels, H, W) in [0, 1] to the same.

    Shrivastava et al. (2017), section 2.4: a convolution, ``blocks`` residual blocks of two each,
    and a 1×1 convolution; no pooling, so that nothing moves. It starts as nearly the identity: the
    output is a correction to the logit of the input. Introduced in *Applications*.
    """

    def __init__(self, channels: int = 1, features: int = 32, blocks: int = 2) -> None:
        super().__init__()

        def conv(inputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, features, 3, padding=1)

        self.first = conv(channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(features), nn.ReLU(), conv(features))
            for _ in range(check_count("blocks", blocks))
        )
        self.last = nn.Conv2d(features, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the layers' usual weights, those of the last one a hundred times smaller."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()
        with torch.no_grad():
            self.last.weight.mul_(0.01)
            self.last.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined images."""
        maps = self.first(x).relu()
        for block in self.blocks:
            maps = (maps + block(maps)).relu()
        return (torch.logit(x.clamp(0.01, 0.99)) + self.last(maps)).sigmoid()
