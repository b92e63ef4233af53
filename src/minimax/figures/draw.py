"""Pictures that several chapters draw: image grids, an image plus a perturbation, a timeline, data flow."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.utils import make_grid

from minimax.errors import check_count, refuse

YELLOW = "#f2b705"


def image_grid(
    images: Tensor,
    *,
    columns: int,
    below: Sequence[str] | None = None,
    left: Sequence[str] | None = None,
    top: Sequence[str] | None = None,
    outlined: Tensor | None = None,
    width: float = 6.0,
) -> Figure:
    """Return a figure with ``images`` (N, channels, H, W) in [0, 1], row by row.

    ``below`` is one text per image, ``left`` one per row, ``top`` one per column; ``outlined`` (N,)
    marks the images that get a yellow outline; ``width`` is in inches. Raises ValueError if
    ``images`` is no such batch. Introduced in *Adversarial examples*.
    """
    if images.dim() != 4 or len(images) == 0:
        refuse("images", tuple(images.shape), "of shape (N, channels, height, width), N at least 1")
    check_count("columns", columns)
    height, across = images.shape[2:]
    gap = max(2, across // (5 if below is None else 3))
    tiles = make_grid(images.detach().float(), nrow=columns, padding=gap, pad_value=float("nan"))
    grid = tiles.movedim(0, 2).clamp(0, 1).numpy()
    opacity = ~np.isnan(grid[..., :1])  # the gaps are transparent: they show the page
    grid = np.concatenate([np.nan_to_num(grid), opacity], axis=2)

    figure, axes = plt.subplots(figsize=(width, width * grid.shape[0] / grid.shape[1]))
    axes.imshow(grid)
    axes.axis("off")
    for index in range(len(images)):
        row, column = divmod(index, columns)
        x, y = gap + column * (across + gap), gap + row * (height + gap)
        if below is not None:
            axes.text(x + across / 2, y + height + 0.1 * gap, below[index], ha="center", va="top")
        if left is not None and column == 0:
            axes.text(x - 0.4 * gap, y + height / 2, left[row], ha="right", va="center")
        if top is not None and row == 0:
            axes.text(x + across / 2, y - 0.2 * gap, top[column], ha="center", va="bottom")
        if outlined is not None and outlined[index]:
            corner, size = (x - 1, y - 1), (across + 1, height + 1)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=YELLOW, linewidth=2.5))
    return figure


def perturbation(
    images: Sequence[Tensor], texts: Sequence[str], signs: Sequence[str], width: float = 7.0
) -> Figure:
    """Return the picture "image + ε · perturbation = image", as in the lecture.

    ``images`` are (channels, H, W) in [0, 1], ``texts`` stand below them, ``signs`` between them.
    Raises ValueError unless there is one sign fewer than images. Introduced in
    *Adversarial examples*.
    """
    if len(signs) != len(images) - 1 or len(texts) != len(images):
        refuse(
            "signs", list(signs), f"one fewer than the {len(images)} images, and a text for each"
        )
    share = [1.0]
    for _ in signs:
        share += [0.32, 1.0]
    size = (width, width / sum(share) + 0.55)
    figure, axes = plt.subplots(1, len(share), figsize=size, width_ratios=share)
    for image, text, place in zip(images, texts, axes[::2], strict=True):
        _picture(place, image)
        place.text(0.5, -0.04, text, ha="center", va="top", transform=place.transAxes)
    for sign, place in zip(signs, axes[1::2], strict=True):
        place.axis("off")
        place.text(0.5, 0.5, sign, ha="center", va="center", fontsize=13)
    return figure


def _picture(axes: Axes, image: Tensor) -> None:
    pixels = image.detach().movedim(0, 2).clamp(0, 1)
    axes.imshow(pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels)
    axes.axis("off")


def timeline(events: Sequence[tuple[int, str]], width: float = 7.0) -> Figure:
    """Return a line with one dot per event in order, the texts alternately above and below.

    ``events`` are pairs of a year and a short text. The dots stand at equal distances, whatever the
    years are, so that the texts have room. Introduced in *Adversarial examples*.
    """
    figure, axes = plt.subplots(figsize=(width, 2.9))
    axes.plot([-0.5, len(events) - 0.5], [0, 0], color=plt.rcParams["text.color"])
    for place, (year, text) in enumerate(events):
        side, edge = (1, "bottom") if place % 2 == 0 else (-1, "top")
        axes.plot([place, place], [0, 0.5 * side], color="C0")
        axes.plot(place, 0, "o", color="C0")
        axes.text(place, 0.6 * side, text, ha="center", va=edge, fontsize=9)
        axes.text(place, -0.2 * side, str(year), ha="center", va="center", fontsize=9)
    axes.set(ylim=(-1.7, 1.7), xlim=(-0.9, len(events) - 0.1))
    axes.axis("off")
    return figure


def flow(
    places: Mapping[str, tuple[float, float]],
    forward: Sequence[str],
    backward: Sequence[str],
    *,
    moving: str,
    colour: str,
    width: float = 6.0,
) -> Figure:
    """Return a drawing of boxes with arrows: what is computed, and which way the gradient goes.

    ``places`` maps each box's text to its position (x to the right, y upwards, in boxes); an arrow
    is written "a→b". Those of ``backward`` are dashed, in ``colour``, as is the box ``moving``.
    Raises ValueError if an arrow begins or ends at no box. Introduced in *The minimax game*.
    """
    figure, axes = plt.subplots(figsize=(width, 2.4))
    for name, place in places.items():
        own = colour if name == moving else "k"
        style = {"boxstyle": "round,pad=0.45", "facecolor": "none", "edgecolor": own}
        axes.text(*place, name, ha="center", va="center", color=own,
                  bbox=style | {"linewidth": 3 if name == moving else 1})  # fmt: skip
    for arrows, own, line, bend in ((forward, "k", "-", 0.0), (backward, colour, "--", 0.35)):
        for arrow in arrows:
            ends = arrow.split("→")
            if len(ends) != 2 or not set(ends) <= set(places):
                refuse("an arrow", arrow, f"'a→b' between two of {', '.join(places)}")
            (x0, y0), (x1, y1) = places[ends[0]], places[ends[1]]
            length = math.hypot(x1 - x0, y1 - y0)
            dx, dy = 0.28 * (x1 - x0) / length, 0.28 * (y1 - y0) / length
            axes.annotate(
                "", (x1 - dx, y1 - dy), (x0 + dx, y0 + dy),
                arrowprops={"arrowstyle": "-|>", "color": own, "linestyle": line, "linewidth": 1.5,
                            "connectionstyle": f"arc3,rad={bend}"},
            )  # fmt: skip
    xs, ys = zip(*places.values(), strict=True)
    axes.set(xlim=(min(xs) - 0.5, max(xs) + 0.5), ylim=(min(ys) - 0.6, max(ys) + 0.5))
    axes.axis("off")
    return figure
