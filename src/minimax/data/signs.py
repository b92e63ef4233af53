"""Drawn road signs, and a camera that is differentiable in what it sees."""

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from minimax.errors import check_count, refuse
from minimax.later import Later

v2 = Later("torchvision.transforms.v2")
CLASSES = ("stop", "give way", "no entry", "priority", "30", "50", "turn right", "ahead only")
RED, BLUE, YELLOW, WHITE, BLACK = "#c1121f", "#1d4e89", "#f2b705", "#f4f4f4", "#1b1b1b"
SIDE = 192  # pixels in which the fronts are drawn
SEEDS = {"train": 1, "test": 2}


def fronts(size: int = 96) -> Tensor:
    """Return the signs seen from the front, (8, 4, size, size) in [0, 1], the last channel opacity.

    Introduced in *Black-box and physical attacks*.
    """
    size = check_count("size", size, at_least=8)
    drawn = torch.stack([v2.functional.pil_to_tensor(_draw(name)) for name in CLASSES])
    small = interpolate(drawn.float() / 255, (size, size), mode="bilinear", antialias=True)
    return small.clamp(0, 1).to(torch.get_default_device())


def _draw(name: str) -> Image.Image:
    image = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    centre, radius = SIDE / 2, 0.48 * SIDE

    def polygon(corners: int, share: float, turn: float, colour: str) -> None:
        pen.regular_polygon((centre, centre, share * radius), corners, turn, fill=colour)

    def disc(share: float, colour: str) -> None:
        r = share * radius
        pen.ellipse((centre - r, centre - r, centre + r, centre + r), fill=colour)

    def text(words: str, height: float, colour: str) -> None:
        font = ImageFont.load_default(height * SIDE)
        pen.text((centre, centre), words, fill=colour, font=font, anchor="mm", stroke_width=2,
                 stroke_fill=colour)  # fmt: skip

    def bar(x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        pen.rectangle((x0 * SIDE, y0 * SIDE, x1 * SIDE, y1 * SIDE), fill=colour)

    if name == "stop":
        polygon(8, 1.0, 22.5, WHITE)
        polygon(8, 0.94, 22.5, RED)
        text("STOP", 0.26, WHITE)
    elif name == "give way":
        polygon(3, 1.0, 180, RED)
        polygon(3, 0.6, 180, WHITE)
    elif name == "no entry":
        disc(1.0, RED)
        bar(0.2, 0.42, 0.8, 0.58, WHITE)
    elif name == "priority":
        polygon(4, 1.0, 45, WHITE)
        polygon(4, 0.8, 45, YELLOW)
    elif name in ("30", "50"):
        disc(1.0, RED)
        disc(0.76, WHITE)
        text(name, 0.36, BLACK)
    else:
        disc(1.0, BLUE)
        if name == "turn right":
            bar(0.3, 0.42, 0.58, 0.56, WHITE)
            bar(0.3, 0.42, 0.42, 0.74, WHITE)
            tip = [(0.58, 0.3), (0.8, 0.49), (0.58, 0.68)]
        else:
            bar(0.43, 0.42, 0.57, 0.8, WHITE)
            tip = [(0.29, 0.45), (0.5, 0.18), (0.71, 0.45)]
        pen.polygon([(x * SIDE, y * SIDE) for x, y in tip], fill=WHITE)
    return image


def photograph(signs: Tensor, generator: torch.Generator, size: int = 48) -> Tensor:
    """Return a photograph (N, 3, size, size) of each of ``signs`` (N, 4, H, W), as seen at random.

    Distance (the sign fills 55 to 95 % of the picture), angle (up to 15° about the line of sight,
    seen from the side up to 50°), shift, a background of one or two colours, light (0.55 to 1.15),
    haze and the noise of the sensor are drawn from ``generator``. Differentiable in ``signs``.
    Raises ValueError if they have no opacity. Introduced in *Black-box and physical attacks*.
    """
    if signs.dim() != 4 or signs.shape[1] != 4:
        refuse("signs", tuple(signs.shape), "of shape (N, 4, height, width): colours and opacity")
    n = len(signs)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(n, *shape, generator=generator, device=generator.device)
        return low + (high - low) * drawn.to(signs.device)

    scale, turn = uniform(0.55, 0.95), uniform(-math.pi / 12, math.pi / 12)
    side = uniform(0, math.radians(50)).cos()  # what is seen from the side looks narrower
    x, y = uniform(-1, 1) * (1 - scale), uniform(-1, 1) * (1 - scale)
    rows = [
        torch.stack([turn.cos() / side, turn.sin() / side, -x], 1) / scale[:, None],
        torch.stack([-turn.sin(), turn.cos(), -y], 1) / scale[:, None],
    ]
    grid = affine_grid(torch.stack(rows, 1), [n, 4, size, size], align_corners=False)
    seen = grid_sample(signs, grid, align_corners=False)
    ends = uniform(0.1, 0.9, 2, 3, 1, 1)
    down = torch.linspace(0, 1, size, device=signs.device).view(1, 1, size, 1)
    background = (ends[:, 0] * (1 - down) + ends[:, 1] * down).expand(-1, -1, -1, size)
    colours, opacity = seen[:, :3], seen[:, 3:]
    picture = colours * opacity + background * (1 - opacity)
    light, haze = uniform(0.55, 1.15, 1, 1, 1), uniform(0, 0.15, 1, 1, 1)
    noise = torch.randn(picture.shape, generator=generator, device=generator.device)
    return (picture * light * (1 - haze) + haze + 0.02 * noise.to(picture)).clamp(0, 1)


def photographed_signs(split: str, count: int = 2000, size: int = 48) -> tuple[Tensor, Tensor]:
    """Return ``count`` photographs of drawn signs and their classes, as many of each."""
    count = check_count("count", count)
    generator = torch.Generator().manual_seed(SEEDS[split])
    y = torch.arange(count) % len(CLASSES)
    signs = fronts()
    parts = [photograph(signs[some], generator, size) for some in y.split(500)]
    return torch.cat(parts), y
