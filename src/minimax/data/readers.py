"""``load``: one call for every data set of the book."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from minimax.data import faces, imagenet, mixtures, scenes, signs
from minimax.data.messages import SMS_FILE, Messages, drawn_messages, sms_spam
from minimax.data.places import Need, cache, disk_fault, find, places, reading, verified, whole
from minimax.errors import check_choice, check_count, needs
from minimax.later import Later

sklearn_datasets = Later("sklearn.datasets")
tv, v2 = Later("torchvision.datasets"), Later("torchvision.transforms.v2")
Reader = Callable[..., "Data | Messages | Dataset[Any]"]


@dataclass(frozen=True)
class Data(Dataset[tuple[Tensor, Tensor]]):
    """Points ``x`` (N, …), images in [0, 1] among them, and classes ``y`` (N,); all in memory.

    ``classes`` names the values of ``y``; ``extras`` holds what else is known of each point or of
    the distribution. ``data[i]`` is the pair (x, y), so a DataLoader takes it as it is.
    Introduced in *How to use this book*.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def load(name: str, split: str = "train", **options: Any) -> Any:
    """Return the data set ``name``, its ``split`` being "train" or "test".

    Embedded: digits (option ``size``, in pixels), stacked_digits (three as channels), photographs,
    drawn signs, faces, turning_faces (films of three frames), scenes (with label maps for classes),
    eyes (with their gaze), ring, grid, high_dimensional (of 1,200 axes), high_dimensional_120,
    one_dimensional, messages. Downloaded through torchvision and kept in the cache: mnist,
    stacked_mnist, fashion_mnist, cifar10, svhn, gtsrb, celeba. Only from the folder MINIMAX_DATA:
    lsun_bedroom, and the local forms cifar10_jpeg, cifar10_lossless, cmu_faces, facades,
    gtsrb_subset, imagenet_photographs, sms_spam. The result is a ``Data`` with float32 images in
    [0, 1] of shape (N, channels, height, width); celeba and lsun_bedroom, too large for memory, are
    torchvision's own data sets of such images (option ``size``), and the two with texts are
    ``Messages``. A ``Data`` lies on torch's default device. Raises ValueError for an unknown name,
    split or option; DataError if the data can't be had or are damaged. Introduced in *How to use
    this book*.
    """
    check_choice("name", name, names())
    check_choice("split", split, ("train", "test"))
    reader = READERS[name]
    allowed = set(OPTIONS.get(name, ()))
    if unknown := sorted(set(options) - allowed):
        takes = ", ".join(sorted(allowed)) or "none"
        raise ValueError(f"load({name!r}) has no option {unknown[0]!r}; it takes: {takes}.")
    with torch.device("cpu"):  # where the same seed draws the same data on every machine
        data = reader(split, **options)
    here = torch.get_default_device()
    if here.type == "cpu" or not isinstance(data, Data):
        return data
    extras = {k: v.to(here) if isinstance(v, Tensor) else v for k, v in data.extras.items()}
    return replace(data, x=data.x.to(here), y=data.y.to(here), extras=extras)


def available(name: str) -> bool:
    """Return whether ``name``, one of the local forms, lies in one of the places: no download.

    Raises ValueError for any other name. Introduced in *Adversarial examples*.
    """
    check_choice("name", name, tuple(LOCAL))
    return any((place / LOCAL[name]).exists() for place in places())


def names() -> tuple[str, ...]:
    """Return the names that ``load`` knows. Introduced in *How to use this book*."""
    return tuple(READERS)


def _pixels(array: np.ndarray) -> Tensor:
    """Return (N, H, W) or (N, H, W, 3) bytes as images (N, channels, H, W) in [0, 1]."""
    images = torch.from_numpy(np.array(array))
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.float().div_(255).contiguous()


def _labels(array: Any) -> Tensor:
    return torch.tensor(np.array(array), dtype=torch.long)


