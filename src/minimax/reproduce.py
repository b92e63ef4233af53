"""Runs the long experiments once and records them: ``python -m minimax.reproduce WHAT``.

WHAT is a chapter (its paper-scale run, one per seed, kept after each), ``timings`` (what each
chapter takes at quick scale), ``robust_mnist`` (the adversarially trained network of *Defenses*)
or ``squeezenet`` (the attack on a photograph that a reader without the weights is shown).
``dcgan --data NAME`` trains a DCGAN on that data set and records its generator. Run it from a
clone: the chapters are not part of the installed package. A tree with changes that no commit holds
is refused unless ``--dirty`` is given. A run that was killed goes on when the same version is asked
for the same again. Under ``torchrun`` the DCGAN is trained
by all processes together, each of which computes its share of every batch. ``mode_collapse --table
NAME`` plays the cells of that table that have no record yet, by itself or on a Dask cluster.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from minimax import collapse
from minimax.attacks import fgsm, input_gradient, lbfgs, pgd
from minimax.collapse import Cell
from minimax.data import Data, Pretrained, load, squeezenet
from minimax.defenses import adversarial_training
from minimax.files import write_whole
from minimax.game import History, minibatches, parallel, play
from minimax.game.engine import bf16_pays
from minimax.game.player import processes
from minimax.gans import non_saturating
from minimax.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    accuracy,
    predict,
    strided_network,
)
from minimax.provenance import ROOT, changes, checkpoint_folder, device_used
from minimax.provenance import commit as _commit
from minimax.recorded import FOLDER, run, tensors

EPSILONS = (0.0, 0.001, 0.002, 0.004, 0.007, 0.015, 0.03, 0.06)
OSTRICH = 9
USED = """import json, resource
from minimax.provenance import device_used
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, device_used()]))"""


def attack_photograph(pretrained: Pretrained, photograph: Tensor) -> dict[str, Any]:
    """Return one FGSM step on ``photograph`` (3, H, W): its sign and what the network then says.

    ``rows`` has, for each ε of EPSILONS, label and probability after the step and after random
    noise of the same size. Introduced in *Adversarial examples*.
    """
    network, labels, origin = pretrained
    x = photograph[None]
    y = predict(network, x).argmax(1)
    attacked = predict(network, fgsm(network, x, y, EPSILONS)[:, 0])
    coin = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = predict(network, torch.cat([(x + e * coin).clamp(0, 1) for e in EPSILONS]))

    def said(row: Tensor) -> tuple[str, float]:
        return labels[row.argmax()], row.max().item()

    rows = [
        {"epsilon": epsilon, "attack": said(after), "noise": said(control)}
        for epsilon, after, control in zip(EPSILONS, attacked, noisy, strict=True)
    ]
    return {"sign": input_gradient(network, x, y).sign()[0], "rows": rows, "origin": origin}


def turn_into_ostriches(
    pretrained: Pretrained, photographs: Tensor, **options: Any
) -> dict[str, Any]:
    """Return what L-BFGS adds to ``photographs`` (N, 3, H, W) to make ostriches of them.

    ``before`` and ``after`` are the network's labels and probabilities. The perturbations are
    rounded to 8 bits, as they are recorded. Introduced in *Adversarial examples*.
    """
    network, labels, origin = pretrained
    target = torch.full((len(photographs),), OSTRICH)
    r = lbfgs(network, photographs, target, **options) - photographs
    step = r.abs().amax() / 127
    r = (r / step).round() * step

    def said(x: Tensor) -> list[tuple[str, float]]:
        return [(labels[row.argmax()], row.max().item()) for row in predict(network, x)]

    adversarial = (photographs + r).clamp(0, 1)
    return {"r": r, "before": said(photographs), "after": said(adversarial), "origin": origin}


def record_squeezenet() -> None:
    """Record the attacks on scikit-learn's photographs: a few bits per pixel and a table."""
    began, provenance = time.perf_counter(), _provenance()
    pretrained = squeezenet(download=True)
    photographs = load("photographs").x
    first = attack_photograph(pretrained, photographs[0])
    ostriches = turn_into_ostriches(pretrained, photographs)
    step = ostriches["r"].abs().amax() / 127
    bits = np.packbits(first["sign"].numpy().ravel() > 0)
    kept = {
        "sign_bits": torch.from_numpy(bits),
        "r": (ostriches["r"] / step).round().to(torch.int8),
        "step": step,
    }
    write_whole(FOLDER / "squeezenet.safetensors", save(kept))
    record = provenance | {
        "seconds": time.perf_counter() - began,
        "weights": first["origin"],
        "rows": first["rows"],
        "before": ostriches["before"],
        "after": ostriches["after"],
    }
    _write("squeezenet", record)


