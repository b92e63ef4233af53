"""``play`` and what it returns. One round stands in ``engine``, its files in ``checkpoints``."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minimax.errors import Words, check_count, described, refuse
from minimax.game.arena import State, Weights
from minimax.game.capture import Captured
from minimax.game.checkpoints import Checkpoint, Folder
from minimax.game.engine import Game
from minimax.game.parallel import is_first
from minimax.game.player import Batches, Player, processes
from minimax.game.side import NotFinite
from minimax.game.start import reinitialise

Watch = Mapping[str, Callable[[], Tensor | float]]
CHECK_EVERY = 100  # rounds between looks at the losses on a GPU: each look waits for it


class NonFiniteLoss(ArithmeticError):
    """A player's loss, gradient or step became infinite or NaN, and the game stopped.

    ``history`` holds the game until then. On a CPU the step was not taken, and the networks hold
    the last finite weights and statistics. Introduced in *The minimax game*.
    """

    def __init__(self, message: str, history: "History") -> None:
        super().__init__(message)
        self.history = history


@dataclass(repr=False)
class History:
    """The course of a game, and the weights of all its copies, as they were at its end.

    ``losses`` maps each player's name to its loss in every round (the mean over its turns): shape
    (rounds,), or (rounds, copies) if ``copies`` were asked for. ``watched`` maps each name of
    ``watch`` to its values, (times, …) or (times, copies, …), and ``rounds`` says after how many
    rounds they were taken. Introduced in *The minimax game*.
    """

    losses: dict[str, Tensor]
    watched: dict[str, Tensor]
    rounds: list[int]
    _weights: Weights

    def __repr__(self) -> str:
        rounds = len(next(iter(self.losses.values())))
        if rounds == 0:
            return "<History of 0 rounds>"
        ends = ", ".join(f"{name} {loss[-1].mean():.4g}" for name, loss in self.losses.items())
        return f"<History of {rounds} rounds; last losses: {ends}>"

    def each(self, function: Callable[[], Tensor | float], *, averaged: bool = False) -> Tensor:
        """Return what ``function`` gives with the weights of each copy in turn: (copies, …).

        It is called without arguments, in evaluation mode, without gradients. ``averaged`` takes
        the moving averages of those players that keep one. A game without copies has one result,
        and no such dimension.
        """
        return self._weights.each(function, averaged)

    def load(self, copy: int = 0, *, averaged: bool = False) -> None:
        """Put the weights of ``copy`` into the networks. Raises ValueError if there is none."""
        copies = self._weights.copies or 1
        if copy not in range(copies):
            refuse("copy", copy, f"a whole number from 0 to {copies - 1}")
        self._weights.load(copy, averaged)


def play(
    players: Player | Sequence[Player],
    batches: Batches,
    *,
    rounds: int,
    copies: int | None = None,
    seed: int | None = None,
    initialise: Callable[[nn.Module], None] = reinitialise,
    watch: Watch | None = None,
    every: int = 100,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    key: str | None = None,
    bf16: bool | None = False,
    channels_last: bool = False,
    compile: bool = False,
    graph: bool = False,
) -> History:
    """Play ``rounds`` rounds of a game; its networks hold the result, the history is returned.

    ``players`` are all who play, or the only one.

    In a round the players move in their order, each taking all its turns; the t-th turn of every
    player sees the same batch, drawn by ``batches(generator)``. All randomness hangs on ``seed``,
    which by default comes from torch's global generator.

    ``copies=S`` plays S independent games as one program (``torch.func.vmap``); losses see the
    shapes of one game. Copy s has a seed of its own, t = ``seed_of(seed, s)``, a hash, so that
    other seeds have other copies: it starts from the weights that ``initialise`` draws for each
    network after ``torch.manual_seed(t)``, and is the game that ``play(…, seed=t)`` plays from
    there, up to rounding and to random numbers that a loss draws itself (dropout). What is frozen
    is not drawn. The networks end with copy 0; ``History.each`` and ``History.load`` reach the
    others.

    ``watch`` names functions without arguments. Before the first round, every ``every`` rounds and
    after the last one their values go into the history: numbers to follow, samples to animate. They
    run in evaluation mode, without gradients, and do not disturb the game.

    ``checkpoint`` names a folder in which the whole state is kept, every ``checkpoint_every``
    rounds and at the end. A game that was killed goes on from there, on a CPU to the same bits, and
    one without schedules can be played for more rounds. What belongs to another game (its networks,
    optimisers and their options, schedules, turns, seed, shapes of a batch, or ``key``, any text of
    yours) is refused. What the losses compute and what the data are can't be compared: a ``key``
    can say it.

    For speed: ``bf16`` evaluates the losses under autocast (on a processor without instructions for
    it, with a warning, it does not: they would be far slower; None asks the processor),
    ``channels_last`` lays images and kernels out so (and leaves the networks like that),
    ``graph`` writes a round down as a list of operations and replays it, on a GPU as a CUDA graph,
    and ``compile`` merges these operations by torch.compile; where that is not possible, a warning
    says why. Only ``bf16`` changes the results by more than rounding; but ``graph`` and ``compile``
    freeze what a loss keeps in Python, a counter or a weight that changes.

    Several processes that torchrun has started, and ``parallel.start`` has joined, play one game
    together (DistributedDataParallel): ``minibatches`` gives each its share, gradients and losses
    are averaged, and the first writes the checkpoints, to a folder that all have to see.

    Raises ValueError for arguments out of range and for a checkpoint folder of another game, or one
    that can't be written or that another running game uses; NonFiniteLoss once a loss or, on a CPU,
    a gradient is infinite or NaN. Introduced in *The minimax game*.
    """
    players = _checked(players)
    if not callable(batches):
        allowed = "a function of a torch.Generator, as minibatches(data, size=…) makes one"
        refuse("batches", Words(f"of type {type(batches).__name__}"), allowed)
    rounds, every = check_count("rounds", rounds), check_count("every", every)
    checkpoint_every = check_count("checkpoint_every", checkpoint_every)
    copies = None if copies is None else check_count("copies", copies)
    if copies is not None and processes() > 1:
        refuse("copies", copies, f"None with {processes()} processes: they play one game")
    if channels_last and copies is not None:
        refuse("channels_last", True, "False with copies: a stack of kernels has no such layout")
    seed = int(torch.randint(2**31, ())) if seed is None else check_count("seed", seed, at_least=0)
    if seed >= 2**64:
        refuse("seed", seed, "below 2⁶⁴")
    if not isinstance(key, (str, type(None))):
        refuse("key", described(key), "a text, or None")
    game = Game(players, copies, seed, initialise, bf16, channels_last, graph, compile)
    folder = Folder(checkpoint, game.fingerprint(rounds, key)) if checkpoint is not None else None
    on_cuda, on_cpu = (game.device.type == kind for kind in ("cuda", "cpu"))
    here = torch.cuda.device(game.device) if on_cuda else nullcontext()
    with here, game.playing(), folder or nullcontext():
        record = _Record(game, rounds, watch or {}, folder)
        drawn = None
        if folder is not None and (found := folder.newest()):
            record.restore(found)
            drawn = game.resume(found, batches, folder.compare)
        else:
            record.look(0)
        alone = processes() == 1  # what several processes tell each other can't be captured
        advance = (
            Captured(game.round, game.sides).round if graph and on_cuda and alone else game.round
        )
        options = {"disable": True} if os.environ.get("CI") or not is_first() else {}
        bar = tqdm(total=rounds, initial=record.done, delay=2, leave=False, unit="round", **options)
        for now in range(record.done + 1, rounds + 1):
            game.set_rates((now - 1) / rounds)
            drawn = drawn or [game.draw(batches) for _ in range(game.turns)]
            try:
                record.losses[now - 1] = advance(drawn)
            except NotFinite as bad:
                record.stop(now - 1, bad)
            looks = now % every == 0 or now == rounds
            keeps = folder is not None and (now % checkpoint_every == 0 or now == rounds)
            if not on_cpu and (looks or keeps or now % CHECK_EVERY == 0):
                record.check(now)
            if looks:
                record.look(now)
            if keeps and folder is not None and is_first():
                folder.save(now, drawn[0], game.saved() | record.saved(now))
            drawn = None
            bar.update()
        bar.close()
    return record.history(rounds)


def _checked(players: Player | Sequence[Player]) -> list[Player]:
    players = [players] if isinstance(players, Player) else list(players)
    if not players or not all(isinstance(player, Player) for player in players):
        refuse("players", players, "a sequence of at least one Player")
    for index, player in enumerate(players):
        player.name = player.name or f"player {index + 1}"
    names = [player.name for player in players]
    if len(set(names)) < len(names):
        refuse("players", Words(f"named {names}"), "of different names")
    return players


class _Record:
    """What has been seen of a game so far."""

    def __init__(self, game: Game, rounds: int, watch: Watch, folder: Folder | None) -> None:
        self.game, self.watch, self.folder, self.done = game, watch, folder, 0
        copies = () if game.copies is None else (game.copies,)
        self.losses = torch.zeros(rounds, len(game.sides), *copies, device=game.device)
        self.finite = 0  # how many rounds were found to be finite
        self.watched: dict[str, list[Tensor]] = {name: [] for name in watch}
        self.times: list[int] = []

    def look(self, now: int) -> None:
        if not self.watch:
            return
        self.times.append(now)
        with self.game.undisturbed():
            for name, function in self.watch.items():
                self.watched[name].append(self._seen(name, function))

    def _seen(self, name: str, function: Callable[[], Tensor | float]) -> Tensor:
        value = self.game.weights().each(function, called=f"watch[{name!r}]").cpu()
        seen = self.watched[name]
        if seen and seen[0].shape != value.shape:
            shapes = f"{tuple(seen[0].shape)} and {tuple(value.shape)}"
            refuse("watch", name, f"the name of a function of one shape; it gave {shapes}")
        return value

    def check(self, now: int) -> None:
        """Raise NonFiniteLoss if a loss since the last check is not finite."""
        new = self.losses[self.finite : now]
        if bool(torch.isfinite(new).all()):
            self.finite = now
            return
        round, player, *copy = torch.nonzero(~torch.isfinite(new))[0].tolist()  # the first
        losses = new[round, player]
        self.stop(self.finite + round, NotFinite(player, "loss", copy[0] if copy else None, losses))

    def stop(self, at: int, bad: NotFinite) -> NoReturn:
        """Raise NonFiniteLoss: after ``at`` rounds, something was ``bad`` in the next."""
        names = [side.player.name for side in self.game.sides]
        copy = "" if bad.copy is None else f" of copy {bad.copy}"
        own = () if bad.copy is None else (bad.copy,)
        value = bad.losses[own].item() if bad.what == "loss" else "NaN or infinite"
        text = f"The {bad.what} of player {names[bad.player]!r}{copy} is {value} in round {at + 1}"
        if at > 0:
            before = self.losses[(at - 1, slice(None), *own)].tolist()
            pairs = [f"{name} {loss:.4g}" for name, loss in zip(names, before, strict=True)]
            text += f"; the last finite losses, of round {at}, are {', '.join(pairs)}"
        if self.folder is not None and (kept := self.folder.rounds()):
            text += f"; the checkpoint of round {kept[-1]} is kept in {self.folder.path}"
        raise NonFiniteLoss(text + ".", self.history(at))

    def saved(self, now: int) -> State:
        tensors = {"losses": self.losses[:now], "times": torch.tensor(self.times)}
        for name, values in self.watched.items():
            tensors[f"watched/{name}"] = torch.stack(values)
        return tensors

    def restore(self, found: Checkpoint) -> None:
        if found.round > len(self.losses):
            allowed = f"at least {found.round}, the round of {found.path}"
            refuse("rounds", len(self.losses), allowed)
        self.done = self.finite = found.round
        self.losses[: found.round] = found.tensors["losses"]
        self.times = found.tensors["times"].tolist()
        for name in self.watch:
            if f"watched/{name}" not in found.tensors:
                refuse("watch", name, f"one of those that {found.path} has kept")
            self.watched[name] = list(found.tensors[f"watched/{name}"])

    def history(self, rounds: int) -> History:
        here = torch.get_default_device()
        losses = {
            side.player.name: self.losses[:rounds, index].to(here)
            for index, side in enumerate(self.game.sides)
        }
        watched = {name: torch.stack(values).to(here) for name, values in self.watched.items()}
        return History(losses, watched, self.times, self.game.weights().kept())
