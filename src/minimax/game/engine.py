"""One round of a game: turns, gradients, copies, precision, and its capture as a CUDA graph."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from minimax.errors import Words, refuse
from minimax.game.checkpoints import Checkpoint
from minimax.game.parallel import average, joint_loss
from minimax.game.player import Batch, Batches, Player, processes
from minimax.networks import evaluating

State = dict[str, Tensor]
WARM_UP = 3  # eager rounds before a capture: in them, optimisers and libraries make their buffers


class Arena(nn.Module):
    """All networks of a game under one roof, so that functional_call can exchange their weights."""

    def __init__(self, players: Sequence[Player]) -> None:
        super().__init__()
        unique = {id(module): module for player in players for module in player.modules}  # type: ignore[union-attr]
        self.networks = nn.ModuleList(unique.values())

    def forward(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, which uses the networks."""
        return function(*inputs)

    def state(self) -> State:
        """Return all weights and buffers by name."""
        return dict(self.named_parameters()) | dict(self.named_buffers())


class Side:
    """A player at work: its weights (of all copies), their optimiser, their moving average."""

    def __init__(self, player: Player, state: State) -> None:
        self.player = player
        self.weights = [value for value in state.values() if value.requires_grad]
        if not self.weights:
            refuse("modules", Words(f"without weights to move (player {player.name!r})"), "a model")
        self.optimiser = player.optimiser(self.weights, **self._options())
        self.optimiser.zero_grad()  # what somebody else left there
        keeps = player.average is not None
        self.sources = {k: v for k, v in state.items() if keeps and v.is_floating_point()}
        self.averaged = {name: value.detach().clone() for name, value in self.sources.items()}

    def _options(self) -> dict[str, Any]:
        player = self.player
        takes = inspect.signature(player.optimiser).parameters
        options: dict[str, Any] = {"lr": player.lr}
        if player.betas is not None:
            options["betas"] = player.betas
        # One pass over the weights instead of a dozen, unless the caller has chosen otherwise.
        if all(name in takes and takes[name].default is None for name in ("fused", "foreach")):
            options["fused"] = True
        if self.weights[0].is_cuda and "capturable" in takes:
            rate = torch.tensor(float(player.lr), device=self.weights[0].device)
            options |= {"capturable": True, "lr": rate}  # a graph reads the rate from memory
        return options

    def refuse_loss(self, got: object, allowed: str) -> NoReturn:
        """Raise ValueError that names this player's loss."""
        refuse(f"the loss of player {self.player.name!r}", Words(got), allowed)

    def step(self, loss: Tensor, stacked: bool) -> None:
        """Move the weights down ``loss``, whose gradient reaches nothing else; then the average."""
        if loss.requires_grad:
            loss.backward(inputs=self.weights)
        if all(weight.grad is None for weight in self.weights):
            self.refuse_loss("constant in its weights", "a function of the player's networks")
        if self.player.clip is not None:
            clip([w.grad for w in self.weights if w.grad is not None], self.player.clip, stacked)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.player.average is not None:
            average, now = list(self.averaged.values()), list(self.sources.values())
            with torch.no_grad():
                torch._foreach_lerp_(average, now, 1 - self.player.average)


def clip(gradients: Sequence[Tensor], bound: float, stacked: bool) -> None:
    """Scale the gradients of each copy, in place, so that their joint norm is at most ``bound``."""
    start = 1 if stacked else 0
    norm = torch.stack([g.flatten(start).square().sum(-1) for g in gradients]).sum(0).sqrt()
    factor = (bound / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(factor.shape + (1,) * (gradient.dim() - start)))