def recorded_squeezenet() -> dict[str, Any]:
    """Return the recorded attacks in the form of the two functions above, in one.

    Introduced in *Adversarial examples*.
    """
    record, kept = run("squeezenet") or {}, tensors("squeezenet")
    bits = np.unpackbits(kept["sign_bits"].numpy())
    sign = torch.from_numpy(bits).float().view(3, 224, 224) * 2 - 1
    return record | {"sign": sign, "r": kept["r"].float() * kept["step"]}


def train_robust_mnist(network: nn.Module, epochs: float = 25.0) -> None:
    """Train ``network`` on MNIST against ten PGD steps of ε = 0.3, after an epoch at 0.1 and 0.2.

    Madry et al. (2018) begin with 0.3 at once; a network this small then stays at chance.
    Introduced in *Defenses*.
    """
    train = load("mnist")
    batches = minibatches(train.x, train.y, size=100)
    options: dict[str, Any] = {"random_start": True}
    for epsilon in (0.1, 0.2):
        play([adversarial_training(network, epsilon, steps=5, **options)], batches, rounds=600)
    player = adversarial_training(
        network, 0.3, steps=10, lr=2e-3, schedule=lambda progress: 1 - progress, **options
    )
    play([player], batches, rounds=round(600 * epochs))


def record_robust_mnist(epochs: float = 25.0, images: int = 10_000) -> None:
    """Record the weights of an adversarially trained network, and how it does under PGD."""
    began, provenance = time.perf_counter(), _provenance()
    torch.manual_seed(0)
    network = strided_network()
    train_robust_mnist(network, epochs)
    halves = {name: weight.half() for name, weight in network.state_dict().items()}
    network.load_state_dict(halves)  # what is measured is what is kept
    test = load("mnist", split="test")
    x, y = test.x[:images], test.y[:images]
    measured = {"clean": [accuracy(network, x, y)]}
    for restarts in (1, 10):
        attacked = pgd(
            network, x, y, 0.3, steps=100, step_size=0.01, restarts=restarts, until_fooled=True
        )
        measured[f"PGD-100, restarts: {restarts}"] = [accuracy(network, attacked, y)]
    write_whole(FOLDER / "robust_mnist.safetensors", save(halves))
    record = provenance | {
        "seconds": time.perf_counter() - began,
        "seeds": [0],
        "settings": {"epochs": epochs, "epsilon": 0.3, "steps": 10, "lr": 2e-3, "batch": 100},
        "images": images,
        "measured": measured,
    }
    _write("robust_mnist", record)


DCGANS: dict[str, dict[str, Any]] = {
    "digits": {"size": 16, "features": 32, "rounds": 4_000},
    "faces": {"size": 32, "features": 32, "rounds": 12_000},
    "mnist": {"size": 28, "features": 48, "rounds": 10_000},
    "fashion_mnist": {"size": 28, "features": 48, "rounds": 10_000},
    "cmu_faces": {"size": 32, "features": 32, "rounds": 8_000},
    "lsun_bedroom": {"size": 64, "features": 128, "rounds": 120_000, "batch": 128},
}


