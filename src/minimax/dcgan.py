"""DCGANs: how the chapter *DCGAN* trains them, and the recorded generators.

Floor 4; called by the book, listing, reproduce.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from minimax import recorded
from minimax.data import Data, load
from minimax.errors import check_choice
from minimax.game import History, minibatches, parallel, play
from minimax.game.engine import bf16_pays
from minimax.game.player import processes
from minimax.gans import non_saturating
from minimax.later import Later
from minimax.networks import DCGANDiscriminator, DCGANGenerator
from minimax.recorded.origin import checkpoint_folder, device_used, origin

v2 = Later("torchvision.transforms.v2")
STEPS: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999), "average": 0.999}
DCGANS: dict[str, dict[str, Any]] = {
    "digits": {"size": 16, "features": 32, "rounds": 4_000},
    "faces": {"size": 32, "features": 32, "rounds": 12_000},
    "mnist": {"size": 28, "features": 48, "rounds": 10_000},
    "fashion_mnist": {"size": 28, "features": 48, "rounds": 10_000},
    "cmu_faces": {"size": 32, "features": 32, "rounds": 8_000},
    "lsun_bedroom": {"size": 64, "features": 128, "rounds": 120_000, "batch": 128},
}


def settings(data: str) -> dict[str, Any]:
    """Return the size and length of the DCGAN of ``data``, and its steps: what a record keeps.

    Raises ValueError if it has none. Introduced in *DCGAN*.
    """
    check_choice("data", data, tuple(DCGANS))
    steps = {"lr": STEPS["lr"], "beta1": STEPS["betas"][0], "average": STEPS["average"]}
    return steps | DCGANS[data]


def dcgan_images(data: str) -> Any:
    """Return the training images of ``data`` at the size of its DCGAN: a tensor, or a data set.

    Introduced in *DCGAN*.
    """
    size = DCGANS[data]["size"]
    if data in ("digits", "faces", "lsun_bedroom"):
        loaded = load(data, size=size)
        return loaded.x if isinstance(loaded, Data) else loaded
    images = load(data).x
    if images.shape[-2:] != (size, size):
        images = v2.functional.resize(images, [size, size], antialias=True)
    return images


def train_dcgan(
    images: Any,
    *,
    size: int,
    features: int,
    rounds: int,
    batch: int = 64,
    codes: int = 100,
    seed: int = 0,
    bf16: bool | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
) -> tuple[DCGANGenerator, DCGANDiscriminator, History]:
    """Train a DCGAN on ``images``, a tensor (N, channels, size, size) or a data set of such images.

    Radford et al. (2016), section 4: Adam, 2·10⁻⁴, β₁ = 0.5. The generator that is returned has
    the moving average of its weights. ``bf16`` is by default used where the device has instructions
    for it. Under torchrun every process computes its share of each batch, and all end with the same
    weights. Introduced in *DCGAN*.
    """
    device = parallel.start()
    torch.manual_seed(seed)
    channels = images[0].shape[0]
    G = DCGANGenerator(size, channels, features, codes).to(device)
    D = DCGANDiscriminator(size, channels, features).to(device)
    if processes() > 1:
        parallel.share_statistics(G)
        parallel.share_statistics(D)
    players = non_saturating(D, G, **STEPS)
    draw = minibatches(images, size=batch, noise=codes)
    history = play(
        players, draw, rounds=rounds, seed=seed, bf16=bf16, channels_last=True,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    history.load(averaged=True)
    return G, D, history


def record_dcgan(data: str, folder: Path = recorded.FOLDER, **changed: Any) -> None:
    """Train a DCGAN on ``data`` and record its generator, in half precision, in ``folder``.

    Introduced in *DCGAN*.
    """
    began, begun = time.perf_counter(), origin()
    able = bf16_pays(parallel.start())
    options = DCGANS[data] | changed
    options["bf16"] = options.get("bf16", True) and able
    given = options | {"folder": os.environ.get("MINIMAX_DATA")}
    kept = checkpoint_folder(Path(tempfile.gettempdir()), f"dcgan-{data}", given)
    G, _, history = train_dcgan(dcgan_images(data), **options, checkpoint=kept)
    if not parallel.is_first():
        return
    halves = {name: value.half().contiguous().cpu() for name, value in G.state_dict().items()}
    recorded.write_tensors(f"dcgan/{data}", halves, folder)
    record = begun | {
        "device": device_used(),
        "seconds": time.perf_counter() - began,
        "seeds": [0],
        "processes": processes(),
        "settings": settings(data) | options,
        "losses": {name: loss[-100:].tolist() for name, loss in history.losses.items()},
    }
    recorded.write(f"dcgan/{data}", record, folder)
    shutil.rmtree(kept)


def recorded_dcgan(data: str) -> DCGANGenerator:
    """Return the recorded generator of ``data``, in evaluation mode. Introduced in *DCGAN*."""
    weights = recorded.tensors(f"dcgan/{data}")
    made = (recorded.run(f"dcgan/{data}") or {})["settings"]
    last = max(int(name.split(".")[1]) for name in weights)
    channels = len(weights[f"layers.{last}.bias"])
    G = DCGANGenerator(made["size"], channels, made["features"])
    G.load_state_dict({name: value.float() for name, value in weights.items()})
    return G.eval()
