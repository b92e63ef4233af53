"""Who plays, and with what: ``Player`` and ``minibatches``."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypedDict

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from minimax.errors import Words, check_count, check_number, refuse

Batch = tuple[Tensor, ...]
Batches = Callable[[torch.Generator], Batch]
When = tuple[int, bytes]
Read = Future[list[Tensor]]

GENERATORS = (
    64  # for which a batch each is read ahead; before torch 2.12 none can be told to be gone
)


@dataclass
class Player:
    """Who moves, what it minimises, and how it steps.

    ``modules`` are the networks whose weights the player moves. ``loss`` maps a batch to a scalar
    tensor; it may use the networks of all players, the gradient reaches only this player's. In each
    round the player takes ``turns`` steps of ``optimiser``: Adam, or any other of ``torch.optim``
    (``functools.partial`` sets options that have no name here), with the rate ``lr`` and, where
    they are given, ``betas``. ``schedule`` maps the share of the game that is over, from 0 to 1, to
    a factor of ``lr``. ``clip`` bounds the norm of the player's gradient. ``average`` is the decay
    of an exponential moving average of the weights, which ``History.each`` can use; it begins at
    their start, and after few rounds is still near it. ``name`` stands in the history; the default
    is that of the loss, without "_loss". Raises ValueError for values out of range. Introduced in
    *The minimax game*.
    """

    modules: nn.Module | Sequence[nn.Module]
    loss: Callable[..., Tensor]
    lr: float = 1e-3
    betas: tuple[float, float] | None = None
    optimiser: Callable[..., Optimizer] = torch.optim.Adam
    turns: int = 1
    schedule: Callable[[float], float] | None = None
    clip: float | None = None
    average: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.modules, nn.Module):
            self.modules = [self.modules]
        if not self.modules or not all(isinstance(module, nn.Module) for module in self.modules):
            refuse("modules", self.modules, "a torch.nn.Module, or a sequence of at least one")
        if not callable(self.loss):
            refuse("loss", self.loss, "a function that maps a batch to a scalar tensor")
        if not callable(self.optimiser):
            got = Words(f"an instance of {type(self.optimiser).__name__}")
            allowed = "a class of torch.optim, or functools.partial of one"
            refuse("optimiser", got, allowed)
        self.lr = check_number("lr", self.lr)
        self.turns = check_count("turns", self.turns)
        below_one = "from 0 up to, but not including, 1"
        if self.betas is not None:
            pair = isinstance(self.betas, Sequence) and len(self.betas) == 2
            if not pair or not all(0 <= check_number("betas", beta) < 1 for beta in self.betas):
                refuse("betas", self.betas, f"two numbers {below_one}")
        if self.schedule is not None and not callable(self.schedule):
            refuse("schedule", self.schedule, "a function of the share of the game that is over")
        if self.clip is not None and check_number("clip", self.clip) == 0:
            refuse("clip", self.clip, "above 0")
        if self.average is not None and not check_number("average", self.average) < 1:
            refuse("average", self.average, f"a decay {below_one}")
        if "/" in self.name:
            refuse("name", self.name, "without a “/”, which parts the names in a checkpoint")
        own_name = getattr(self.loss, "__name__", "<lambda>")
        if not self.name and own_name != "<lambda>":
            self.name = own_name.removesuffix("_loss")


class Options(TypedDict, total=False):
    """What a player can be given beside its networks and its loss: see ``Player``.

    Introduced in *The minimax game*.
    """

    lr: float
    betas: tuple[float, float] | None
    optimiser: Callable[..., Optimizer]
    turns: int
    schedule: Callable[[float], float] | None
    clip: float | None
    average: float | None


class GameOptions(Options, total=False):
    """Options of all players, and those of one alone: the discriminator, the generator, a third.

    Introduced in *The minimax game*.
    """

    d: Options
    g: Options
    third: Options


def per_player(options: GameOptions, *players: str) -> list[dict[str, Any]]:
    """Return the options of each of ``players`` ("d", "g", "third"): the common ones and its own.

    Raises ValueError for options of a player that does not play, and for what are no options.
    Introduced in *The minimax game*.
    """
    given: dict[str, Any] = {**options}
    own: dict[str, Any] = {name: given.pop(name) for name in ("d", "g", "third") if name in given}
    for name, one in own.items():
        if not isinstance(one, Mapping):
            refuse(name, one, "a dictionary of options of that player")
    known = Options.__annotations__
    if unknown := set().union(given, *own.values()) - set(known):
        refuse("options", Words(f"with {min(unknown, key=str)!r}"), f"of {', '.join(known)}")
    if absent := own.keys() - set(players):
        refuse("options", Words(f"given for {min(absent)!r}"), f"for {' or '.join(players)}")
    return [given | {**own.get(name, {})} for name in players]


def processes() -> int:
    """Return how many processes play this game together. Introduced in *DCGAN*."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def share(batch: Tensor) -> Tensor:
    """Return the rows of ``batch`` that are this process's: all, unless torchrun started several.

    Raises ValueError if they can't be shared evenly. Introduced in *DCGAN*.
    """
    if (several := processes()) == 1:
        return batch
    if len(batch) % several:
        refuse("size", len(batch), f"a multiple of {several}, the number of processes")
    return batch.chunk(several)[distributed.get_rank()]


