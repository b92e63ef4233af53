"""Attacks that survive a printer, a camera and a street.

Images are float tensors in [0, 1]. Introduced in the chapter *Black-box and physical attacks*.
"""

import io
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from PIL import Image
from torch import Tensor, nn

from minimax.attacks.gradient import pgd
from minimax.errors import Words, check_count, check_number, check_pixels, refuse
from minimax.later import Later

v2 = Later("torchvision.transforms.v2")

# What a cheap printer can mix: black, white, grey, and three saturations of six hues.
PRINTABLE = torch.tensor(
    [[0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [0.95, 0.95, 0.95]]
    + [
        [0.5 + strength * (channel - 0.5) for channel in hue]
        for strength in (0.3, 0.55, 0.8)
        for hue in ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
    ]
)


class PrintAndPhotograph(nn.Module):
    """What happens to pictures (N, 1 or 3, H, W) that are printed and photographed, drawn anew.

    Perspective (corners move by up to ``perspective`` of half the side), blur (standard deviation
    up to ``blur`` pixels), exposure and contrast (factors 1 ± ``exposure``), noise of the sensor
    (standard deviation ``noise``, in [0, 1]), and JPEG of a ``quality`` from a range. All images of
    a batch go through the same camera. Differentiable; through the rounding of JPEG the gradient
    passes as if it were not there. A stand-in for the printer and telephone of Kurakin et al.
    (2017), section 3. Raises ValueError for settings out of range, and for pictures of another
    shape, of fewer than 3 × 3 pixels, or outside [0, 1]. Introduced in *Black-box and physical
    attacks*.
    """

    def __init__(
        self, *, perspective: float = 0.1, blur: float = 1.0, exposure: float = 0.2,
        noise: float = 0.02, quality: tuple[int, int] = (60, 95),
    ) -> None:  # fmt: skip
        super().__init__()
        perspective, blur = check_number("perspective", perspective), check_number("blur", blur)
        self.exposure, self.noise = check_number("exposure", exposure), check_number("noise", noise)
        ends = quality if isinstance(quality, Sequence) else ()
        whole = len(ends) == 2 and all(isinstance(end, Integral) for end in ends)
        if not whole or not 1 <= ends[0] <= ends[1] <= 100:
            refuse("quality", quality, "two whole numbers from 1 to 100, the lower one first")
        self.quality = quality
        turned = v2.RandomPerspective(
            min(perspective, 1.0), p=1.0, fill=None
        )  # a fill works in place: no gradient
        self.optics = v2.Compose([turned, v2.GaussianBlur(5, (0.1, max(blur, 0.1)))])

    def forward(self, x: Tensor) -> Tensor:
        """Return the photographs, of the shape of ``x``."""
        fits = x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 3
        if not fits:  # a JPEG has one or three channels, and the blur looks two pixels beyond
            got = Words(f"of shape {tuple(x.shape)}")
            refuse("x", got, "of shape (N, 1 or 3, H, W), H and W at least 3")
        check_pixels("x", x)
        seen = self.optics(x)
        brighter, contrast = 1 + self.exposure * (2 * torch.rand(2, device=x.device) - 1)
        grey = seen.mean((1, 2, 3), keepdim=True)
        seen = brighter * (grey + contrast * (seen - grey))
        seen = (seen + self.noise * torch.randn_like(seen)).clamp(0, 1)
        quality = int(torch.randint(self.quality[0], self.quality[1] + 1, ()))
        stored = torch.stack([_as_jpeg(image, quality) for image in seen.detach()]).to(x)
        return seen + (stored - seen).detach()


def _as_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    v2.functional.to_pil_image(image.cpu()).save(file, "JPEG", quality=quality)
    return v2.functional.pil_to_tensor(Image.open(file)).float() / 255


class Through(nn.Module):
    """A classifier that looks at ``views`` random transformations of each image, and averages.

    Expectation over transformation, Athalye et al. (2018), section 2: an attack on this module
    follows the expected log-probabilities, which it returns as logits (N, classes). ``transform``
    maps a batch to a batch. Raises ValueError if ``views`` is below 1. Introduced in *Black-box and
    physical attacks*.
    """

    def __init__(
        self, model: nn.Module, transform: Callable[[Tensor], Tensor], views: int = 8
    ) -> None:
        super().__init__()
        self.model, self.transform = model, transform
        self.views = check_count("views", views)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the log-probabilities over the views."""
        return torch.stack(
            [self.model(self.transform(x)).log_softmax(1) for _ in range(self.views)]
        ).mean(0)


class Sticker(nn.Module):
    """Stickers on a sign: the player whose weights are the colours under a mask.

    ``mask`` (H, W) is 1 where a sticker is. Called with signs (N, channels, H, W), whose first
    three channels are colours in [0, 1], it returns them with the stickers on; any further channel
    (opacity) is left alone. Eykholt et al. (2018), equation 3. Raises ValueError for a mask that is
    not of that shape, empty or outside [0, 1], and for signs of another size or of fewer than three
    channels. Introduced in *Black-box and physical attacks*.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dim() != 2 or not mask.any():
            refuse("mask", tuple(mask.shape), "of shape (height, width), not 0 everywhere")
        low, high = mask.float().min().item(), mask.float().max().item()
        if not (low >= 0 and high <= 1):
            refuse("mask", Words(f"between {low:g} and {high:g}"), "between 0 and 1")
        self.register_buffer("mask", mask.float())
        self.logits = nn.Parameter(torch.zeros(3, *mask.shape, device=mask.device))

    def reset_parameters(self) -> None:
        """Draw colours at random."""
        nn.init.normal_(self.logits)

    def colours(self) -> Tensor:
        """Return the colours (3, H, W) in [0, 1]; only those under the mask are seen."""
        return self.logits.sigmoid()

    def forward(self, signs: Tensor) -> Tensor:
        """Return ``signs`` with the stickers on."""
        if signs.dim() != 4 or signs.shape[1] < 3 or signs.shape[2:] != self.mask.shape:
            got = Words(f"of shape {tuple(signs.shape)}")
            height, width = self.mask.shape
            refuse("signs", got, f"of shape (N, 3 or more, {height}, {width}), as the mask is")
        covered = signs[:, :3] * (1 - self.mask) + self.colours() * self.mask
        return torch.cat([covered, signs[:, 3:]], 1)


def non_printability(colours: Tensor, mask: Tensor, printable: Tensor | None = None) -> Tensor:
    """Return how far ``colours`` (3, H, W) are from what can be printed: a mean over the mask.

    For each pixel the distance to the nearest of the ``printable`` colours (P, 3), in [0, √3].
    After the non-printability score of Sharif et al. (2016), equation 4, which is the product of
    the distances to all: zero at the same colours, but among 21 of them next to nothing everywhere.
    Raises ValueError for an empty mask, and for shapes that do not fit. Introduced in *Black-box
    and physical attacks*.
    """
    distance = _distances(colours, printable)
    if mask.shape != colours.shape[1:] or not mask.any():
        allowed = f"of shape {tuple(colours.shape[1:])}, not 0 everywhere"
        refuse("mask", tuple(mask.shape), allowed)
    return distance.amin(2)[mask.bool()].mean()


def as_printed(colours: Tensor, printable: Tensor | None = None) -> Tensor:
    """Return ``colours`` (3, H, W), each pixel the nearest of the ``printable`` ones (P, 3).

    Raises ValueError for shapes that do not fit. Introduced in *Black-box and physical attacks*.
    """
    printable = PRINTABLE if printable is None else printable
    nearest = _distances(colours, printable).argmin(2)
    return printable.to(colours)[nearest].movedim(2, 0)


def _distances(colours: Tensor, printable: Tensor | None) -> Tensor:
    """Return the distance of each pixel to each printable colour, (H, W, P)."""
    if colours.dim() != 3 or len(colours) != 3:
        refuse("colours", Words(f"of shape {tuple(colours.shape)}"), "of shape (3, H, W)")
    printable = PRINTABLE if printable is None else printable
    if printable.dim() != 2 or printable.shape[1] != 3 or len(printable) == 0:
        refuse("printable", Words(f"of shape {tuple(printable.shape)}"), "of shape (P, 3), P > 0")
    return (colours.movedim(0, -1)[:, :, None] - printable.to(colours)).norm(dim=3)


def basic_iterative(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    levels: float,
    *,
    targeted: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Return images ``x`` (N, …) of classes ``y`` moved by up to ``levels`` of 255 grey levels.

    Kurakin et al. (2017), section 2.2: min(ε + 4, 1.25 ε) steps of one grey level. With
    ``targeted`` towards ``y``: for the class that ``model`` finds least likely it is their section
    2.3. Raises ValueError for arguments out of range. Introduced in *Black-box and physical
    attacks*.
    """
    levels = check_number("levels", levels)
    steps = max(int(min(levels + 4, 1.25 * levels)), 1)
    return pgd(
        model, x, y, levels / 255, steps=steps, step_size=1 / 255, random_start=False,
        targeted=targeted, batch_size=batch_size,
    )  # fmt: skip
