"""The tables of *Remedies for mode collapse*: each method on each mixture, in several copies.

``python -m minimax.reproduce collapse --table grid --method veegan`` plays a cell of it.

Floor 4; called by the book, listing, reproduce.
"""

import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minimax import gans, recorded
from minimax.coverage import ModeScores, embedded_mode_scores, mode_scores, stacked_mode_scores
from minimax.data import Data, load
from minimax.errors import check_choice, check_count, refuse
from minimax.evaluation import accuracy, evaluate, predict_proba
from minimax.game import History, Player, minibatches, play
from minimax.networks import (
    LEAKY_RELU,
    DCGANDiscriminator,
    DCGANGenerator,
    Maxout,
    mlp,
    strided_network,
)
from minimax.recorded.origin import checkpoint_folder, device_used, origin
from minimax.scale import use_device

LOOKS = 20  # at the scores while a cell is played
AVERAGE = 0.99  # of the weights: the step decays to 0, and 0.999 would mix in early ones


class Table(NamedTuple):
    """What is special to one table: the size of samples and codes, and RpGAN's γ.

    ``samples`` are drawn to be scored. ``hidden`` is the least width of a layer: noise in 700
    directions can't pass a narrower one. ``digits`` names the data of which three are stacked as
    the channels of an image, ``side`` pixels wide. Introduced in *Remedies for mode collapse*.
    """

    features: int
    codes: int
    gamma: float
    samples: int = 2_500
    hidden: int = 0
    digits: str = ""
    side: int = 0


TABLES = {
    "ring": Table(2, 2, 0.02),
    "grid": Table(2, 2, 0.1),
    "high_dimensional": Table(1200, 1000, 0.1, hidden=1024),
    "high_dimensional_120": Table(120, 100, 0.1, hidden=256),
    "stacked_digits": Table(3 * 8**2, 100, 1.0, 26_000, digits="digits", side=8),
    "stacked_mnist": Table(3 * 28**2, 100, 1.0, 26_000, digits="mnist", side=28),
}


class Cell(NamedTuple):
    """One cell of the table: what is played, and how long.

    Introduced in *Remedies for mode collapse*.

    ``table`` is one of TABLES, ``method`` one of METHODS, ``pack`` how many samples D sees at
    a time, ``scale`` a budget of that table.
    """

    table: str
    method: str
    pack: int = 1
    scale: str = "quick"

    def checked(self) -> "Cell":
        """Return the cell. Raises ValueError if there is no such table, method, pack or scale."""
        check_choice("table", self.table, tuple(TABLES))
        check_choice("method", self.method, tuple(METHODS))
        check_choice("scale", self.scale, tuple(budgets_of(self.table)))
        check_count("pack", self.pack)
        return self

    @property
    def row(self) -> str:
        """The name of its row in the records of its table."""
        return f"{self.method}_{self.pack}_{self.scale}"

    @property
    def name(self) -> str:
        """What tells it from all other cells."""
        return f"{self.table}_{self.row}"


class Method(NamedTuple):
    """An objective, and what it needs beside D and G: an encoder, a statistics network, options.

    Introduced in *Remedies for mode collapse*.
    """

    objective: Callable[..., Any]
    third: str = ""  # "encoder": D judges pairs, or "statistics"
    options: dict[str, Any] = {}  # noqa: RUF012  (read only)
    one_by_one: bool = False  # D's slope is asked for, so that D can't normalise over a batch


METHODS = {
    "gan": Method(gans.non_saturating),
    "unrolled": Method(gans.unrolled, one_by_one=True),
    "ali": Method(gans.ali, "encoder"),
    "veegan": Method(gans.veegan, "encoder"),
    "lfvi": Method(gans.lfvi, "encoder"),
    "mine": Method(gans.informative, "statistics"),
    "wgan_gp": Method(gans.wasserstein, options={"penalty": 0.1}, one_by_one=True),
    "rpgan": Method(gans.relativistic, one_by_one=True),
}


class Budget(NamedTuple):
    """How long is played, in rounds of ``size`` samples, with which networks and steps.

    ``pace`` is the length of D's steps as a share of the others'. Introduced in *Remedies for mode
    collapse*.
    """

    rounds: int
    size: int
    hidden: int
    lr: float
    betas: tuple[float, float]
    pace: float = 1.0