def minibatches(*data: Tensor | Dataset[Any], size: int, noise: int | None = None) -> Batches:
    """Return a function that draws a batch: ``size`` rows of each tensor, the same rows of all.

    Rows are drawn with replacement. Data sets that are no tensors are read row by row, by several
    threads; of a row that is a tuple the first part counts. With ``noise``, standard normal numbers
    of shape (size, noise) come last. The function is given the generator that decides, as ``play``
    does it; the batch lies on the generator's device. Data sets, and tensors that lie elsewhere,
    are read ahead: a batch while the one before it is played, unless others draw from the generator
    in between. Several processes that torchrun has started get a share of the batch each. Raises
    ValueError if there is nothing to draw, or lengths differ. Introduced in *The minimax game*.
    """
    size = check_count("size", size)
    noise = None if noise is None else check_count("noise", noise)
    lengths = [len(part) for part in data]  # type: ignore[arg-type]
    if len(set(lengths)) > 1 or 0 in lengths:
        refuse("data", Words(f"of lengths {lengths}"), "of one length, at least 1")
    if not data and noise is None:
        refuse("data", Words("missing"), "given, or noise has to be")

    # of each generator: when it was left, and what it would draw then; nothing after a wrong guess
    ahead: dict[int, tuple[When, Read] | None] = {}

    def rows(generator: torch.Generator) -> Tensor:
        device = generator.device
        return share(torch.randint(lengths[0], (size,), generator=generator, device=device))

    def read(drawn: Tensor, device: torch.device) -> list[Tensor]:
        """Return the rows of all data, in memory that ``device`` can fetch from by itself."""
        drawn = drawn.cpu()
        parts = [_rows(part, drawn) for part in data]
        pin = device.type == "cuda"
        return [part.pin_memory() if pin and part.device.type == "cpu" else part for part in parts]

    def draw(generator: torch.Generator) -> Batch:
        device, batch = generator.device, []
        far = any(not isinstance(x, Tensor) or x.device.type != device.type for x in data)
        if data:
            guess = ahead.get(id(generator))
            right = guess is not None and guess[0] == _when(generator)
            guesses = right or id(generator) not in ahead  # else others draw in between
            drawn = rows(generator)
            if guess and right:
                batch = guess[1].result()
            else:
                batch = read(drawn, device) if far else [_rows(part, drawn) for part in data]
            batch = [part.to(device, non_blocking=device.type == "cuda") for part in batch]
        if noise is not None:
            batch.append(share(torch.randn(size, noise, generator=generator, device=device)))
        if far and guesses:  # what waits for the GPU waits in the reader's thread
            following = rows(torch.Generator(device).set_state(generator.get_state()))
            submitted = _reader(os.getpid()).submit(read, following, device)
            ahead[id(generator)] = _when(generator), submitted
            if len(ahead) > GENERATORS:  # the oldest has long been forgotten
                ahead.pop(next(iter(ahead)))
        elif far:
            ahead[id(generator)] = None
        return tuple(batch)

    return draw


@cache
def _reader(process: int) -> ThreadPoolExecutor:
    """Return the thread that reads ahead; a forked process does not inherit its parent's."""
    return ThreadPoolExecutor(1, "minibatches")


def _when(generator: torch.Generator) -> When:
    """Return the process, whose fork has no reader yet, and the state of its generator."""
    return os.getpid(), generator.get_state().numpy().tobytes()


def _rows(data: Tensor | Dataset[Any], rows: Tensor) -> Tensor:
    if isinstance(data, Tensor):
        return data[rows.to(data.device)]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(data.__getitem__, rows.tolist()))
    first = (row[0] if isinstance(row, tuple) else row for row in read)
    return torch.stack([torch.as_tensor(part) for part in first])