# --- embedded -------------------------------------------------------------------------------


def _digits(split: str, size: int = 8) -> Data:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels; every fifth one is for test."""
    size = check_count("size", size, at_least=8)
    digits = sklearn_datasets.load_digits()
    test = np.arange(len(digits.target)) % 5 == 0
    chosen = test if split == "test" else ~test
    x = torch.from_numpy(digits.images[chosen]).float().div(16).unsqueeze(1)
    if size != 8:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear").clamp(0, 1)
    return Data(x, _labels(digits.target[chosen]), tuple("0123456789"))


def _stacked(base: str, split: str, count: int = 50_000, **options: Any) -> Data:
    """Three digits as the channels of an image; the label is the number, 0 to 999, they spell."""
    count = check_count("count", count)
    digits: Data = load(base, split, **options)
    generator = torch.Generator().manual_seed(1 if split == "train" else 2)
    chosen = torch.randint(len(digits), (count, 3), generator=generator)
    x, y = digits.x[chosen].squeeze(2), digits.y[chosen] @ torch.tensor([100, 10, 1])
    return Data(x, y, tuple(f"{number:03}" for number in range(1000)))


def _photographs(split: str) -> Data:
    """scikit-learn's two photographs, as SqueezeNet wants them: 224×224."""
    images = sklearn_datasets.load_sample_images().images
    x = torch.stack([imagenet.as_input(Image.fromarray(image)) for image in images])
    return Data(x, torch.arange(2), ("temple", "flower"))


def _signs(split: str, **options: Any) -> Data:
    return Data(*signs.photographed_signs(split, **options), signs.CLASSES)


def _faces(split: str, **options: Any) -> Data:
    x, y, attributes = faces.drawn_faces(split, **options)
    return Data(x, y, ("no glasses", "glasses"), attributes)


def _turning_faces(split: str, **options: Any) -> Data:
    x, y, yaw = faces.turning_faces(split, **options)
    return Data(x, y, ("left", "right"), {"yaw": yaw})


def _scenes(split: str, **options: Any) -> Data:
    return Data(*scenes.drawn_scenes(split, **options), scenes.CLASSES)


def _eyes(split: str, **options: Any) -> Data:
    x, y, extras = scenes.drawn_eyes(split, **options)
    return Data(x, y, scenes.STYLES, extras)


def _mixture(sampler: Callable[..., Any], split: str, **options: Any) -> Data:
    x, y, extras = sampler(split, **options)
    return Data(x, y, (), extras)


# --- downloaded through torchvision ---------------------------------------------------------


def _idx(need: Need, name: str, split: str) -> Data:
    """Read MNIST's format from its four gzip files, each checked against torchvision's MD5."""
    dataset = getattr(tv, name)
    files = dict(dataset.resources)
    kind = "train" if split == "train" else "t10k"

    def read(part: str, header: int) -> np.ndarray:
        filename = f"{kind}-{part}.gz"
        urls = [mirror + filename for mirror in dataset.mirrors]
        path = verified(need, f"{name}/raw/{filename}", files[filename], urls)
        with reading(need, path):
            return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    x = _pixels(read("images-idx3-ubyte", 16).reshape(-1, 28, 28))
    return Data(x, _labels(read("labels-idx1-ubyte", 8)), tuple(dataset.classes))


def _torchvision(need: Need, marker: str, build: Callable[..., Any]) -> Any:
    """Return ``build(root)`` of the first place that holds ``marker``; else download it whole."""
    for place in places():
        root = place if place != cache() else cache() / need.name
        if (root / marker).exists():
            with reading(need, root / marker):
                return build(root=str(root), download=False)

    def fetch(folder: Path) -> Path:
        try:
            build(root=str(folder / need.name), download=True)
        except (OSError, RuntimeError, ValueError) as error:
            if disk_fault(error):
                raise
            raise need.missing(f"the download failed ({error})") from error
        return folder / need.name

    root = whole(need, cache() / need.name, fetch)
    return build(root=str(root), download=False)


