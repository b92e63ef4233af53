"""Pictures that several chapters draw: image grids, perturbations, data flow."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from minimax.errors import Words, check_count, check_pixels, described, refuse

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
    ``images`` is no such batch, or if there are too few texts or marks. Introduced in
    *Adversarial examples*.
    """
    _check_shown("images", images, 4, "of shape (N, 1 or 3, height, width), N at least 1")
    count, _, height, across = images.shape
    columns = min(check_count("columns", columns), count)
    for name, given, number, each in (
        ("below", below, count, "image"),
        ("left", left, -(-count // columns), "row"),
        ("top", top, columns, "column"),
        ("outlined", outlined, count, "image"),
    ):
        if given is not None and len(given) < number:
            refuse(name, Words(f"of length {len(given)}"), f"of length {number}, one per {each}")
    gap = max(2, across // (5 if below is None else 3))
    places = [
        (gap + index % columns * (across + gap), gap + index // columns * (height + gap))
        for index in range(count)
    ]
    right, bottom = max(x for x, _ in places) + across, places[-1][1] + height
    shown = images.detach().cpu().float()
    grid = shown.new_zeros(bottom + gap, right + gap, 4)  # its gaps are transparent
    for image, (x, y) in zip(shown, places, strict=True):
        tile = grid[y : y + height, x : x + across]
        tile[..., :3], tile[..., 3] = image.movedim(0, 2).clamp(0, 1), 1.0

    figure, axes = plt.subplots(figsize=(width, width * grid.shape[0] / grid.shape[1]))
    axes.imshow(grid.numpy())
    axes.axis("off")
    for index, (x, y) in enumerate(places):
        row, column = divmod(index, columns)
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
    Raises ValueError for what is no such image, and unless there is one sign fewer than images.
    Introduced in *Adversarial examples*.
    """
    if len(signs) != len(images) - 1 or len(texts) != len(images):
        refuse(
            "signs", list(signs), f"one fewer than the {len(images)} images, and a text for each"
        )
    for index, image in enumerate(images):
        _check_shown(f"images[{index}]", image, 3, "of shape (1 or 3, height, width)")
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


def _check_shown(argument: str, images: Tensor, axes: int, allowed: str) -> None:
    """Refuse ``images`` unless they are floats in [0, 1], but for rounding, of 1 or 3 channels."""
    if (
        not isinstance(images, Tensor)
        or not images.is_floating_point()
        or images.dim() != axes
        or images.shape[axes - 3] not in (1, 3)
        or images.numel() == 0
    ):
        refuse(argument, described(images), f"a float tensor {allowed}")
    check_pixels(argument, (images.detach().float() * 1e4).round() / 1e4)


def _picture(axes: Axes, image: Tensor) -> None:
    pixels = image.detach().cpu().movedim(0, 2).clamp(0, 1)
    axes.imshow(pixels.expand(-1, -1, 3 if pixels.shape[2] == 1 else -1).numpy())
    axes.axis("off")


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
    figure, axes = plt.subplots(figsize=(width, 2.6))
    for name, place in places.items():
        moves = name == moving
        own, line = (colour, 3) if moves else ("k", 1)
        box = {
            "boxstyle": "round,pad=0.5",
            "facecolor": "none",
            "edgecolor": own,
            "linewidth": line,
        }
        axes.text(*place, name, ha="center", va="center", color=own, fontsize=13, bbox=box)
    for arrows, own, dashes, bend in ((forward, "k", "-", 0.0), (backward, colour, "--", 0.5)):
        for arrow in arrows:
            ends = arrow.split("→")
            if len(ends) != 2 or not set(ends) <= set(places):
                refuse("an arrow", arrow, f"'a→b' between two of {', '.join(places)}")
            look = {"color": own, "linestyle": dashes, "linewidth": 1.6, "arrowstyle": "-|>"}
            look |= {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 20, "shrinkB": 20}
            axes.annotate("", xy=places[ends[1]], xytext=places[ends[0]], arrowprops=look)
    xs, ys = zip(*places.values(), strict=True)
    axes.set(xlim=(min(xs) - 0.5, max(xs) + 0.5), ylim=(min(ys) - 0.6, max(ys) + 0.5))
    axes.axis("off")
    return figure