BUDGETS = {
    "quick": Budget(2_000, 128, 64, 1e-3, (0.5, 0.99)),
    "slow": Budget(2_000, 128, 64, 1e-3, (0.5, 0.99), 0.1),  # the pace of Metz et al.
    "short": Budget(10_000, 128, 128, 1e-3, (0.5, 0.99)),
    "reduced": Budget(25_000, 512, 128, 1e-3, (0.5, 0.99)),
    "reduced_slow": Budget(25_000, 512, 128, 1e-3, (0.5, 0.99), 0.1),
    "long": Budget(40_000, 512, 128, 1e-3, (0.5, 0.99)),
    "paper": Budget(400_000, 100, 400, 1e-4, (0.8, 0.999)),  # PacGAN's
}
IMAGE_BUDGETS = {  # ``hidden`` are the maps of D's first layer
    "quick": Budget(600, 64, 16, 1e-3, (0.5, 0.99)),
    "reduced": Budget(5_000, 64, 32, 1e-3, (0.5, 0.99)),
    "paper": Budget(100_000, 64, 64, 2e-4, (0.5, 0.999)),  # PacGAN's
}


def budgets_of(table: str) -> dict[str, Budget]:
    """Return the budgets of ``table`` by their scale.

    Introduced in *Remedies for mode collapse*.
    """
    return IMAGE_BUDGETS if TABLES[table].digits else BUDGETS


def budget_of(cell: Cell, **changed: Any) -> Budget:
    """Return how long ``cell`` is played, with parts of it replaced: batches are whole packs.

    Raises ValueError for a pack that is larger than a batch. Introduced in *Remedies for mode
    collapse*.
    """
    budget = budgets_of(cell.checked().table)[cell.scale]._replace(**changed)
    if cell.pack > budget.size:
        refuse("pack", cell.pack, f"at most {budget.size}, the size of a batch")
    return budget._replace(size=budget.size - budget.size % cell.pack)