class Game:
    """A game in play: its state, and how it advances by a round."""

    def __init__(
        self, players: Sequence[Player], copies: int | None, seed: int,
        initialise: Callable[[nn.Module], None], bf16: bool, channels_last: bool, compile: bool,
    ) -> None:  # fmt: skip
        self.arena = Arena(players)
        self.copies, self.seed = copies, seed
        self.bf16, self.channels_last = bf16, channels_last
        if channels_last:
            self.arena.to(memory_format=torch.channels_last)
        own = self.arena.state()
        devices = {value.device for value in own.values()}
        if len(devices) != 1:
            got = Words(f"on {', '.join(sorted(map(str, devices))) or 'no device'}")
            refuse("modules", got, "models whose weights lie on one device")
        self.device = devices.pop()
        self.flags = {name: value.requires_grad for name, value in own.items()}
        self.state = own if copies is None else self._stacked(initialise, copies)
        self.generators = [
            torch.Generator(self.device).manual_seed(_another(seed + copy))
            for copy in range(copies or 1)
        ]
        self.sides = []
        for player in players:
            held = {id(value) for value in Arena([player]).state().values()}
            mine = {name: self.state[name] for name, value in own.items() if id(value) in held}
            self.sides.append(Side(player, mine))
        objectives = [self._objective(player) for player in players]
        self.objectives = [torch.compile(o) for o in objectives] if compile else objectives
        self.turns = max(player.turns for player in players)

    def _stacked(self, initialise: Callable[[nn.Module], None], copies: int) -> State:
        """Return the weights of all copies, each drawn under its own seed."""
        drawn = []
        with self.undisturbed(), torch.no_grad():
            for copy in range(copies):
                torch.manual_seed(self.seed + copy)
                for network in self.arena.networks:
                    initialise(network)
                drawn.append({name: v.detach().clone() for name, v in self.arena.state().items()})
        return {
            name: torch.stack([one[name] for one in drawn]).requires_grad_(flag)
            for name, flag in self.flags.items()
        }

    def _objective(self, player: Player) -> Callable[..., Tensor]:
        """Return ``player``'s loss of the batch; for copies, of the stack of their batches."""
        if self.copies is None:
            return player.loss if processes() == 1 else joint_loss(player)

        def one(state: State, batch: Batch) -> Tensor:
            return functional_call(self.arena, state, (player.loss, *batch))

        each = vmap(one, randomness="different")
        return lambda *batch: each(self.state, batch)

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
        if self.copies is not None:
            self.load(0, averaged=False)

    def draw(self, batches: Batches) -> Batch:
        """Return the next batch; for copies, a stack of one batch each."""
        drawn = [batches(generator) for generator in self.generators]
        if not isinstance(drawn[0], tuple):
            refuse(
                "batches", Words(f"giving {type(drawn[0]).__name__}"), "giving tuples of tensors"
            )
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
        losses = []
        for side, objective in zip(self.sides, self.objectives, strict=True):
            for value in self.state.values():  # what is not moved needs no graph
                value.requires_grad_(False)
            for weight in side.weights:
                weight.requires_grad_(True)
            parts = []
            for batch in drawn[: side.player.turns]:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    loss = objective(*batch)
                if not isinstance(loss, Tensor) or loss.dim() != (self.copies is not None):
                    side.refuse_loss(self._described(loss), "a tensor with a single number")
                side.step(loss.sum(), stacked=self.copies is not None)
                parts.append(loss.detach().float())
            losses.append(torch.stack(parts).mean(0))
        return average(torch.stack(losses))

    def _described(self, loss: object) -> object:
        if not isinstance(loss, Tensor):
            return loss
        return f"of shape {tuple(loss.shape[self.copies is not None :])}"

    def set_rates(self, progress: float) -> None:
        """Set the learning rates for a game of which the share ``progress`` is over."""
        for side in self.sides:
            if side.player.schedule is None:
                continue
            rate = side.player.lr * side.player.schedule(progress)
            for group in side.optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _weights(self, averaged: bool) -> State:
        if not averaged:
            return self.state
        if not any(side.averaged for side in self.sides):
            refuse("averaged", True, "False where no player keeps an average (Player.average)")
        return self.state | {k: v for side in self.sides for k, v in side.averaged.items()}

    def each(self, function: Callable[[], Tensor | float], averaged: bool = False) -> Tensor:
        """Return what ``function`` gives with each copy's weights in place, stacked."""
        state = self._weights(averaged)
        with torch.no_grad(), evaluating(self.arena):
            if self.copies is None:
                return torch.as_tensor(functional_call(self.arena, state, (function,))).clone()
            results = []
            for copy in range(self.copies):
                one = {name: value[copy] for name, value in state.items()}
                results.append(torch.as_tensor(functional_call(self.arena, one, (function,))))
            return torch.stack(results)

    def load(self, copy: int, averaged: bool) -> None:
        """Put the weights of ``copy`` into the networks."""
        weights = self._weights(averaged)
        with torch.no_grad():
            for name, own in self.arena.state().items():
                own.copy_(weights[name] if self.copies is None else weights[name][copy])

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this game from others."""
        players = [
            {
                "name": side.player.name,
                "weights": [list(weight.shape) for weight in side.weights],
                "optimiser": type(side.optimiser).__name__,
                "lr": side.player.lr,
                "betas": side.player.betas and list(side.player.betas),
                "turns": side.player.turns,
                "clip": side.player.clip,
                "average": side.player.average,
            }
            for side in self.sides
        ]
        return {"copies": self.copies, "seed": self.seed, "bf16": self.bf16, "players": players}

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

    def restore(self, found: Checkpoint) -> None:
        """Take up the state of a checkpoint."""
        tensors = found.tensors
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
        for generator, state in zip(self.generators, tensors["random/batches"], strict=True):
            generator.set_state(state.clone())  # torch crashes on a row of a larger tensor
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)


def _another(seed: int) -> int:
    """Return a second seed: batches must not repeat the numbers that drew the weights."""
    return (seed + 1) * 2_654_435_761 % 2**32


class Captured:
    """A round as a CUDA graph: the first few run as they are, then one is captured and replayed."""

    def __init__(self, game: Game) -> None:
        self.game, self.played = game, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        fixed = [
            type(side.optimiser).__name__
            for side in game.sides
            if not side.optimiser.defaults.get("capturable")
        ]
        self.off = bool(fixed)
        if fixed:
            self._warn(f"{' and '.join(fixed)} can't be captured")

    def _warn(self, why: str) -> None:
        warnings.warn(f"No CUDA graph, rounds run one by one: {why}.", stacklevel=4)

    def round(self, drawn: Sequence[Batch]) -> Tensor:
        """Play one round on the batches ``drawn``, and return the losses, as ``Game.round``."""
        self.played += 1
        if self.graph is None and not self.off and self.played > WARM_UP:
            self._capture(drawn)
        if self.graph is None:
            return self.game.round(drawn)
        for static, batch in zip(self.inputs, drawn, strict=True):
            for place, value in zip(static, batch, strict=True):
                place.copy_(value)
        self.graph.replay()
        return self.losses

    def _capture(self, drawn: Sequence[Batch]) -> None:
        self.inputs = [tuple(part.clone() for part in batch) for batch in drawn]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.losses = self.game.round(self.inputs)
        except RuntimeError as error:  # a loss that waits for the GPU, most often
            self.off = True
            self._warn(str(error).splitlines()[0])
        else:
            self.graph = graph
