"""Drawn faces with known attributes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minimax.errors import check_count
from minimax.later import Later

v2 = Later("torchvision.transforms.v2")
SIDE = 96  # pixels in which a face is drawn
SEEDS = {"train": 1, "test": 2}
LOOKS = ("left", "straight", "right")
SKIN = ("#f3cfb3", "#dba98a", "#a9714b", "#6f4a34")
HAIR = ("#2b1d14", "#7a4a24", "#d9b25f", "#b4482a", "#8f8f94")
BACKGROUND = ("#86a9c9", "#b9c4a2", "#c9b3c4", "#d8d3c4")
Attributes = dict[str, Any]


def draw_face(attributes: Mapping[str, Any], size: int = 32) -> Tensor:
    """Return one face (3, size, size) in [0, 1].

    ``attributes`` are "glasses", "smile" and "long_hair" (booleans), "yaw" (radians, positive to
    the right of the picture), "skin", "hair", "background" (numbers of a colour), and "x", "y",
    "scale" (where the head is, in heads, and how large).
    """
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND[attributes["background"]])
    pen = ImageDraw.Draw(image)
    unit = attributes["scale"] * SIDE
    cx, cy = SIDE * (0.5 + attributes["x"]), SIDE * (0.54 + attributes["y"])
    skin, hair, yaw = SKIN[attributes["skin"]], HAIR[attributes["hair"]], attributes["yaw"]

    def ellipse(x: float, y: float, rx: float, ry: float, colour: str) -> None:
        x, y = cx + x * unit, cy + y * unit
        pen.ellipse((x - rx * unit, y - ry * unit, x + rx * unit, y + ry * unit), fill=colour)

    def on_head(angle: float) -> tuple[float, float]:
        """Return where a feature at this angle is seen, and how narrow it looks."""
        return 0.25 * math.sin(yaw + angle), max(0.25, math.cos(yaw + angle))

    if attributes["long_hair"]:
        ellipse(-0.03 * math.sin(yaw), 0.08, 0.35, 0.44, hair)
    ellipse(-0.03 * math.sin(yaw), -0.1, 0.31, 0.34, hair)
    ellipse(0, 0.04, 0.26, 0.34, skin)
    for angle in (-0.42, 0.42):
        x, narrow = on_head(angle)
        if attributes["glasses"]:
            ellipse(x, -0.03, 0.115 * narrow + 0.01, 0.1, "#111111")
        else:
            ellipse(x, -0.03, 0.065 * narrow, 0.05, "#ffffff")
            ellipse(x + 0.03 * math.sin(yaw), -0.03, 0.03, 0.045, "#1b2a3a")
    if attributes["glasses"]:
        left, right = on_head(-0.42)[0], on_head(0.42)[0]
        y = cy - 0.05 * unit
        pen.line((cx + left * unit, y, cx + right * unit, y), fill="#111111", width=4)
    nose, _ = on_head(0)
    ellipse(nose, 0.1, 0.03, 0.05, _darker(skin))
    x, narrow = on_head(0)
    x, y, half = cx + 0.9 * x * unit, cy + 0.2 * unit, 0.1 * narrow * unit
    if attributes["smile"]:
        box = (x - half, y - 0.09 * unit, x + half, y + 0.07 * unit)
        pen.chord(box, 10, 170, fill="#a02c2c")
    else:
        pen.line((x - half, y, x + half, y), fill="#a02c2c", width=4)
    image = image.resize((size, size), Image.Resampling.BOX if size < SIDE else None)
    return v2.functional.pil_to_tensor(image).float() / 255


def _darker(colour: str) -> str:
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.75 * part):02x}" for part in parts)


def drawn_faces(split: str, count: int = 4000, size: int = 32) -> tuple[Tensor, Tensor, Attributes]:
    """Return ``count`` faces, 1 where they wear glasses, and all their attributes."""
    count = check_count("count", count)
    size = check_count("size", size, at_least=16)
    generator = torch.Generator().manual_seed(SEEDS[split])
    columns = _people(count, generator)
    columns["yaw"] = 0.6 * columns["look"] + _uniform(count, generator, -0.12, 0.12)
    return _drawn(columns, size), columns["glasses"].long(), columns


def turning_faces(split: str, count: int = 1000, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Return films of ``count`` turning heads, (N, 3 frames, 3, size, size), and their yaw (N, 3).

    The labels are 1 for those that turn to the right. After the second frame a head may stop, go on
    as before or turn twice as fast, or anything between: the third frame can't be known.
    Introduced in *Applications*.
    """
    count = check_count("count", count)
    size = check_count("size", size, at_least=16)
    generator = torch.Generator().manual_seed(SEEDS[split] + 10)
    columns = _people(count, generator)
    right = torch.randint(2, (count,), generator=generator)
    step = (2 * right - 1) * _uniform(count, generator, 0.2, 0.35)
    first = _uniform(count, generator, -0.3, 0.3) - step
    last = first + step * (1 + _uniform(count, generator, 0.0, 2.0))
    yaw = torch.stack([first, first + step, last], 1)
    frames = [_drawn(columns | {"yaw": at}, size) for at in yaw.unbind(1)]
    return torch.stack(frames, 1), right, yaw


def _uniform(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _people(count: int, generator: torch.Generator) -> Attributes:
    def choice(number: int) -> Tensor:
        return torch.randint(number, (count,), generator=generator)

    return {
        "glasses": choice(2).bool(),
        "look": choice(3) - 1,
        "smile": choice(2).bool(),
        "long_hair": choice(2).bool(),
        "skin": choice(len(SKIN)),
        "hair": choice(len(HAIR)),
        "background": choice(len(BACKGROUND)),
        "x": _uniform(count, generator, -0.03, 0.03),
        "y": _uniform(count, generator, -0.03, 0.03),
        "scale": _uniform(count, generator, 0.92, 1.08),
    }


def _drawn(columns: Attributes, size: int) -> Tensor:
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return torch.stack([draw_face(dict(zip(columns, row, strict=True)), size) for row in rows])