def dcgan_images(data: str) -> Any:
    """Return the training images of ``data`` at the size of its DCGAN: a tensor, or a data set."""
    size = DCGANS[data]["size"]
    if data in ("digits", "faces", "lsun_bedroom"):
        loaded = load(data, size=size)
        return loaded.x if isinstance(loaded, Data) else loaded
    images = load(data).x
    if images.shape[-2:] != (size, size):
        images = resize(images, [size, size], antialias=True)
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
    players = non_saturating(D, G, lr=2e-4, betas=(0.5, 0.999), average=0.999)
    draw = minibatches(images, size=batch, noise=codes)
    history = play(
        players, draw, rounds=rounds, seed=seed, bf16=bf16, channels_last=True,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    history.load(averaged=True)
    return G, D, history


def record_dcgan(data: str, folder: Path = FOLDER, **changed: Any) -> None:
    """Train a DCGAN on ``data`` and record its generator, in half precision, in ``folder``."""
    began, provenance = time.perf_counter(), _provenance()
    able = bf16_pays(parallel.start())
    settings = DCGANS[data] | changed
    settings["bf16"] = settings.get("bf16", True) and able
    given = settings | {"folder": os.environ.get("MINIMAX_DATA")}
    kept = checkpoint_folder(Path(tempfile.gettempdir()), f"dcgan-{data}", given)
    G, _, history = train_dcgan(dcgan_images(data), **settings, checkpoint=kept)
    if not parallel.is_first():
        return
    halves = {name: value.half().contiguous().cpu() for name, value in G.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"dcgan_{data}.safetensors", save(halves))
    record = provenance | {
        "device": device_used(),
        "seconds": time.perf_counter() - began,
        "seeds": [0],
        "processes": processes(),
        "settings": {"lr": 2e-4, "beta1": 0.5, "average": 0.999} | settings,
        "losses": {name: loss[-100:].tolist() for name, loss in history.losses.items()},
    }
    _write(f"dcgan_{data}", record, folder)
    shutil.rmtree(kept)


def recorded_dcgan(data: str) -> DCGANGenerator:
    """Return the recorded generator of ``data``, in evaluation mode. Introduced in *DCGAN*."""
    weights = tensors(f"dcgan_{data}")
    settings = (run(f"dcgan_{data}") or {})["settings"]
    last = max(int(name.split(".")[1]) for name in weights)
    channels = len(weights[f"layers.{last}.bias"])
    G = DCGANGenerator(settings["size"], channels, settings["features"])
    G.load_state_dict({name: value.float() for name, value in weights.items()})
    return G.eval()


def record_cells(
    cells: Sequence[Cell],
    copies: int = 10,
    folder: Path = FOLDER,
    cluster: str | None = None,
    **changed: Any,
) -> None:
    """Record the ``cells`` of the tables of *Mode collapse* that are not in ``folder`` yet.

    Each is written when it is done. ``cluster`` is the address of a Dask scheduler, whose workers
    play them: a cell whose worker dies is played by another. A killed cell goes on from its
    checkpoints, which lie where all workers have to see them. ``changed`` replaces parts of the
    budget. A cell that fails costs only itself: SystemExit names such cells after the others.
    """
    missing = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
    task = partial(_played, copies=copies, base=Path(tempfile.gettempdir()), changed=changed)
    results = _one_by_one(task, missing) if cluster is None else _on_cluster(cluster, task, missing)
    failed = []
    for cell, result in results:
        if isinstance(result, BaseException):
            traceback.print_exception(result)
            failed.append(f"{cell.name} ({type(result).__name__}: {result})")
            continue
        record, kept = result
        print(f"{cell.name}: {record['seconds']:.0f} s", file=sys.stderr)
        _write(cell.name, record, folder)
        if kept.exists():
            shutil.rmtree(kept)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(missing)} cells failed: {'; '.join(failed)}")


def _played(
    cell: Cell, copies: int, base: Path, changed: dict[str, Any]
) -> tuple[dict[str, Any], Path]:
    """Return the record of ``cell`` and the folder with its checkpoints."""
    provenance = _provenance()
    folder = os.environ.get("MINIMAX_DATA")
    settings = {"cell": cell, "copies": copies, "changed": changed, "folder": folder}
    kept = checkpoint_folder(base, cell.name, settings)
    record = provenance | collapse.measured(cell, copies, kept, **changed)
    return record | {"device": device_used()}, kept


def _one_by_one(task: Any, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Any]]:
    """Yield each cell with its result, or with the exception that it ended in."""
    for cell in cells:
        try:
            result = task(cell)
        except Exception as error:
            yield cell, error
        else:
            yield cell, result


def _on_cluster(address: str, task: Any, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Any]]:
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError:
        raise SystemExit("A cluster needs Dask: pip install distributed") from None
    with Client(address) as client:
        futures = {client.submit(task, cell, pure=False): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


def execute(chapter: str, environment: Mapping[str, str]) -> tuple[Any, float, float, str]:
    """Execute ``chapter``; return its notebook, the seconds, the peak GB and the device used."""
    path = ROOT / "book" / f"{chapter}.ipynb"
    if not path.exists():
        raise SystemExit(f"There is no chapter {chapter!r} in {path.parent}; run this in a clone.")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(USED))
    # A cell of a quick run takes seconds: one that takes minutes waits for a kernel that hangs.
    timeout = None if environment.get("MINIMAX_SCALE") == "paper" else 300
    where = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=timeout, resources=where)
    began = time.perf_counter()
    client.execute(env={**os.environ, "TQDM_DISABLE": "1", **environment})
    seconds = time.perf_counter() - began
    peak, device = json.loads(notebook.cells[-1].outputs[0].text)
    return notebook, seconds, peak / 2**20, device


