"""Where the weights of a game are: the networks under one roof, and the weights of all copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minimax.errors import Words, refuse
from minimax.evaluation import evaluating
from minimax.game.player import Player

State = dict[str, Tensor]


class Arena(nn.Module):
    """All networks of a game under one roof, so that functional_call can exchange their weights.

    A network that is part of another one is left out: it is there already.
    """

    def __init__(self, players: Sequence[Player]) -> None:
        super().__init__()
        unique = {id(module): module for player in players for module in player.modules}  # type: ignore[union-attr]
        inner = {
            id(part)
            for module in unique.values()
            for part in module.modules()
            if part is not module
        }
        self.networks = nn.ModuleList(m for own, m in unique.items() if own not in inner)

    def forward(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, which uses the networks."""
        return function(*inputs)

    def state(self) -> State:
        """Return all weights and buffers by name."""
        return dict(self.named_parameters()) | dict(self.named_buffers())

    def put(self, state: State) -> None:
        """Copy ``state`` into the networks."""
        with torch.no_grad():
            for name, own in self.state().items():
                own.copy_(state[name])

    def places(self) -> dict[str, str]:
        """Return the name in ``state`` of what is in each place: what is shared has several."""
        names = {id(value): name for name, value in self.state().items()}
        return {
            f"{prefix}.{own}": names[id(value)]
            for prefix, part in self.named_modules()
            for own, value in [*part._parameters.items(), *part._buffers.items()]
            if value is not None
        }

    def using(self, places: dict[str, str], state: State, function: Any, *inputs: Tensor) -> Any:
        """Return ``function(*inputs)`` with ``state`` in the networks' ``places``."""
        # functional_call would tie names by itself, and swap a place that has two of them twice.
        filled = {place: state[name] for place, name in places.items()}
        return functional_call(self, filled, (function, *inputs), tie_weights=False)


@dataclass(frozen=True)
class Weights:
    """The weights and buffers of a game, of all its copies, and how to look through them.

    ``averaged`` has the moving averages in place of the weights of those players that keep one.
    """

    arena: Arena
    copies: int | None
    raw: State
    averages: State

    def kept(self) -> "Weights":
        """Return the same weights, which no later game changes."""
        raw, averages = (
            {name: value.detach().clone() for name, value in state.items()}
            for state in (self.raw, self.averages)
        )
        return Weights(self.arena, self.copies, raw, averages)

    def _chosen(self, averaged: bool) -> State:
        if averaged and not self.averages:
            refuse("averaged", True, "False where no player keeps an average (Player.average)")
        return self.raw | self.averages if averaged else self.raw

    def each(
        self,
        function: Callable[[], Tensor | float],
        averaged: bool = False,
        called: str = "function",
    ) -> Tensor:
        """Return what ``function`` gives with each copy's weights in place, stacked."""
        state, places = self._chosen(averaged), self.arena.places()
        with torch.no_grad(), evaluating(self.arena):
            if self.copies is None:
                return _numbers(called, self.arena.using(places, state, function)).clone()
            results = []
            for copy in range(self.copies):
                one = {name: value[copy] for name, value in state.items()}
                results.append(_numbers(called, self.arena.using(places, one, function)))
            return torch.stack(results)

    def load(self, copy: int, averaged: bool) -> None:
        """Put the weights of ``copy`` into the networks."""
        state = self._chosen(averaged)
        if self.copies is not None:
            state = {name: value[copy] for name, value in state.items()}
        self.arena.put(state)


def _numbers(called: str, given: object) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        refuse(called, Words(f"giving {given!r}"), "a function that gives a tensor or numbers")