class FlatJudge(nn.Module):
    """A DCGAN's discriminator of flattened images (N, pack · (pixels + codes)), to (N, outputs).

    A layer of 200 units sees the whole last map: without it D would add up what it thinks of
    patches. With ``codes`` each image is followed by its code, which joins that map (Srivastava et
    al. 2017). Introduced in *Remedies for mode collapse*.
    """

    def __init__(
        self, side: int, features: int, pack: int = 1, codes: int = 0, outputs: int = 1,
        batch_norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side, self.pack = side, pack
        self.images = DCGANDiscriminator(side, 3 * pack, features, batch_norm=batch_norm)
        inputs = int(self.images.head[1].in_features) + pack * codes  # type: ignore[arg-type]
        self.images.head = nn.Sequential()  # another one answers
        self.answer = mlp(inputs, 200, outputs, activation=LEAKY_RELU)

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers."""
        packs, pixels = x.view(len(x), self.pack, -1), 3 * self.side**2
        images = packs[:, :, :pixels].reshape(len(x), -1, self.side, self.side)
        codes = packs[:, :, pixels:].flatten(1)
        return self.answer(torch.cat([self.images.maps(images)[-1].flatten(1), codes], 1))


def networks(cell: Cell, hidden: int | None = None) -> tuple[nn.Module, nn.Module, list[nn.Module]]:
    """Return D, G and the third network, if the method has one, of ``cell``.

    In the plane at paper scale those of PacGAN's code: G of four layers of 400 with batch
    normalisation, D of three Maxout layers of 200 units and 5 pieces; else two hidden layers, of
    ``hidden`` units if that is given. Stacked digits are made and judged by convolutional networks
    whose images are flattened at their edges. Introduced in *Remedies for mode collapse*.
    """
    method, table = METHODS[cell.method], TABLES[cell.table]
    features, codes, least = table.features, table.codes, table.hidden
    hidden = hidden or max(budget_of(cell).hidden, least)
    third: list[nn.Module] = []
    if table.digits:
        judge = partial(FlatJudge, table.side, hidden)
        joint = codes * (method.third == "encoder")
        image_D = judge(cell.pack, joint, batch_norm=not method.one_by_one)
        image_G = nn.Sequential(DCGANGenerator(table.side, 3, hidden, codes), nn.Flatten())
        if method.third:
            third = [judge(outputs=codes) if joint else judge(codes=codes)]
        return gans.Packed(image_D, cell.pack), image_G, third
    seen = (features + codes * (method.third == "encoder")) * cell.pack
    if method.third:
        encoder = method.third == "encoder"
        inputs, outputs = (features, codes) if encoder else (features + codes, 1)
        third = [mlp(inputs, hidden, hidden, outputs)]
    if cell.scale != "paper" or least:
        D = mlp(seen, hidden, hidden, 1, activation=LEAKY_RELU)
        return gans.Packed(D, cell.pack), mlp(codes, hidden, hidden, features), third
    layers: list[nn.Module] = []
    for inputs in (codes, hidden, hidden, hidden):
        layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    G = nn.Sequential(*layers, nn.Linear(hidden, features))
    D = nn.Sequential(Maxout(seen, 200, 5), Maxout(200, 200, 5), Maxout(200, 200, 5))
    return gans.Packed(nn.Sequential(D, nn.Linear(200, 1)), cell.pack), G, third


def options(cell: Cell) -> dict[str, Any]:
    """Return the options of the method's objective in ``cell``.

    Introduced in *Remedies for mode collapse*.
    """
    own = {"gamma": TABLES[cell.table].gamma} if cell.method == "rpgan" else {}
    return METHODS[cell.method].options | own


def settings(cell: Cell) -> dict[str, Any]:
    """Return the budget of ``cell`` and the options of its objective: what a record keeps of it.

    Raises ValueError for a cell that does not exist. Introduced in *Remedies for mode collapse*.
    """
    steps = {"average": AVERAGE, "schedule": "cosine"}
    return budget_of(cell)._asdict() | steps | options(cell)


def recorded_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recorded cell; parts of the budget that are younger had no effect.

    Introduced in *Remedies for mode collapse*.
    """
    return Budget._field_defaults | record["settings"]


def score(cell: Cell, samples: Tensor, data: Data) -> ModeScores:
    """Return how ``samples`` cover the modes of ``cell``, of which ``data`` is a sample.

    The quality of stacked digits is the share of images whose three digits are each read with a
    probability of at least 0.9. Introduced in *Remedies for mode collapse*.
    """
    if side := TABLES[cell.table].side:
        reader, _ = digit_reader(TABLES[cell.table].digits)
        images = samples.view(-1, 3, side, side)
        modes, divergence = stacked_mode_scores(
            images, lambda x: predict_proba(reader, x).argmax(1)
        )
        surest = predict_proba(reader, images.reshape(-1, 1, side, side)).amax(1)
        sure = surest.view(-1, 3).amin(1) >= 0.9
        return ModeScores(modes, sure.float().mean().item(), divergence)
    centres, sd = data.extras["centres"], data.extras["sd"][0]
    active = int((sd > 0).sum())
    if active < len(sd):  # without noise in the other axes
        return embedded_mode_scores(samples, centres, active)
    return mode_scores(samples, centres, sd[0].item())


def real_scores(table: str) -> ModeScores:
    """Return what unseen real data get in ``table``, and so what perfect samples would.

    Introduced in *Mode collapse*.
    """
    data = load(table, split="test", count=TABLES[table].samples)
    return score(Cell(table, "gan"), data.x.flatten(1), data)


@cache
def digit_reader(name: str) -> tuple[nn.Module, float]:
    """Return a classifier of the digits ``name`` and its accuracy on those held out.

    It is trained at the first call, under a seed of its own. Introduced in *Mode collapse*.
    """
    train, test = load(name), load(name, split="test")
    side = train.x.shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp_reader = nn.Sequential(nn.Flatten(), mlp(side**2, 128, 10))
        reader = strided_network() if side == 28 else mlp_reader

        def classification_loss(x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(reader(x), y)

        player = Player(reader, classification_loss, lr=2e-3, schedule=cosine, average=0.99)
        play([player], minibatches(train.x, train.y, size=100), rounds=2_300, seed=0)
    return reader.eval(), accuracy(reader, test.x, test.y)


def cosine(progress: float) -> float:
    """Return the factor of a rate that falls from 1 to 0 along half a cosine wave.

    Introduced in *Mode collapse*.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def play_cell(
    cell: Cell, copies: int = 10, seed: int = 0, checkpoint: Path | None = None, **changed: Any
) -> tuple[list[ModeScores], History]:
    """Play ``copies`` games of ``cell``; return the scores of each, and the history.

    Scores are those of the generator with averaged weights. ``changed`` replaces parts of the
    budget, or adds options of the objective. Raises ValueError for a cell that does not exist.
    Introduced in *Remedies for mode collapse*.
    """
    method, table = METHODS[cell.checked().method], TABLES[cell.table]
    given = {k: changed.pop(k) for k in Budget._fields if k in changed}
    budget, data = budget_of(cell, **given), load(cell.table)
    if table.digits:
        digit_reader(table.digits)  # before the game: it is a game itself
    torch.manual_seed(seed)
    D, G, third = networks(cell, budget.hidden if "hidden" in given else None)
    steps = {"lr": budget.lr, "betas": budget.betas, "schedule": cosine, "average": AVERAGE}
    pace = {"lr": budget.lr * budget.pace}
    players = method.objective(D, G, *third, **steps, d=pace, **(options(cell) | changed))
    every = -(-budget.rounds // LOOKS)
    if table.digits:
        every = max(1_000, every)  # 26,000 images take a while to score
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(table.samples, table.codes, generator=generator, device="cpu").to(data.x)

    def scores() -> Tensor:
        return torch.tensor(score(cell, evaluate(G, z, 2_500), data))

    batches = minibatches(data.x.flatten(1), size=budget.size, noise=table.codes)
    history = play(
        players, batches, rounds=budget.rounds, copies=copies, seed=seed, checkpoint=checkpoint,
        checkpoint_every=2_000, watch={"scores": scores}, every=every,
    )  # fmt: skip
    in_the_end = history.each(scores, averaged=True).tolist()
    return [ModeScores(int(modes), *rest) for modes, *rest in in_the_end], history


def measured(cell: Cell, copies: int, checkpoint: Path, **changed: Any) -> dict[str, Any]:
    """Return what is recorded of ``cell``; a killed run goes on from what ``checkpoint`` holds.

    Introduced in *Remedies for mode collapse*.
    """
    began = time.perf_counter()
    scores, history = play_cell(cell, copies, checkpoint=checkpoint, **changed)
    curve = history.watched["scores"].mean(1)  # over copies: (looks, fields)
    columns = {field: [getattr(one, field) for one in scores] for field in ModeScores._fields}
    record = {
        "cell": cell._asdict(),
        "seeds": [0],
        "copies": copies,
        "settings": settings(cell) | changed,
        "measured": columns,
        "real": real_scores(cell.table)._asdict(),
        "rounds": history.rounds,
        "curve": {
            field: [round(value, 4) for value in part.tolist()]
            for field, part in zip(ModeScores._fields, curve.T, strict=True)
        },
        "seconds": time.perf_counter() - began,
    }
    if digits := TABLES[cell.table].digits:
        record["classifier"] = {"data": digits, "accuracy": digit_reader(digits)[1]}
    return record


def recorded_cell(cell: Cell, folder: Path | None = None) -> dict[str, Any] | None:
    """Return what is recorded of ``cell``, or None. Introduced in *Remedies for mode collapse*."""
    return (recorded.run(f"remedies/{cell.table}", folder) or {}).get(cell.row)


def record_cells(
    cells: Sequence[Cell],
    copies: int = 10,
    folder: Path = recorded.FOLDER,
    cluster: str | None = None,
    **changed: Any,
) -> None:
    """Record the ``cells`` of the tables that are not in ``folder`` yet.

    One that is there with other settings or copies stays, and counts as failed. Each is written
    when it is done. ``cluster`` is the address of a Dask scheduler, whose workers
    play them: a cell whose worker dies is played by another. A killed cell goes on from its
    checkpoints, which lie where all workers have to see them. ``changed`` replaces parts of the
    budget. A cell that fails costs only itself: SystemExit names such cells after the others.
    Introduced in *Remedies for mode collapse*.
    """
    missing, failed = [], []
    for cell in cells:
        record = recorded_cell(cell, folder)
        if record is None:
            missing.append(cell)
        elif others := recorded.difference(
            recorded_settings(record) | {"copies": record.get("copies", len(record["seeds"]))},
            settings(cell) | changed | {"copies": copies},
        ):
            failed.append(f"{cell.name} (recorded with other settings: {others})")
        else:
            print(f"{cell.name}: recorded already", file=sys.stderr)
    task = partial(_played, copies=copies, base=Path(tempfile.gettempdir()), changed=changed)
    results = _one_by_one(task, missing) if cluster is None else _on_cluster(cluster, task, missing)
    for cell, result in results:
        if isinstance(result, BaseException):
            traceback.print_exception(result)
            failed.append(f"{cell.name} ({type(result).__name__}: {result})")
            continue
        record, kept = result
        print(f"{cell.name}: {record['seconds']:.0f} s", file=sys.stderr)
        recorded.write_row(f"remedies/{cell.table}", cell.row, record, folder)
        if kept.exists():
            shutil.rmtree(kept)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")


def _played(
    cell: Cell, copies: int, base: Path, changed: dict[str, Any]
) -> tuple[dict[str, Any], Path]:
    """Return the record of ``cell`` and the folder with its checkpoints."""
    use_device("paper")  # a default device is a thread's: the worker of a cluster has none
    begun = origin()
    folder = os.environ.get("MINIMAX_DATA")
    given = {"cell": cell, "copies": copies, "changed": changed, "folder": folder}
    kept = checkpoint_folder(base, cell.name, given)
    record = begun | measured(cell, copies, kept, **changed)
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