def record_chapter(chapter: str, seeds: Sequence[int]) -> None:
    """Record the paper-scale run of ``chapter``; a killed run goes on with the next seed."""
    source = (ROOT / "book" / f"{chapter}.md").read_text("utf-8")
    settings = re.findall(r".*at_scale\(.*", source)
    provenance = _provenance()  # before the runs: the tree may change meanwhile
    given = {"source": source, "data": os.environ.get("MINIMAX_DATA")}
    kept = checkpoint_folder(Path(tempfile.gettempdir()), chapter, given)
    kept.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in seeds:
        file = kept / f"seed{seed}.json"
        if not file.exists():
            print(f"{chapter}, seed {seed} …", file=sys.stderr)
            environment = {"MINIMAX_SCALE": "paper", "MINIMAX_SEED": str(seed)}
            notebook, seconds, memory, device = execute(chapter, environment)
            measured: dict[str, float] = {}
            for cell in notebook.cells:
                for output in cell.get("outputs", []):
                    measured |= output.get("metadata", {}).get("minimax_table", {}).get(
                        "measured", {}
                    )  # fmt: skip
            one = {"measured": measured, "seconds": seconds, "memory_gb": memory,
                   "device": device}  # fmt: skip
            write_whole(file, json.dumps(one).encode())
        runs.append(json.loads(file.read_text("utf-8")))
    record = provenance | {
        "device": ", ".join(sorted({one["device"] for one in runs})),
        "seconds": sum(one["seconds"] for one in runs),
        "memory_gb": max(one["memory_gb"] for one in runs),
        "seeds": list(seeds),
        "settings": [line.strip() for line in settings],
        "measured": {key: [one["measured"][key] for one in runs] for key in runs[0]["measured"]},
    }
    _write(chapter, record)
    shutil.rmtree(kept)


def record_timings(chapters: Sequence[str]) -> None:
    """Record what each chapter takes and downloads at quick scale, without data or caches."""
    path = FOLDER / "timings.json"
    timings = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for chapter in chapters:
        with tempfile.TemporaryDirectory() as folder:
            empty = dict.fromkeys(("MINIMAX_DATA", "MINIMAX_CACHE", "TORCH_HOME"), folder)
            provenance = _provenance()
            _, seconds, memory, device = execute(chapter, empty | {"MINIMAX_SCALE": "quick"})
            fetched = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        one = {
            "seconds": round(seconds, 1),
            "memory_gb": round(memory, 2),
            "downloads_mb": round(fetched / 1e6, 1),
        }
        kind = "cpu" if "CPU core" in device else "gpu"
        timings.setdefault(chapter, {})[kind] = one | provenance | {"device": device}
        print(f"{chapter}: {seconds:.0f} s, {memory:.2f} GB", file=sys.stderr)
    _write("timings", timings)


def chapters() -> list[str]:
    """Return the chapters with code, in the order of the table of contents."""
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    return re.findall(r"book/(\w+)\.ipynb", toc)


def _write(name: str, record: Mapping[str, Any], folder: Path = FOLDER) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.json", text.encode())


def _provenance() -> dict[str, Any]:
    """Return where a run that begins now comes from; the device may be another in the end."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "device": device_used(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse the command line and record what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m minimax.reproduce", description=__doc__)
    others = {"dcgan", "mode_collapse", "timings", "robust_mnist", "squeezenet"}
    parser.add_argument("what", choices=sorted({*chapters(), *others}))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", choices=list(DCGANS), help="with dcgan: train one on this")
    for name in ("rounds", "batch", "features"):
        parser.add_argument(f"--{name}", type=int, help="with --data: not the usual number")
    parser.add_argument("--float32", action="store_true", help="with --data: not bfloat16")
    parser.add_argument("--table", choices=list(collapse.TABLES), help="whose cells to play")
    parser.add_argument("--method", choices=list(collapse.METHODS), help="with --table: only this")
    parser.add_argument("--pack", type=int, default=1, help="with --table: samples D sees at once")
    parser.add_argument("--copies", type=int, default=10, help="with --table: games of each")
    parser.add_argument("--scale", choices=list(collapse.BUDGETS), default="paper")
    parser.add_argument("--cluster", help="with --table: the address of a Dask scheduler")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where a generator or cell goes")
    parser.add_argument("--dirty", action="store_true", help="record though no commit has the tree")
    arguments = parser.parse_args()
    for option, what in (("data", "dcgan"), ("table", "mode_collapse")):
        if getattr(arguments, option) and arguments.what != what:
            parser.error(f"--{option} belongs to {what}, not to {arguments.what}")
    if not arguments.dirty and (changed_files := changes()):
        raise SystemExit(
            f"No commit holds what this tree has: {', '.join(changed_files[:5])}"
            f"{' …' if len(changed_files) > 5 else ''}. Commit it, or pass --dirty."
        )
    if arguments.data:
        names = ("rounds", "batch", "features")
        changed = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        if arguments.float32:
            changed["bf16"] = False
        record_dcgan(arguments.data, arguments.out, **changed)
    elif arguments.table:
        methods = [arguments.method] if arguments.method else list(collapse.METHODS)
        cells = [Cell(arguments.table, m, arguments.pack, arguments.scale) for m in methods]
        changed = {} if arguments.rounds is None else {"rounds": arguments.rounds}
        record_cells(cells, arguments.copies, arguments.out, arguments.cluster, **changed)
    elif arguments.what == "squeezenet":
        record_squeezenet()
    elif arguments.what == "robust_mnist":
        record_robust_mnist()
    elif arguments.what == "timings":
        record_timings(chapters())
    else:
        record_chapter(arguments.what, arguments.seeds)


if __name__ == "__main__":
    main()
