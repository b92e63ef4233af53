"""The table of *Mode collapse*: every method on every mixture, several copies of each.

``python -m minimax.reproduce mode_collapse --table grid --method veegan`` plays a cell of it.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minimax import gans
from minimax.coverage import ModeScores, embedded_mode_scores, mode_scores
from minimax.data import Data, load
from minimax.errors import check_choice, check_count
from minimax.game import History, minibatches, play
from minimax.networks import LEAKY_RELU, Maxout, mlp

SAMPLES = 2_500
LOOKS = 25  # at the scores while a cell is played
AVERAGE = 0.99  # of the weights: the step decays to 0, and 0.999 would mix in early ones


class Mixture(NamedTuple):
    """What is special to one table: the size of samples and codes, and RpGAN's γ.

    ``hidden`` is the least width of a layer: noise in 700 directions can't pass a narrower one.
    Introduced in *Mode collapse*.
    """

    features: int
    codes: int
    gamma: float
    hidden: int = 0


TABLES = {
    "ring": Mixture(2, 2, 0.02),
    "grid": Mixture(2, 2, 0.1),
    "high_dimensional": Mixture(1200, 1000, 0.1, 1024),
}


class Cell(NamedTuple):
    """One cell of the table: what is played, and how long. Introduced in *Mode collapse*.

    ``table`` is a mixture of TABLES, ``method`` one of METHODS, ``pack`` how many samples D sees at
    a time, ``scale`` one of BUDGETS.
    """

    table: str
    method: str
    pack: int = 1
    scale: str = "quick"

    def checked(self) -> "Cell":
        """Return the cell. Raises ValueError if there is no such table, method, pack or scale."""
        check_choice("table", self.table, tuple(TABLES))
        check_choice("method", self.method, tuple(METHODS))
        check_choice("scale", self.scale, tuple(BUDGETS))
        check_count("pack", self.pack)
        return self

    @property
    def name(self) -> str:
        """The name under which it is recorded."""
        return f"collapse_{self.table}_{self.method}_{self.pack}_{self.scale}"


class Method(NamedTuple):
    """An objective, and what it needs beside D and G: an encoder, a statistics network, options.

    Introduced in *Mode collapse*.
    """

    objective: Callable[..., Any]
    third: str = ""  # "encoder": D judges pairs, or "statistics"
    options: dict[str, Any] = {}  # noqa: RUF012  (read only)


METHODS = {
    "gan": Method(gans.non_saturating),
    "unrolled": Method(gans.unrolled),
    "ali": Method(gans.ali, "encoder"),
    "veegan": Method(gans.veegan, "encoder"),
    "lfvi": Method(gans.lfvi, "encoder"),
    "mine": Method(gans.informative, "statistics"),
    "wgan_gp": Method(gans.wasserstein, options={"penalty": 0.1}),
    "rpgan": Method(gans.relativistic),
}


class Budget(NamedTuple):
    """How long is played, in rounds of ``size`` samples, with which networks and steps.

    Introduced in *Mode collapse*.
    """

    rounds: int
    size: int
    hidden: int
    lr: float
    betas: tuple[float, float]


BUDGETS = {
    "quick": Budget(2_000, 128, 64, 1e-3, (0.5, 0.99)),
    "reduced": Budget(25_000, 512, 128, 1e-3, (0.5, 0.99)),
    "paper": Budget(400_000, 100, 400, 1e-4, (0.8, 0.999)),  # PacGAN's
}


def networks(cell: Cell, hidden: int | None = None) -> tuple[nn.Module, nn.Module, list[nn.Module]]:
    """Return D, G and the third network, if the method has one, of ``cell``.

    In the plane at paper scale those of PacGAN's code: G of four layers of 400 with batch
    normalisation, D of three Maxout layers of 200 units and 5 pieces; else two hidden layers, of
    ``hidden`` units if that is given. Introduced in *Mode collapse*.
    """
    method, (features, codes, _, least) = METHODS[cell.method], TABLES[cell.table]
    hidden = hidden or max(BUDGETS[cell.scale].hidden, least)
    seen = (features + codes * (method.third == "encoder")) * cell.pack
    third: list[nn.Module] = []
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
    """Return the options of the method's objective in ``cell``. Introduced in *Mode collapse*."""
    own = {"gamma": TABLES[cell.table].gamma} if cell.method == "rpgan" else {}
    return METHODS[cell.method].options | own


