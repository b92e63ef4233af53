"""ImageNet as the book needs it: torchvision's SqueezeNet, its labels, and a few photographs."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from minimax.data.places import DataError, Need, disk_fault, find, places, reading, whole
from minimax.errors import check_choice
from minimax.later import Later
from minimax.networks import Normalise

SAMPLES = "photos/samples.json"
PHOTOGRAPHS = Need("imagenet_photographs", "5 MB, 40 photographs", "photographs")
VERSIONS = ("1_0", "1_1")
models, v2 = Later("torchvision.models"), Later("torchvision.transforms.v2")


class Pretrained(NamedTuple):
    """A network that takes images in [0, 1], its 1,000 labels, and where its weights came from.

    Introduced in *Adversarial examples*.
    """

    network: nn.Module
    labels: list[str]
    origin: str


def squeezenet(version: str = "1_1", *, download: bool = False) -> Pretrained:
    """Return torchvision's SqueezeNet 1.0 or 1.1 with its ImageNet weights (5 MB).

    The weights are looked for in the places of ``load`` (as ``torch_home/hub/checkpoints/…`` or
    in the cache), then in torch's own cache, then, if ``download``, fetched from torchvision's
    address and checked against the hash in their name. Normalisation happens inside the network.
    Raises DataError if they can't be had or are damaged, ValueError for an unknown version.
    Introduced in *Adversarial examples*.
    """
    check_choice("version", version, VERSIONS)
    weights = _weights(version)
    need = _need(version)
    path = _weights_file(need, weights.url, download)
    with reading(need, path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = getattr(models, f"squeezenet{version}")()
        network.load_state_dict(state)
    mean_sd = weights.transforms()
    model = nn.Sequential(Normalise(mean_sd.mean, mean_sd.std), network).eval()
    return Pretrained(model, list(weights.meta["categories"]), _origin(path))


def squeezenet_available(version: str = "1_1", *, download: bool = False) -> bool:
    """Return whether the weights of ``squeezenet(version)`` lie on this machine.

    With ``download`` they are fetched now if they don't. Raises ValueError for an unknown version.
    Introduced in *Adversarial examples*.
    """
    url = _weights(check_choice("version", version, VERSIONS)).url
    try:
        return _weights_file(_need(version), url, download).exists()
    except DataError:
        return False


def _weights(version: str) -> Any:
    return getattr(models, f"SqueezeNet{version}_Weights").IMAGENET1K_V1


def _need(version: str) -> Need:
    return Need(f"squeezenet{version} weights", "5 MB", "")


def _weights_places(url: str) -> list[Path]:
    name = url.rsplit("/", 1)[1]
    own = [place / "torch_home/hub/checkpoints" / name for place in places()]
    return [*own, Path(torch.hub.get_dir()) / "checkpoints" / name]


def _weights_file(need: Need, url: str, download: bool) -> Path:
    candidates = _weights_places(url)
    for path in candidates:
        if path.exists():
            return path
    if not download:
        raise need.missing("a download was not asked for")

    name = candidates[0].name

    def fetch(folder: Path) -> Path:
        try:
            torch.hub.download_url_to_file(
                url, str(folder / name), hash_prefix=name.split("-")[1].split(".")[0]
            )
        except (OSError, RuntimeError) as error:
            if disk_fault(error):
                raise
            raise need.missing(f"the download failed ({url}: {error})") from error
        return folder / name

    return whole(need, candidates[-2], fetch)  # the last of our own places is the cache


def _origin(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest.startswith(path.stem.split("-")[1]):
        return "torchvision's file"
    return f"a converted copy of torchvision's weights (SHA-256 {digest[:8]}…)"


def load_photographs() -> tuple[Tensor, Tensor, list[str]]:
    """Return the 40 photographs (40, 3, 224, 224), their ImageNet classes and their names.

    They were kept because four networks label them correctly: accuracy on them means nothing.
    Introduced in *Adversarial examples*.
    """
    index = find(PHOTOGRAPHS, SAMPLES)
    with reading(PHOTOGRAPHS, index):
        samples = json.loads(index.read_text("utf-8"))
        y = torch.tensor([sample["index"] for sample in samples])
        names = [sample["label"] for sample in samples]
    return torch.stack([_photograph(index.parent / s["file"]) for s in samples]), y, names


def _photograph(path: Path) -> Tensor:
    with reading(PHOTOGRAPHS, path), Image.open(path) as image:
        return as_input(image.convert("RGB"))


def as_input(image: Image.Image | Tensor) -> Tensor:
    """Return ``image`` (3, 224, 224) as torchvision's networks want it, but in [0, 1].

    Introduced in *Adversarial examples*.
    """
    scaled = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToImage(), scaled]
    return v2.Compose(steps)(image)
