"""What Salimans et al. (2016) add to the game to keep it steady: each can be switched on by itself.

The layers go into a discriminator or a generator, the players into ``play``.

Floor 3; called by the book, gans.
"""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from minimax.errors import Words, check_count, check_made, check_number, refuse
from minimax.game import GameOptions, Player, per_player


def smoothed(
    D: nn.Module, G: nn.Module, target: float = 0.9, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the non-saturating game with one-sided label smoothing.

    Salimans et al. (2016), section 3.4: D is to answer ``target`` to data, and still 0 to samples,
    so that it never grows sure: its best answer is target · p / (p + q). A batch is (real, noise).
    Raises ValueError unless 0 < target ≤ 1. Introduced in *Mode collapse*.
    """
    target = check_number("target", target)
    if not 0 < target <= 1:
        refuse("target", target, "above 0 and at most 1")

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        at_data, at_samples = D(real), D(G(noise))
        on_data = target * softplus(-at_data) + (1 - target) * softplus(at_data)
        return on_data.mean() + softplus(at_samples).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(G(noise))).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


def feature_matching(
    body: nn.Module, head: nn.Module, G: nn.Module, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the game in which G matches the mean of D's features instead of fooling D.

    Salimans et al. (2016), section 3.1: D = head ∘ body plays as always; G minimises
    ‖E body(x) − E body(G(z))‖². A batch is (real, noise). The losses raise ValueError for samples
    of another shape than the data's. Introduced in *Mode collapse*.
    """

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        at_data, made = head(body(real)), check_made("G", G(noise), len(noise), real)
        return softplus(-at_data).mean() + softplus(head(body(made))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        at_data, made = body(real), check_made("G", G(noise), len(noise), real)
        return (at_data.mean(0) - body(made).mean(0)).square().sum()

    d, g = per_player(options, "d", "g")
    return [Player([body, head], discriminator_loss, **d), Player(G, generator_loss, **g)]


class MinibatchDiscrimination(nn.Module):
    """Appends to each row how near the other rows of its batch are: (N, in) to (N, in + kernels).

    Salimans et al. (2016), section 3.2: M_i = T f(x_i) has ``kernels`` rows of ``dimensions``, and
    o_ib = Σ_j exp(−‖M_ib − M_jb‖₁), j ≠ i. Data and samples have to come in separate batches.
    Introduced in *Mode collapse*.
    """

    def __init__(self, features: int, kernels: int = 100, dimensions: int = 5) -> None:
        super().__init__()
        check_count("features", features)
        self.shape = (check_count("kernels", kernels), check_count("dimensions", dimensions))
        self.T = nn.Linear(features, kernels * dimensions, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        """Return the features with their closeness."""
        # (kernels, dimensions, N): long rows of numbers, which a processor sums at once.
        M = self.T(f).view(len(f), *self.shape).permute(1, 2, 0).contiguous()
        near = torch.exp(-(M[..., :, None] - M[..., None, :]).abs().sum(1))  # (kernels, N, N)
        return torch.cat([f, near.sum(2).T - 1], 1)  # without itself, whose closeness is 1


class HistoricalAverage(nn.Module):
    """Remembers the mean of a network's past weights, as a term of its loss.

    Salimans et al. (2016), section 3.3: ‖θ − (1/t) Σ θ[i]‖². It is one of its player's modules, and
    each call of ``penalty`` counts as a step. Introduced in *Mode collapse*.
    """

    steps: Tensor
    mean: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        size = sum(weight.numel() for weight in network.parameters())
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))

    def reset_parameters(self) -> None:
        """Forget the past."""
        self.steps.zero_()
        self.mean.zero_()

    def penalty(self, network: nn.Module) -> Tensor:
        """Return the squared distance of ``network``'s weights from their mean, and count them."""
        weights = torch.cat([weight.flatten() for weight in network.parameters()])
        if weights.shape != self.mean.shape:
            got = Words(f"with {len(weights)} weights")
            refuse("network", got, f"one with {len(self.mean)}, as the one it was made for")
        with torch.no_grad():
            self.steps += 1
            self.mean += (weights.detach() - self.mean) / self.steps
        return (weights - self.mean.clone()).square().sum()


def with_history(players: list[Player], weight: float = 1.0) -> list[Player]:
    """Return ``players`` who each pay ``weight`` times their distance from their past average.

    All else about them stays. Raises ValueError for a negative weight. Introduced in *Mode
    collapse*.
    """
    weight = check_number("weight", weight)

    def paying(player: Player) -> Player:
        networks = nn.ModuleList(player.modules)  # type: ignore[arg-type]
        past = HistoricalAverage(networks)

        def loss(*batch: Tensor) -> Tensor:
            return player.loss(*batch) + weight * past.penalty(networks)

        return replace(player, modules=[*networks, past], loss=loss)

    return [paying(player) for player in players]


class VirtualBatchNorm(nn.Module):
    """Normalises each row by a reference batch and itself, not by its neighbours: (N, features).

    Salimans et al. (2016), section 3.5. The first ``reference`` rows of its input are the reference
    batch: use it inside ``WithReference``. Raises ValueError for other features, or fewer rows.
    Introduced in *Mode collapse*.
    """

    def __init__(self, features: int, reference: int) -> None:
        super().__init__()
        self.reference = check_count("reference", reference, at_least=2)
        self.gain = nn.Parameter(torch.ones(check_count("features", features)))
        self.shift = nn.Parameter(torch.zeros(features))

    def reset_parameters(self) -> None:
        """Set gains to 1, shifts to 0."""
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised rows, those of the reference batch first."""
        count, known = self.reference, x[: self.reference]
        if x.shape[1:] != self.gain.shape or len(known) < count:
            allowed = f"of shape (N, {len(self.gain)}), at least its {count} rows of reference"
            refuse("the batch", Words(f"of shape {tuple(x.shape)}"), allowed)
        mean = (count * known.mean(0) + x) / (count + 1)
        square = (count * known.square().mean(0) + x.square()) / (count + 1)
        return self.gain * (x - mean) / (square - mean.square() + 1e-5).sqrt() + self.shift


class WithReference(nn.Module):
    """A network that sees a fixed reference batch before each batch, and does not return it.

    Salimans et al. (2016), section 3.5. ``reference`` is (R, …), in the form of the inputs. Raises
    ValueError unless R is what each ``VirtualBatchNorm`` inside expects. Introduced in *Mode
    collapse*.
    """

    reference: Tensor

    def __init__(self, network: nn.Module, reference: Tensor) -> None:
        super().__init__()
        for part in network.modules():
            if isinstance(part, VirtualBatchNorm) and part.reference != len(reference):
                allowed = f"of {part.reference} rows, as its VirtualBatchNorm takes"
                refuse("reference", Words(f"of {len(reference)} rows"), allowed)
        self.network = network
        self.register_buffer("reference", reference)

    def forward(self, x: Tensor) -> Tensor:
        """Return what ``network`` gives for ``x`` (N, …)."""
        if x.shape[1:] != self.reference.shape[1:]:
            allowed = f"of shape (N, …) like its reference, {tuple(self.reference.shape)}"
            refuse("the batch", Words(f"of shape {tuple(x.shape)}"), allowed)
        return self.network(torch.cat([self.reference, x]))[len(self.reference) :]