def _cifar10(split: str) -> Data:
    """CIFAR-10; torchvision checks the MD5 of every batch file each time."""
    build = partial(tv.CIFAR10, train=split == "train")
    made = _torchvision(CIFAR10, "cifar-10-batches-py", build)
    return Data(_pixels(made.data), _labels(made.targets), tuple(made.classes))


def _svhn(split: str) -> Data:
    """Street View House Numbers; torchvision checks the file's MD5 each time."""
    made = _torchvision(SVHN, f"{split}_32x32.mat", partial(tv.SVHN, split=split))
    return Data(_pixels(made.data.transpose(0, 2, 3, 1)), _labels(made.labels), tuple("0123456789"))


def _gtsrb(split: str, size: int = 32) -> Data:
    """The German traffic signs, resized to ``size``; training images know their track."""
    size = check_count("size", size)
    folder = "GTSRB/Training" if split == "train" else "GTSRB/Final_Test"
    made = _torchvision(GTSRB, f"gtsrb/{folder}", partial(tv.GTSRB, split=split))
    root = Path(made._base_folder)
    if len(made) != GTSRB_IMAGES[split]:
        raise GTSRB.damaged(root, f"{len(made)} images, not {GTSRB_IMAGES[split]}")
    as_input = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])

    def read(path: str) -> Tensor:
        with reading(GTSRB, Path(path)), Image.open(path) as image:
            return as_input(image.convert("RGB"))

    x = torch.stack([read(path) for path, _ in made._samples]).float().div_(255)
    y = _labels([label for _, label in made._samples])
    if split == "test":
        return Data(x, y)
    track = _labels([int(Path(path).name.split("_")[0]) for path, _ in made._samples])
    return Data(x, y, (), {"track": track})


