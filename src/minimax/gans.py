"""The objectives of generative adversarial networks: what discriminator and generator minimise.

Each function takes the networks and returns the players, ready for ``play``; the losses inside look
like the equations beside them in the chapters. D gives logits, one per sample, so that the
probability "real" is its sigmoid σ(D), and −log σ(t) = softplus(−t).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from minimax.game import Player


def minimax(D: nn.Module, G: nn.Module, **options: Any) -> list[Player]:
    """Return the players of the game as it is written down: G minimises what D maximises.

    Goodfellow et al. (2014), equation 1: V = E log σ(D(x)) + E log(1 − σ(D(G(z)))), in nats. A
    batch is (real, noise); ``options`` go to both players. The gradient for G vanishes where D is
    sure (it saturates). Introduced in *The minimax game*.
    """

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return -softplus(D(G(noise))).mean()

    return [Player(D, discriminator_loss, **options), Player(G, generator_loss, **options)]


def non_saturating(D: nn.Module, G: nn.Module, **options: Any) -> list[Player]:
    """Return the players of the game as it is played: G maximises log σ(D(G(z))).

    Goodfellow et al. (2014), section 3. A batch is (real, noise); ``options`` go to both players.
    Introduced in *The minimax game*.
    """

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(G(noise))).mean()

    return [Player(D, discriminator_loss, **options), Player(G, generator_loss, **options)]
