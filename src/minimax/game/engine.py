"""One round of a game: turns, gradients, copies and precision."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.parametrizations import _SpectralNorm

from minimax.errors import Words, check_number, refuse
from minimax.game.arena import Arena, State, Weights
from minimax.game.capture import Traced
from minimax.game.checkpoints import Checkpoint
from minimax.game.parallel import average, joint_loss
from minimax.game.player import Batch, Batches, Player, processes
from minimax.game.side import Gradients, NotFinite, Side


def seed_of(seed: int, copy: int) -> int:
    """Return the seed of a copy in the game with ``seed``: both hashed to 32 bits.

    So games of neighbouring seeds have practically no copy in common. Introduced in *The minimax
    game*.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{copy}".encode()).digest()[:4], "big")


def bf16_pays(device: torch.device) -> bool:
    """Return whether ``device`` computes in bfloat16 by itself; without, it is far slower.

    Introduced in *DCGAN*.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Game:
    """A game in play: its state, and how it advances by a round."""

    def __init__(
        self, players: Sequence[Player], copies: int | None, seed: int,
        initialise: Callable[[nn.Module], None], bf16: bool | None, channels_last: bool,
        graph: bool = False, compile: bool = False,
    ) -> None:  # fmt: skip
        self.arena = Arena(players)
        self.copies, self.seed, self.wants_bf16 = copies, seed, bf16
        self.channels_last, self.begun = channels_last, False
        if copies is not None and any(isinstance(m, _SpectralNorm) for m in self.arena.modules()):
            refuse("copies", copies, "None with spectral_norm, which works in place")
        if channels_last:
            self.arena.to(memory_format=torch.channels_last)
        own = self.arena.state()
        devices = {value.device for value in own.values()}
        if len(devices) != 1:
            got = Words(f"on {', '.join(sorted(map(str, devices))) or 'no device'}")
            refuse("modules", got, "models whose weights lie on one device")
        self.device = devices.pop()
        self.bf16 = bf16 is not False and bf16_pays(self.device)
        if bf16 and not self.bf16:
            text = "This processor has no instructions for bfloat16: the game is played in 32 bits."
            warnings.warn(text, stacklevel=3)
        self.flags = {name: value.requires_grad for name, value in own.items()}
        self.seeds = [seed] if copies is None else [seed_of(seed, copy) for copy in range(copies)]
        self.state = own if copies is None else self._stacked(initialise)
        self.generators = [
            torch.Generator(self.device).manual_seed(_another(one)) for one in self.seeds
        ]
        self.sides = []
        for index, player in enumerate(players):
            held = {id(value) for value in Arena([player]).state().values()}
            mine = {name: self.state[name] for name, value in own.items() if id(value) in held}
            self.sides.append(Side(index, player, mine, stacked=copies is not None))
        self.objectives = [self._objective(player) for player in players]
        trace = compile or (graph and self.device.type == "cpu")
        alone = processes() == 1  # what several processes tell each other can't be traced
        sides = self.sides if trace and alone else []
        self.programs = [Traced(self.loss, self.state, side, compile) for side in sides]
        self.turns = max(player.turns for player in players)
        # What a bad batch spoils before its loss is known: statistics of a normalisation, say.
        self.buffers = [self.state[name] for name in dict(self.arena.named_buffers())]
        self.before = [buffer.clone() for buffer in self.buffers]

    def _stacked(self, initialise: Callable[[nn.Module], None]) -> State:
        """Return the weights of all copies, each drawn under its own seed."""
        drawn: list[State] = []
        before = {name: value.detach().clone() for name, value in self.arena.state().items()}
        with self.undisturbed(), torch.no_grad():
            for seed in self.seeds:
                torch.manual_seed(seed)
                try:
                    for network in self.arena.networks:
                        initialise(network)
                    now = self.arena.state()
                    drawn.append({name: value.detach().clone() for name, value in now.items()})
                finally:
                    self.arena.put(before)  # what is not drawn is the same for all copies
        if self.copies != 1:
            self._check_drawn(*drawn[:2])
        return {
            name: torch.stack([one[name] for one in drawn]).requires_grad_(flag)
            for name, flag in self.flags.items()
        }

    def _check_drawn(self, one: State, other: State) -> None:
        """Refuse a rule that draws past parametrisations: their weights would be alike."""
        parts: dict[str, list[str]] = {}
        for name in one:
            module, found, rest = name.partition(".parametrizations.")
            if found:
                parts.setdefault(f"{module}.{rest.partition('.')[0]}", []).append(name)
        for weight, names in parts.items():
            alike = all(torch.equal(one[name], other[name]) for name in names)
            if alike and any(self.flags[name] for name in names):
                allowed = "a function that draws it, through its parametrisation"
                refuse("initialise", Words(f"leaving {weight} alike in all copies"), allowed)

    def _objective(self, player: Player) -> Callable[[State, Batch], Tensor]:
        """Return ``player``'s loss of weights and a batch; for copies, of stacks of both."""
        if processes() > 1:
            together = joint_loss(player)
            return lambda state, batch: together(*batch)

        places = self.arena.places()

        def one(state: State, batch: Batch) -> Tensor:
            if state is self.state:  # the networks hold it
                return player.loss(*batch)
            return self.arena.using(places, state, player.loss, *batch)

        return one if self.copies is None else vmap(one, randomness="different")

    def loss(self, side: Side, state: State, batch: Batch) -> Tensor:
        """Return the loss of ``side`` on ``batch`` with ``state`` in the networks; for copies, all.

        Raises ValueError if it is not a single number.
        """
        # Without a cache: it would keep casts that were made without gradients.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            loss = self.objectives[side.index](state, batch)
        if not isinstance(loss, Tensor) or loss.dim() != (self.copies is not None):
            side.refuse_loss(self._described(loss), "a tensor with a single number")
        return loss

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Give torch's global random numbers back as they were."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Seed what the losses draw; in the end, the weights get their own flags back."""
        try:
            with self.undisturbed():
                torch.manual_seed(self.seed)
                yield
        finally:
            for name, value in self.state.items():
                value.requires_grad_(self.flags[name])
            if self.copies is not None and self.begun:  # after an interruption too
                self.weights().load(0, averaged=False)

    def weights(self) -> Weights:
        """Return the weights as they are now; they change with the game."""
        averages = {k: v for side in self.sides for k, v in side.averaged.items()}
        return Weights(self.arena, self.copies, self.state, averages)

    def draw(self, batches: Batches) -> Batch:
        """Return the next batch; for copies, a stack of one batch each."""
        drawn = [batches(generator) for generator in self.generators]
        batch = drawn[0]
        if not isinstance(batch, tuple) or not all(isinstance(part, Tensor) for part in batch):
            got = Words(f"giving {type(batch).__name__}")
            refuse("batches", got, "giving tuples of tensors")
        if self.copies is not None:
            return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
        if self.channels_last:
            layout = torch.channels_last
            return tuple(t.to(memory_format=layout) if t.dim() == 4 else t for t in drawn[0])
        return drawn[0]

    def round(self, drawn: Sequence[Batch]) -> Tensor:
        """Let each player take its turns on the batches ``drawn``, and return the losses.

        Their shape is (players,), or (players, copies).
        """
        losses, self.begun = [], True
        for side in self.sides:
            for value in self.state.values():  # what is not moved needs no graph
                value.requires_grad_(False)
            for weight in side.weights:
                weight.requires_grad_(True)
            parts = []
            for batch in drawn[: side.player.turns]:
                if self.buffers and self.device.type == "cpu":
                    torch._foreach_copy_(self.before, self.buffers)
                loss, gradients = self._differentiated(side, batch)
                try:
                    side.step(loss, gradients)
                except NotFinite:
                    if self.buffers:
                        torch._foreach_copy_(self.buffers, self.before)
                    raise
                parts.append(loss.detach().float())
            losses.append(torch.stack(parts).mean(0))
        return average(torch.stack(losses))

    def _differentiated(self, side: Side, batch: Batch) -> tuple[Tensor, Gradients]:
        if self.programs:
            return self.programs[side.index](batch)
        return self.loss(side, self.state, batch), None

    def _described(self, loss: object) -> object:
        if not isinstance(loss, Tensor):
            return loss
        return f"of shape {tuple(loss.shape[self.copies is not None :])}"

    def set_rates(self, progress: float) -> None:
        """Set the learning rates for a game of which the share ``progress`` is over."""
        for side in self.sides:
            if side.player.schedule is None:
                continue
            rate = side.player.lr * check_number("schedule", side.player.schedule(progress))
            for group in side.optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def fingerprint(self, rounds: int, key: str | None) -> dict[str, Any]:
        """Return what tells this game from others; its length counts only for a schedule."""
        scheduled = any(side.player.schedule is not None for side in self.sides)
        return {
            "key": key,
            "copies": self.copies,
            "seed": self.seed,
            "bf16": self.wants_bf16,
            "rounds": rounds if scheduled else None,
            "state": {k: [str(value.dtype), *value.shape] for k, value in self.state.items()},
            "players": [side.fingerprint(rounds) for side in self.sides],
        }

    def saved(self) -> State:
        """Return all that decides how the game goes on."""
        tensors = {f"state/{name}": value for name, value in self.state.items()}
        for side in self.sides:
            name = side.player.name
            tensors |= {f"average/{name}/{key}": value for key, value in side.averaged.items()}
            for index, slots in side.optimiser.state_dict()["state"].items():
                for slot, value in slots.items():
                    if value is not None:
                        tensors[f"optimiser/{name}/{index}/{slot}"] = torch.as_tensor(value)
        tensors["random/batches"] = torch.stack([g.get_state() for g in self.generators])
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def resume(
        self, found: Checkpoint, batches: Batches, compare: Callable[..., None]
    ) -> list[Batch]:
        """Take up a checkpoint and draw the next batches.

        If ``compare`` refuses them, the weights are put back as they were.
        """
        before = {name: value.detach().clone() for name, value in self.state.items()}
        self.restore(found)
        self.restore_random(found)
        try:
            drawn = [self.draw(batches) for _ in range(self.turns)]
            compare(found, drawn[0])
        except BaseException:
            self.begun = False
            with torch.no_grad():
                for name, value in self.state.items():
                    value.copy_(before[name])
            raise
        return drawn

    def restore(self, found: Checkpoint) -> None:
        """Take up the state of a checkpoint, but for its random numbers."""
        tensors, self.begun = found.tensors, True
        with torch.no_grad():
            for name, value in self.state.items():
                value.copy_(tensors[f"state/{name}"])
            for side in self.sides:
                for name, value in side.averaged.items():
                    value.copy_(tensors[f"average/{side.player.name}/{name}"])
        for side in self.sides:
            start = f"optimiser/{side.player.name}/"
            slots: dict[int, State] = {}
            for key, value in tensors.items():
                if key.startswith(start):
                    index, slot = key.removeprefix(start).split("/")
                    weight = side.weights[int(index)]
                    if value.shape == weight.shape:  # in its layout: fused optimisers need that
                        value = torch.empty_like(weight).copy_(value)
                    slots.setdefault(int(index), {})[slot] = value
            groups = side.optimiser.state_dict()["param_groups"]
            side.optimiser.load_state_dict({"state": slots, "param_groups": groups})

    def restore_random(self, found: Checkpoint) -> None:
        """Take up the random numbers of a checkpoint.

        Those of another kind of device can't go on; then new ones begin that hang on the round.
        """
        states = found.tensors["random/batches"]
        if states.shape[1] == len(self.generators[0].get_state()):
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state.clone())  # torch crashes on a row of a larger tensor
        else:
            for generator, seed in zip(self.generators, self.seeds, strict=True):
                generator.manual_seed(seed_of(seed, found.round))
        torch.set_rng_state(found.tensors["random/cpu"])
        if self.device.type == "cuda":
            if "random/cuda" in found.tensors:
                torch.cuda.set_rng_state(found.tensors["random/cuda"], self.device)
            else:
                torch.cuda.manual_seed(seed_of(self.seed, found.round))


def _another(seed: int) -> int:
    """Return a second seed: batches must not repeat the numbers that drew the weights."""
    return (seed + 1) * 2_654_435_761 % 2**32
