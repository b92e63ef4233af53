"""Gaussian mixtures with known modes: one-dimensional, ring, grid, and in many dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minimax.errors import check_count, check_number, refuse

Mixture = tuple[Tensor, Tensor, dict[str, Tensor]]  # points, their modes, the mixture itself
SEEDS = {"train": 1, "test": 2}


def ring(
    split: str, count: int = 100_000, modes: int = 8, radius: float = 1.0, sd: float = 0.01
) -> Mixture:
    """Return a ring of ``modes`` Gaussians, all of them distinct (the angle 2π is left out).

    PacGAN's setting (Lin et al. 2018): 8 modes, radius 1, standard deviation 0.01 per axis.
    """
    modes = check_count("modes", modes)
    radius = check_number("radius", radius)
    angle = 2 * torch.pi * torch.arange(modes) / modes
    return sample(split, count, radius * torch.stack([angle.cos(), angle.sin()], 1), sd)


def grid(split: str, count: int = 100_000, sd: float = 0.05) -> Mixture:
    """Return 25 Gaussians with means {−4, −2, 0, 2, 4}², standard deviation 0.05 per axis."""
    axis = torch.arange(-4.0, 5.0, 2.0)
    return sample(split, count, torch.cartesian_prod(axis, axis), sd)


def high_dimensional(split: str, count: int = 10_000, axes: int = 1200) -> Mixture:
    """Return ten 700-dimensional Gaussians embedded in 1,200 dimensions, or a smaller likeness.

    PacGAN's code for VEEGAN's data: x = (N(0, 1)⁷⁰⁰, 0⁵⁰⁰) + c·1. Beware of the metric that comes
    with it: a real point lies about 26.4 standard deviations from its mean, so none is "within 10".
    Of any number of ``axes``, seven in twelve have noise.
    """
    centres = torch.tensor([-1, -0.5, 0, 0.5, -2, -2.5, 10, 0.25, -13, -5.5])
    axes = check_count("axes", axes, at_least=12)
    noise = (torch.arange(axes) < 7 * axes // 12).float()
    return sample(split, count, centres[:, None].expand(-1, axes), noise)


def one_dimensional(
    split: str,
    count: int = 10_000,
    means: Sequence[float] = (-2.0, 2.0),
    sds: Sequence[float] = (0.5, 0.5),
    weights: Sequence[float] = (0.5, 0.5),
) -> Mixture:
    """Return a mixture of Gaussians on the line, of shape (count, 1)."""
    if not len(means) == len(sds) == len(weights) or not means:
        lengths = (len(means), len(sds), len(weights))
        refuse("(means, sds, weights)", lengths, "of one length, at least 1")
    if not all(math.isfinite(mean) for mean in means):
        refuse("means", means, "finite")
    for name, values in (("sds", sds), ("weights", weights)):
        for value in values:
            check_number(name, value)
    if sum(weights) <= 0:
        refuse("weights", weights, "positive for at least one mode")
    return sample(
        split,
        count,
        torch.tensor(means)[:, None],
        torch.tensor(sds)[:, None],
        torch.tensor(weights),
    )


def sample(
    split: str, count: int, centres: Tensor, sd: float | Tensor, weights: Tensor | None = None
) -> Mixture:
    """Return points (count, d), their modes (count,), and the mixture itself.

    ``sd`` is one number, one vector (d,) or one row per mode; ``weights`` are uniform by default.
    """
    count = check_count("count", count)
    if not isinstance(sd, Tensor):
        check_number("sd", sd)
    generator = torch.Generator().manual_seed(SEEDS[split])
    centres = centres.float().contiguous()
    scale = torch.as_tensor(sd, dtype=torch.float32).expand_as(centres)
    weights = torch.ones(len(centres)) if weights is None else weights.float()
    y = torch.multinomial(weights, count, replacement=True, generator=generator)
    x = centres[y] + scale[y] * torch.randn(count, centres.shape[1], generator=generator)
    return x, y, {"centres": centres, "sd": scale.contiguous(), "weights": weights / weights.sum()}
