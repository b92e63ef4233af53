"""Drawn scenes with their label maps, and drawn eyes with known gaze."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from minimax.errors import check_choice, check_count
from minimax.later import Later

v2 = Later("torchvision.transforms.v2")
SEEDS = {"train": 1, "test": 2}
CLASSES = ("sky", "grass", "wall", "roof", "window", "door", "tree")
PAINT = torch.tensor(
    [[0.80, 0.45, 0.35], [0.85, 0.75, 0.55], [0.60, 0.62, 0.70], [0.75, 0.55, 0.65]]
)  # of walls and roofs alike: only their texture tells them apart
STYLES = ("synthetic", "real")
WIDEST = (25.0, 18.0)  # degrees of gaze, sideways and up or down


def drawn_scenes(split: str, count: int = 1000, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return ``count`` pictures (N, 3, size, size) of houses, and label maps (N, size, size).

    The map fixes what is where. Colours of wall, roof and door, the phase of bricks and tiles, and
    the grain of grass and tree are drawn by lot: many pictures fit one map. Introduced in
    *Applications*.
    """
    count = check_count("count", count)
    size = check_count("size", size, at_least=16)
    generator = torch.Generator().manual_seed(SEEDS[split])

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    axis = (torch.arange(size) + 0.5) / size
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    horizon, left, width = uniform(0.55, 0.75), uniform(0.08, 0.3), uniform(0.4, 0.55)
    top, base = uniform(0.35, 0.48), uniform(0.78, 0.9)
    crown_x, crown_y, radius = uniform(0.8, 0.92), uniform(0.35, 0.55), uniform(0.1, 0.16)
    wall = (x > left) & (x < left + width) & (y > top) & (y < base)
    slope = (x - left - width / 2).abs() / (width / 2 + 0.06)
    roof = (y <= top) & (y > top - 0.28 * (1 - slope)) & (slope < 1)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    labels[(y > horizon).expand_as(labels)] = CLASSES.index("grass")
    crown = (x - crown_x).square() + (y - crown_y).square() < radius.square()
    trunk = ((x - crown_x).abs() < 0.03) & (y > crown_y) & (y < base)
    labels[crown | trunk] = CLASSES.index("tree")
    labels[wall], labels[roof] = CLASSES.index("wall"), CLASSES.index("roof")
    for share in (0.2, 0.8):
        middle = left + share * width
        window = ((x - middle).abs() < 0.07) & ((y - top - 0.14).abs() < 0.07)
        labels[window] = CLASSES.index("window")
    door = ((x - left - width / 2).abs() < 0.07) & (y > base - 0.2) & (y < base)
    labels[door] = CLASSES.index("door")
    return _painted(labels, generator), labels


def _painted(labels: Tensor, generator: torch.Generator) -> Tensor:
    count, size = len(labels), labels.shape[-1]

    def paint() -> Tensor:
        return PAINT[torch.randint(len(PAINT), (count,), generator=generator)][:, :, None, None]

    def grain(scale: int) -> Tensor:
        coarse = torch.randn(count, 1, size // scale, size // scale, generator=generator)
        return interpolate(coarse, (size, size))

    def phase(period: int) -> Tensor:
        return torch.randint(period, (count, 1, 1, 1), generator=generator)

    row, column = torch.arange(size).view(1, 1, -1, 1), torch.arange(size).view(1, 1, 1, -1)
    bricks = ((row + phase(4)) % 4 == 0).float()
    tiles = ((column + phase(3)) % 3 == 0).float()
    sky = torch.tensor([0.55, 0.75, 0.95]).view(1, 3, 1, 1) * (1.05 - 0.3 * row / size)
    green = torch.tensor([0.30, 0.60, 0.25]).view(1, 3, 1, 1)
    looks = {
        "sky": sky.expand(count, 3, size, size),
        "grass": green * (1 + 0.25 * grain(1)),
        "wall": paint() * (1 - 0.35 * bricks),
        "roof": paint() * (1 - 0.35 * tiles),
        "window": torch.tensor([0.15, 0.20, 0.35]).view(1, 3, 1, 1).expand(count, 3, size, size),
        "door": 0.6 * paint().expand(count, 3, size, size),
        "tree": green * (1 + 0.25 * grain(2)),
    }
    picture = torch.zeros(count, 3, size, size)
    for kind, look in looks.items():
        picture = torch.where((labels == CLASSES.index(kind))[:, None], look, picture)
    light = 0.9 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    return (light * picture).clamp(0, 1)


def drawn_eyes(
    split: str, count: int = 2000, style: str = "synthetic"
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return ``count`` grey eyes (N, 1, 24, 40) in one of two styles, and where they look.

    The extra "gaze" is (N, 2): degrees to the right and down. Synthetic eyes are flat and clean;
    "real" ones have dark, grainy skin, a lash line, a light that falls from one side, a glint and
    blur, and the gaze of another crowd. Raises ValueError for another style. Introduced in
    *Applications*.
    """
    count = check_count("count", count)
    real = check_choice("style", style, STYLES) == "real"
    generator = torch.Generator().manual_seed(SEEDS[split] + 10 * real)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    gaze = torch.rand(count, 2, generator=generator) * 2 - 1
    gaze = gaze * torch.tensor(WIDEST)
    y = torch.linspace(-1, 1, 24).view(1, -1, 1)
    x = torch.linspace(-1.67, 1.67, 40).view(1, 1, -1)
    x, y = x - uniform(-0.15, 0.15), y - uniform(-0.1, 0.1)
    opening = uniform(0.5, 0.7)
    lids = opening * (1 - (x / 1.35).square())
    inside = _soft(lids - y.abs())
    right, down = (torch.deg2rad(gaze[:, axis]).view(-1, 1, 1).sin() for axis in (0, 1))
    far = ((x - 1.6 * right).square() + (y - 1.6 * down).square()).sqrt()
    iris, pupil = _soft(0.42 - far), _soft(0.18 - far)
    skin, white, ring = (0.62, 0.95, 0.45) if not real else (0.42, 0.75, 0.30)
    ball = white + (ring - white) * iris + (0.05 - ring) * pupil
    eye = skin + (ball - skin) * inside
    if real:
        lashes = torch.exp(-((y + lids) / 0.1).square()) * (x.abs() < 1.35)
        eye = eye * (1 - 0.7 * lashes)
        glint_x, glint_y = 1.6 * right + 0.15, 1.6 * down - 0.15
        glint = _soft(0.1 - ((x - glint_x).square() + (y - glint_y).square()).sqrt())
        eye = eye + (1 - eye) * 0.8 * glint * inside
        eye = eye * (1 + uniform(-0.3, 0.3) * x / 1.67) * uniform(0.85, 1.15)
        eye = eye + 0.05 * torch.randn(eye.shape, generator=generator) * (1 - 0.5 * inside)
        eye = v2.functional.gaussian_blur(eye[:, None], [3, 3], [0.7, 0.7])[:, 0]
    return eye.clamp(0, 1)[:, None], torch.full((count,), int(real)), {"gaze": gaze}


def _soft(inside: Tensor) -> Tensor:
    """Return 1 where ``inside`` is positive and 0 where it is negative, with a soft edge."""
    return (inside / 0.08).sigmoid()
