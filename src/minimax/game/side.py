"""A player at work: how it steps, and when it does not."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from minimax.errors import Words, check_number, refuse
from minimax.game.arena import State
from minimax.game.player import Player

LARGE = 1e15  # beyond it a step, or the square that Adam keeps of it, may overflow
# Optimisers that move each weight by its own gradient alone, so that copies can be stacked.
ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in "ASGD Adadelta Adagrad Adam Adamax AdamW NAdam RAdam RMSprop Rprop SGD".split()
)
HOW = ("foreach", "fused", "capturable", "differentiable")  # options of speed, not of the game


Gradients = Sequence[Tensor | None] | None  # one for each weight, or none: still to be computed


class NotFinite(ArithmeticError):
    """The ``what`` (loss, gradient, step) of a player, and of a copy if there are copies, is bad.

    ``losses`` are those of the step that was not taken, () or (copies,).
    """

    def __init__(self, player: int, what: str, copy: int | None, losses: Tensor) -> None:
        super().__init__(what)
        self.player, self.what, self.copy, self.losses = player, what, copy, losses


class Side:
    """A player at work: its weights (of all copies), their optimiser, their moving average."""

    def __init__(self, index: int, player: Player, state: State, stacked: bool) -> None:
        self.index, self.player, self.stacked = index, player, stacked
        self.weights = [value for value in state.values() if value.requires_grad]
        if not self.weights:
            refuse("modules", Words(f"without weights to move (player {player.name!r})"), "a model")
        self.optimiser = self._optimiser()
        self.optimiser.zero_grad()  # what somebody else left there
        keeps = player.average is not None
        self.sources = {k: v for k, v in state.items() if keeps and v.is_floating_point()}
        self.averaged = {name: value.detach().clone() for name, value in self.sources.items()}

    def _optimiser(self) -> torch.optim.Optimizer:
        player = self.player
        takes = inspect.signature(player.optimiser).parameters
        options: dict[str, Any] = {"lr": player.lr}
        if player.betas is not None:
            kinds = [parameter.kind for parameter in takes.values()]
            if "betas" not in takes and inspect.Parameter.VAR_KEYWORD not in kinds:
                refuse("betas", player.betas, f"None: {_name(player.optimiser)} takes none")
            options["betas"] = player.betas
        # One pass over the weights instead of a dozen, unless the caller has chosen otherwise.
        if all(name in takes and takes[name].default is None for name in ("fused", "foreach")):
            options["fused"] = True
        if self.weights[0].is_cuda and "capturable" in takes:
            rate = torch.tensor(float(player.lr), device=self.weights[0].device)
            options |= {"capturable": True, "lr": rate}  # a graph reads the rate from memory
        try:
            made = player.optimiser(self.weights, **options)
        except (TypeError, ValueError) as error:
            why = f"one of torch.optim that takes these weights and options ({error})"
            refuse("optimiser", Words(_name(player.optimiser)), why)
        if isinstance(made, torch.optim.SparseAdam) or not _steps_alone(made):
            allowed = "one that steps by dense gradients, without a closure"
            refuse("optimiser", Words(type(made).__name__), allowed)
        if self.stacked and not isinstance(made, ELEMENTWISE):
            known = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            refuse("optimiser", Words(type(made).__name__), f"with copies, one of {known}")
        return made

    def refuse_loss(self, got: object, allowed: str) -> NoReturn:
        """Raise ValueError that names this player's loss."""
        refuse(f"the loss of player {self.player.name!r}", Words(str(got)), allowed)

    def step(self, losses: Tensor, gradients: Gradients = None) -> None:
        """Move the weights down ``losses``, () or (copies,), or ``gradients``; then the average.

        The gradient reaches nothing else. On a CPU, a step with a loss or a gradient that is not
        finite is not taken: it raises NotFinite.
        """
        if gradients is not None:
            self._put(gradients)
        elif losses.requires_grad:
            losses.sum().backward(inputs=self.weights)
        found = [weight.grad for weight in self.weights if weight.grad is not None]
        if not found:
            self.refuse_loss("constant in its weights", "a function of the player's networks")
        if any(gradient.is_sparse for gradient in found):
            self.refuse_loss("with a sparse gradient", "one with dense gradients")
        on_cpu = losses.device.type == "cpu"
        size = self._checked(losses.detach(), found) if on_cpu else 0.0
        if self.player.clip is not None:
            clip(found, self.player.clip, self.stacked)
        rates = (float(group["lr"]) for group in self.optimiser.param_groups)
        if on_cpu and size * max(1.0, *rates) > LARGE:
            self._step_with_care(losses.detach())
        else:
            self.optimiser.step()
        self.optimiser.zero_grad()
        if self.player.average is not None:
            average, now = list(self.averaged.values()), list(self.sources.values())
            with torch.no_grad():
                torch._foreach_lerp_(average, now, 1 - self.player.average)

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is not None and gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight).copy_(gradient)  # as optimisers want it
            weight.grad = gradient

    def _checked(self, losses: Tensor, gradients: list[Tensor]) -> float:
        """Return how large the gradients are; raise NotFinite if they or the losses are bad."""
        size = sum(torch._foreach_norm(gradients), losses.sum().abs()).item()
        if math.isfinite(size):
            return size
        if not losses.isfinite().all():
            self._stop("loss", ~losses.isfinite(), losses)
        bad = self._bad(gradients, losses)
        if bad.any():
            self._stop("gradient", bad, losses)
        return math.inf  # a norm can overflow where no gradient does

    def _step_with_care(self, losses: Tensor) -> None:
        before = [weight.detach().clone() for weight in self.weights]
        kept = copy.deepcopy(self.optimiser.state_dict())
        self.optimiser.step()
        slots = [
            slot
            for weight in self.weights
            for slot in self.optimiser.state[weight].values()
            if isinstance(slot, Tensor) and slot.shape == weight.shape
        ]
        bad = self._bad([*self.weights, *slots], losses)
        if bad.any():
            with torch.no_grad():
                torch._foreach_copy_(self.weights, before)
            self.optimiser.load_state_dict(kept)
            self._stop("step", bad, losses)

    def _bad(self, tensors: Sequence[Tensor], losses: Tensor) -> Tensor:
        """Return whether something in ``tensors`` is not finite, of the shape of ``losses``."""
        rows = (tensor.detach().reshape(*losses.shape, -1) for tensor in tensors)
        return torch.stack([~row.isfinite().all(-1) for row in rows]).any(0)

    def _stop(self, what: str, bad: Tensor, losses: Tensor) -> NoReturn:
        self.optimiser.zero_grad()
        copy = int(bad.nonzero()[0]) if self.stacked else None
        raise NotFinite(self.index, what, copy, losses)

    def fingerprint(self, rounds: int) -> dict[str, Any]:
        """Return what tells this player from others in a game of ``rounds``."""
        player, schedule = self.player, self.player.schedule
        shares = [now / rounds for now in range(0, rounds, -(-rounds // 100))]
        rates = schedule and [check_number("schedule", schedule(share)) for share in shares]
        defaults = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.optimiser.defaults.items()
            if name not in HOW and isinstance(value, (bool, int, float, str, tuple, type(None)))
        }
        return {
            "name": player.name,
            "weights": [list(weight.shape) for weight in self.weights],
            "optimiser": type(self.optimiser).__name__,
            "options": defaults | {"lr": player.lr},
            "turns": player.turns,
            "schedule": rates,
            "clip": player.clip,
            "average": player.average,
        }


def _name(optimiser: Callable[..., Any]) -> str:
    return getattr(getattr(optimiser, "func", optimiser), "__name__", repr(optimiser))


def _steps_alone(optimiser: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimiser.step).parameters.get("closure")
    return closure is None or closure.default is not inspect.Parameter.empty


def clip(gradients: Sequence[Tensor], bound: float, stacked: bool) -> None:
    """Scale the gradients of each copy, in place, so that their joint norm is at most ``bound``."""
    lead = 1 if stacked else 0
    flat = [g.reshape(*g.shape[:lead], -1).double() for g in gradients]  # squares can overflow
    norm = torch.stack([g.square().sum(-1) for g in flat]).sum(0).sqrt()
    factor = (bound / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(factor.shape + (1,) * (gradient.dim() - lead)).to(gradient))