def _centre(size: int) -> Callable[[Any], Tensor]:
    """Return the transform of the large data sets: resize, cut the centre, scale to [0, 1]."""
    size = check_count("size", size)
    return v2.Compose(
        [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )


def _celeba(split: str, size: int = 64) -> Dataset[Any]:
    """CelebA: pairs of an image and its 40 attributes, read from disk one by one."""
    build = partial(tv.CelebA, split=split, transform=_centre(size))
    made = _torchvision(CELEBA, "celeba", build)
    folder = Path(made.root) / made.base_folder / "img_align_celeba"
    if (count := sum(1 for _ in os.scandir(folder))) != 202_599:
        raise CELEBA.damaged(folder, f"{count} images, not 202,599")
    return made


class _Bedrooms(Dataset[Tensor]):
    """The images of an LSUN database. torchvision's reader would pickle its keys beside them."""

    def __init__(self, database: Any, path: Path, size: int) -> None:
        self.database, self.path, self.as_input = database, path, _centre(size)
        with self.database.begin() as transaction:
            self.keys = list(transaction.cursor().iternext(values=False))
        if not self.keys:
            raise ValueError("it holds no images")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Tensor:
        with self.database.begin() as transaction:
            stored = io.BytesIO(transaction.get(self.keys[index]) or b"")
        with reading(LSUN, self.path), Image.open(stored) as image:
            return self.as_input(image.convert("RGB"))


def _lsun(split: str, size: int = 64) -> Dataset[Any]:
    """LSUN bedrooms from their LMDB, read one by one; test is LSUN's validation set."""
    path = find(LSUN, f"bedroom_{'train' if split == 'train' else 'val'}_lmdb")
    with needs("data", "LSUN"):
        import lmdb
    with reading(LSUN, path):
        opened = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        return _Bedrooms(opened, path, size)


# --- local forms, only in the folder MINIMAX_DATA -------------------------------------------


def _arrays(need: Need) -> dict[str, np.ndarray]:
    path = find(need, LOCAL[need.name])
    with reading(need, path), np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _cifar10_jpeg(split: str) -> Data:
    """CIFAR-10 as JPEG of quality 75: lossy, so no published number compares with it."""
    path = find(CIFAR10_JPEG, LOCAL["cifar10_jpeg"])
    images, labels = [], []
    with reading(CIFAR10_JPEG, path), tarfile.open(path) as archive:
        for member in archive:
            kind, _, rest = member.name.partition("/")
            if kind == split and member.isfile():
                with Image.open(archive.extractfile(member)) as image:  # type: ignore[arg-type]
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(CIFAR10_CLASSES.index(rest.split("/")[0]))
    expected = {"train": 50_000, "test": 10_000}[split]
    if len(images) != expected:
        raise CIFAR10_JPEG.damaged(path, f"{len(images)} images, not {expected}")
    return Data(_pixels(np.stack(images)), _labels(labels), CIFAR10_CLASSES)


def _cifar10_lossless(split: str) -> Data:
    """The first 4,000 training images of CIFAR-10, lossless; every fifth one is for test."""
    file = _arrays(CIFAR10_LOSSLESS)
    chosen = (np.arange(len(file["y"])) % 5 == 0) == (split == "test")
    return Data(_pixels(file["x"][chosen]), _labels(file["y"][chosen]), CIFAR10_CLASSES)


def _cmu_faces(split: str) -> Data:
    """624 grey faces of 20 people; the label is the person; the last four people are for test."""
    file = _arrays(CMU_FACES)
    people, y = np.unique(file["user"], return_inverse=True)
    chosen = (y >= 16) == (split == "test")
    extras = {key: file[key][chosen] for key in ("pose", "expression", "eyes")}
    return Data(_pixels(file["images"][chosen]), _labels(y[chosen]), tuple(people), extras)


def _facades(split: str) -> Data:
    """400 facades (N, 3, 256, 256), every tenth for test; extras["labels"] (N, 256, 256) are the
    twelve classes of their pixels. The maps are lossy pictures: the nearest colour decides."""
    path = find(FACADES, LOCAL["facades"])
    pairs = []
    with reading(FACADES, path), tarfile.open(path) as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
        members.sort(key=lambda member: int(Path(member.name).stem))
        for index, member in enumerate(members):
            if (index % 10 == 0) == (split == "test"):
                with Image.open(archive.extractfile(member)) as image:  # type: ignore[arg-type]
                    pairs.append(np.asarray(image.convert("RGB")))
    if len(members) != 400:
        raise FACADES.damaged(path, f"{len(members)} pairs, not 400")
    photograph, maps = _pixels(np.stack(pairs)).chunk(2, dim=3)
    colours = torch.tensor(FACADE_COLOURS) / 255
    labels = torch.stack([torch.cdist(one.permute(1, 2, 0), colours).argmin(-1) for one in maps])
    y = torch.zeros(len(photograph), dtype=torch.long)
    return Data(photograph.contiguous(), y, ("facade",), {"labels": labels})


def _gtsrb_subset(split: str, repaired: bool = True) -> Data:
    """A part of GTSRB's training set, split by track; ``repaired=False`` leaves mended ones out."""
    file = _arrays(GTSRB_SUBSET)
    x, y, track, mended = (file[f"{k}_{split}"] for k in ("x", "y", "track", "repaired"))
    kept = slice(None) if repaired else ~mended
    extras = {"track": _labels(track[kept]), "repaired": torch.from_numpy(mended[kept])}
    return Data(_pixels(x[kept]), _labels(y[kept]), (), extras)


def _imagenet_photographs(split: str) -> Data:
    """40 photographs that four networks label correctly; accuracy on them means nothing."""
    x, y, labels = imagenet.load_photographs()
    return Data(x, y, (), {"names": labels})


CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
MNIST = Need("mnist", "11 MB", "digits")
FASHION_MNIST = Need("fashion_mnist", "30 MB", "digits")
CIFAR10 = Need("cifar10", "170 MB", "digits")
SVHN = Need("svhn", "250 MB", "digits")
GTSRB_IMAGES = {"train": 26640, "test": 12630}
GTSRB = Need("gtsrb", "280 MB", "")
CELEBA = Need("celeba", "1.4 GB", "")
LSUN = Need("lsun_bedroom", "43 GB, from www.yf.io/p/lsun", "")
CIFAR10_JPEG = Need("cifar10_jpeg", "18 MB", "digits")
CIFAR10_LOSSLESS = Need("cifar10_lossless", "11 MB", "digits")
CMU_FACES = Need("cmu_faces", "2 MB", "")
FACADES = Need("facades", "20 MB", "")
FACADE_COLOURS = [  # of the twelve classes: medians over the lossy maps
    (0, 0, 222), (0, 48, 255), (2, 127, 255), (1, 207, 255), (34, 254, 226), (112, 253, 146),
    (192, 255, 63), (253, 240, 6), (255, 159, 2), (253, 80, 1), (248, 2, 3), (174, 0, 1),
]  # fmt: skip
GTSRB_SUBSET = Need("gtsrb_subset", "15 MB", "")

LOCAL = {
    "cifar10_jpeg": "cifar10/cifar10_jpeg_q75.tar.xz",
    "cifar10_lossless": "cifar10/cifar10_train_first4000_lossless.npz",
    "cmu_faces": "cmu_faces/cmu_faces_64x60.npz",
    "facades": "facades/facades_train_400.tar",
    "gtsrb_subset": "gtsrb32/gtsrb32_subset.npz",
    "imagenet_photographs": imagenet.SAMPLES,
    "sms_spam": SMS_FILE,
}

READERS: dict[str, Reader] = {
    "digits": _digits,
    "stacked_digits": partial(_stacked, "digits"),
    "photographs": _photographs,
    "ring": partial(_mixture, mixtures.ring),
    "grid": partial(_mixture, mixtures.grid),
    "high_dimensional": partial(_mixture, mixtures.high_dimensional),
    "high_dimensional_120": partial(_mixture, partial(mixtures.high_dimensional, axes=120)),
    "one_dimensional": partial(_mixture, mixtures.one_dimensional),
    "messages": drawn_messages,
    "signs": _signs,
    "faces": _faces,
    "turning_faces": _turning_faces,
    "scenes": _scenes,
    "eyes": _eyes,
    "mnist": partial(_idx, MNIST, "MNIST"),
    "stacked_mnist": partial(_stacked, "mnist"),
    "fashion_mnist": partial(_idx, FASHION_MNIST, "FashionMNIST"),
    "cifar10": _cifar10,
    "svhn": _svhn,
    "gtsrb": _gtsrb,
    "celeba": _celeba,
    "lsun_bedroom": _lsun,
    "cifar10_jpeg": _cifar10_jpeg,
    "cifar10_lossless": _cifar10_lossless,
    "cmu_faces": _cmu_faces,
    "facades": _facades,
    "gtsrb_subset": _gtsrb_subset,
    "imagenet_photographs": _imagenet_photographs,
    "sms_spam": sms_spam,
}
OPTIONS = {
    "digits": ("size",),
    "stacked_digits": ("count", "size"),
    "stacked_mnist": ("count",),
    "ring": ("count", "modes", "radius", "sd"),
    "grid": ("count", "sd"),
    "high_dimensional": ("count", "axes"),
    "high_dimensional_120": ("count",),
    "one_dimensional": ("count", "means", "sds", "weights"),
    "messages": ("count",),
    "signs": ("count", "size"),
    "faces": ("count", "size"),
    "turning_faces": ("count", "size"),
    "scenes": ("count", "size"),
    "eyes": ("count", "style"),
    "gtsrb": ("size",),
    "celeba": ("size",),
    "lsun_bedroom": ("size",),
    "gtsrb_subset": ("repaired",),
}