def score(cell: Cell, samples: Tensor, data: Data) -> ModeScores:
    """Return how ``samples`` cover the mixture of ``cell``, of which ``data`` is a sample.

    Introduced in *Mode collapse*.
    """
    centres = data.extras["centres"]
    if cell.table == "high_dimensional":
        return embedded_mode_scores(samples, centres)
    return mode_scores(samples, centres, data.extras["sd"][0, 0].item())


def cosine(progress: float) -> float:
    """Return the factor of a rate that falls from 1 to 0 along half a cosine wave.

    Introduced in *Mode collapse*.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def play_cell(
    cell: Cell, copies: int = 10, seed: int = 0, checkpoint: Path | None = None, **changed: Any
) -> tuple[list[ModeScores], History]:
    """Play ``copies`` games of ``cell``; return the scores of each, and the history.

    Scores are those of 2,500 samples of the generator with averaged weights. ``changed`` replaces
    parts of the budget, or adds options of the objective. Raises ValueError for a cell that does
    not exist. Introduced in *Mode collapse*.
    """
    method = METHODS[cell.checked().method]
    budget = BUDGETS[cell.scale]
    given = {k: changed.pop(k) for k in budget._fields if k in changed}
    budget = budget._replace(**given)
    data, codes = load(cell.table), TABLES[cell.table].codes
    torch.manual_seed(seed)
    D, G, third = networks(cell, budget.hidden if "hidden" in given else None)
    steps = {"lr": budget.lr, "betas": budget.betas, "schedule": cosine, "average": AVERAGE}
    players = method.objective(D, G, *third, **steps, **(options(cell) | changed))
    z = torch.randn(SAMPLES, codes, generator=torch.Generator().manual_seed(seed))
    size = budget.size - budget.size % cell.pack  # so that packs come out even
    history = play(
        players, minibatches(data.x, size=size, noise=codes), rounds=budget.rounds,
        copies=copies, seed=seed, checkpoint=checkpoint, checkpoint_every=2_000,
        watch={"scores": lambda: torch.tensor(score(cell, G(z), data))},
        every=max(1, budget.rounds // LOOKS),
    )  # fmt: skip
    return [score(cell, x, data) for x in history.each(lambda: G(z), averaged=True)], history


def measured(cell: Cell, copies: int, folder: str, **changed: Any) -> dict[str, Any]:
    """Return what is recorded of ``cell``; a killed run goes on from its checkpoints.

    ``folder`` holds them: for workers on several machines, one that all see. Introduced in *Mode
    collapse*.
    """
    began = time.perf_counter()
    key = "_".join(f"{name}{value}" for name, value in changed.items())
    kept = Path(folder) / f"{cell.name}_{copies}{key}"
    scores, history = play_cell(cell, copies, checkpoint=kept, **changed)
    curve = history.watched["scores"].mean(1)  # over copies: (looks, fields)
    columns = {field: [getattr(one, field) for one in scores] for field in ModeScores._fields}
    return {
        "cell": cell._asdict(),
        "seeds": list(range(copies)),
        "settings": BUDGETS[cell.scale]._asdict()
        | {"average": AVERAGE, "schedule": "cosine"}
        | options(cell)
        | changed,
        "measured": columns,
        "rounds": history.rounds,
        "curve": {
            field: [round(value, 4) for value in part.tolist()]
            for field, part in zip(ModeScores._fields, curve.T, strict=True)
        },
        "seconds": time.perf_counter() - began,
    }
