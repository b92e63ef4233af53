"""The objectives of generative adversarial networks: what discriminator and generator minimise.

Each function takes the networks and returns the players, ready for ``play``; the losses inside look
like the equations beside them in the chapters. D gives logits, one per sample, so that the
probability "real" is its sigmoid σ(D), and −log σ(t) = softplus(−t). ``options`` are those of
``Player``: common ones by their names, and in ``d``, ``g`` and ``third`` those that are for the
discriminator, the generator or a third player alone.

Floor 3; called by the book, collapse, dcgan.
"""

import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import softplus
from torch.nn.modules.batchnorm import _BatchNorm

from minimax.errors import (
    Words,
    check_classes_of_loss,
    check_count,
    check_labels,
    check_made,
    check_number,
    refuse,
)
from minimax.evaluation import statistics_held
from minimax.game import GameOptions, Player, per_player
from minimax.stabilisers import MinibatchDiscrimination


def minimax(D: nn.Module, G: nn.Module, **options: Unpack[GameOptions]) -> list[Player]:
    """Return the players of the game as it is written down: G minimises what D maximises.

    Goodfellow et al. (2014), equation 1: V = E log σ(D(x)) + E log(1 − σ(D(G(z)))), in nats. A
    batch is (real, noise); ``options`` go to both players. The gradient for G vanishes where D is
    sure (it saturates). Introduced in *The minimax game*.
    """

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return -softplus(D(G(noise))).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


def non_saturating(D: nn.Module, G: nn.Module, **options: Unpack[GameOptions]) -> list[Player]:
    """Return the players of the game as it is played: G maximises log σ(D(G(z))).

    Goodfellow et al. (2014), section 3. A batch is (real, noise); ``options`` go to both players.
    Introduced in *The minimax game*.
    """

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(G(noise))).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


class Packed(nn.Module):
    """A discriminator that judges ``pack`` samples at a time, all real or all generated.

    Lin et al. (2018), section 3: PacGAN. (N, features) becomes (N / pack, pack · features), and
    images are stacked as channels; D has to take that many. Raises ValueError for a batch that
    can't be packed evenly. Introduced in *Mode collapse*.
    """

    def __init__(self, D: nn.Module, pack: int) -> None:
        super().__init__()
        self.D, self.pack = D, check_count("pack", pack)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit for each pack of samples."""
        if len(x) % self.pack:
            refuse("the batch", Words(f"of {len(x)} samples"), f"a multiple of {self.pack}")
        return self.D(x.reshape(len(x) // self.pack, self.pack * x.shape[1], *x.shape[2:]))


def check_judge(D: Callable[[Tensor], Tensor]) -> None:
    """Refuse ``D`` if what it says of a sample depends on the others of the batch.

    Batch normalisation does in training, ``MinibatchDiscrimination`` always. Introduced in *Mode
    collapse*.
    """
    for part in D.modules() if isinstance(D, nn.Module) else ():
        by_batch = isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)
        if by_batch or isinstance(part, MinibatchDiscrimination):
            allowed = "one that judges each sample by itself (with nn.LayerNorm, say)"
            refuse("D", Words(f"a network with {type(part).__name__}"), allowed)


def squared_slope(D: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ‖∇ₓD(x)‖² for each sample, (N,); weights of D get their gradient through it.

    The mean over data is R1, over generated samples R2 (Mescheder et al. 2018, section 4.1). Raises
    ValueError for a D that does not judge each sample by itself. Introduced in *Mode collapse*.
    """
    check_judge(D)
    return grad(lambda x: D(x).sum())(x).flatten(1).square().sum(1)


def relativistic(
    D: nn.Module, G: nn.Module, gamma: float = 0.1, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the players of the relativistic pairing game with zero-centred penalties.

    Huang et al. (2024), equations 2 and 5 (R3GAN): D widens D(x) − D(G(z)), G narrows it, and D
    pays γ/2 for its squared slope at data (R1) and at samples (R2). A batch is (real, noise), as
    many of one as of the other. Raises ValueError for a negative ``gamma``, a D that does not judge
    each sample by itself, and samples of another shape than the data's. Introduced in *Mode
    collapse*.
    """
    gamma = check_number("gamma", gamma)
    check_judge(D)

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = check_made("G", G(noise), len(real), real).detach()
        slopes = squared_slope(D, real) + squared_slope(D, fake)
        return softplus(D(fake) - D(real)).mean() + gamma / 2 * slopes.mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(D(real) - D(check_made("G", G(noise), len(real), real))).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


def wasserstein(
    D: nn.Module, G: nn.Module, penalty: float = 10.0, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the players of the Wasserstein game with gradient penalty (WGAN-GP).

    Gulrajani et al. (2017), equation 3: D is a critic that moves five times a round, unless
    ``turns`` are given, and pays ``penalty`` for slopes other than 1 between data and samples. A
    batch is (real, noise), as many of one as of the other. Raises ValueError for arguments out of
    range, a D that does not judge each sample by itself, and samples of another shape than the
    data's. Introduced in *Remedies for mode collapse*.
    """
    penalty = check_number("penalty", penalty)
    check_judge(D)

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = check_made("G", G(noise), len(real), real).detach()
        share = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
        slope = (squared_slope(D, share * real + (1 - share) * fake) + 1e-12).sqrt()
        return D(fake).mean() - D(real).mean() + penalty * (slope - 1).square().mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return -D(G(noise)).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **{"turns": 5} | d), Player(G, generator_loss, **g)]


def unrolled(
    D: nn.Module,
    G: nn.Module,
    steps: int = 5,
    step_size: float = 0.1,
    **options: Unpack[GameOptions],
) -> list[Player]:
    """Return the players of the unrolled game: G looks ``steps`` steps of D ahead.

    Metz et al. (2017), equations 7 to 9: G maximises the loss that D would have after ``steps``
    steps of gradient descent with the rate ``step_size`` on this batch, and its gradient runs
    through them. With 0 steps it is ``minimax``. A batch is (real, noise). Looking ahead leaves the
    running statistics of batch normalisations in D alone. Raises ValueError for arguments out of
    range. Introduced in *Remedies for mode collapse*.
    """
    steps = check_count("steps", steps, at_least=0)
    step_size = check_number("step_size", step_size)

    def discriminator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean()

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = G(noise)
        weights: dict[str, Tensor] = dict(D.named_parameters())

        def loss_with(weights: dict[str, Tensor]) -> Tensor:
            at_real, at_fake = (functional_call(D, weights, x) for x in (real, fake))
            return softplus(-at_real).mean() + softplus(at_fake).mean()

        with statistics_held():
            for _ in range(steps):
                slopes = grad(loss_with)(weights)
                weights = {name: w - step_size * slopes[name] for name, w in weights.items()}
            return -loss_with(weights)

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


def _pair(x: Tensor, z: Tensor) -> Tensor:
    if (len(x), *x.shape[2:]) != (len(z), *z.shape[2:]):
        got = Words(f"of shapes {tuple(x.shape)} and {tuple(z.shape)}")
        refuse("the pair to be joined", got, "of shapes that differ in their second number alone")
    return torch.cat([x, z], 1)


def _joint(D: nn.Module, G: nn.Module, F: nn.Module) -> tuple[Callable[..., Tensor], ...]:
    """Return D's answers to pairs (x, F(x)) and to pairs (G(z), z), as functions of a batch."""

    def at_data(real: Tensor, noise: Tensor) -> Tensor:
        return D(_pair(real, check_made("F", F(real), len(real), noise)))

    def at_samples(real: Tensor, noise: Tensor) -> Tensor:
        return D(_pair(check_made("G", G(noise), len(noise), real), noise))

    return at_data, at_samples


def ali(D: nn.Module, G: nn.Module, F: nn.Module, **options: Unpack[GameOptions]) -> list[Player]:
    """Return the players of adversarially learned inference (BiGAN is the same with a plain F).

    Dumoulin et al. (2017), equation 2; Donahue et al. (2017): D tells pairs (x, F(x)) from pairs
    (G(z), z), joined to (N, features + codes); G and F are one player that swaps them. F is given
    (x, ε), as many normal numbers as codes, if it is stochastic: wrap it. A batch is (real, noise)
    of vectors. The losses raise ValueError where G gives no samples or F no codes of the batch's
    shape. Introduced in *Remedies for mode collapse*.
    """
    at_data, at_samples = _joint(D, G, F)

    def discriminator_loss(*batch: Tensor) -> Tensor:
        return softplus(-at_data(*batch)).mean() + softplus(at_samples(*batch)).mean()

    def generator_loss(*batch: Tensor) -> Tensor:
        return softplus(at_data(*batch)).mean() + softplus(-at_samples(*batch)).mean()

    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player([G, F], generator_loss, **g)]


def veegan(
    D: nn.Module, G: nn.Module, F: nn.Module, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the players of VEEGAN, in which a reconstructor F maps samples back to their codes.

    Srivastava et al. (2017), algorithm 1: D estimates log p(G(z), z) / q(x, F(x)); F minimises ‖z −
    F(G(z))‖² alone, G that plus D at its samples. The distance is a mean over codes. A batch is
    (real, noise) of vectors. The losses raise ValueError where G gives no samples or F no codes of
    the batch's shape. Introduced in *Remedies for mode collapse*.
    """
    at_data, at_samples = _joint(D, G, F)

    def distance(fake: Tensor, noise: Tensor) -> Tensor:
        return (noise - check_made("F", F(fake), len(noise), noise)).square().mean()

    def discriminator_loss(*batch: Tensor) -> Tensor:
        return softplus(-at_samples(*batch)).mean() + softplus(at_data(*batch)).mean()

    def reconstructor_loss(real: Tensor, noise: Tensor) -> Tensor:
        return distance(G(noise), noise)

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = check_made("G", G(noise), len(noise), real)
        return D(_pair(fake, noise)).mean() + distance(fake, noise)

    d, third, g = per_player(options, "d", "third", "g")
    return [
        Player(D, discriminator_loss, **d),
        Player(F, reconstructor_loss, **third),
        Player(G, generator_loss, **g),
    ]


def lfvi(D: nn.Module, G: nn.Module, F: nn.Module, **options: Unpack[GameOptions]) -> list[Player]:
    """Return the players of likelihood-free variational inference, with a generator as the model.

    Tran et al. (2017), equations 4 to 6: D estimates the log-ratio of pairs (x, F(x)) to pairs
    (G(z), z) and thereby the ELBO; F maximises the ELBO, that is, it minimises D at data. D's value
    at data has no gradient for G, which lowers the reverse divergence, −D at its samples. A batch
    is (real, noise) of vectors. The losses raise ValueError where G gives no samples or F no codes
    of the batch's shape. Introduced in *Remedies for mode collapse*.
    """
    at_data, at_samples = _joint(D, G, F)

    def discriminator_loss(*batch: Tensor) -> Tensor:
        return softplus(-at_data(*batch)).mean() + softplus(at_samples(*batch)).mean()

    def inference_loss(*batch: Tensor) -> Tensor:
        return at_data(*batch).mean()

    def generator_loss(*batch: Tensor) -> Tensor:
        return -at_samples(*batch).mean()

    d, third, g = per_player(options, "d", "third", "g")
    return [
        Player(D, discriminator_loss, **d),
        Player(F, inference_loss, **third),
        Player(G, generator_loss, **g),
    ]


def mutual_information(T: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Return the Donsker–Varadhan bound on the mutual information of x and z, in nats.

    Belghazi et al. (2018), equation 10: E T(x, z) − log E exp T(x, z′), z′ from other rows; T takes
    pairs joined to (N, features + codes), and gives a number for each. Raises ValueError for other
    shapes. Introduced in *Remedies for mode collapse*.
    """
    together, apart = T(_pair(x, z)), T(_pair(x, z.roll(1, 0)))
    if together.numel() != len(x):
        refuse("T", Words(f"giving shape {tuple(together.shape)}"), f"giving ({len(x)}, 1)")
    return together.mean() - (apart.flatten().logsumexp(0) - math.log(apart.numel()))


def informative(
    D: nn.Module, G: nn.Module, T: nn.Module, beta: float = 0.1, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the players of a GAN whose samples have to tell their codes (GAN + MINE).

    Belghazi et al. (2018), section 5.1: G's non-saturating loss minus ``beta`` times the mutual
    information of G(z) and z, which a third player T estimates. A batch is (real, noise) of
    vectors. Raises ValueError for a negative ``beta``. Introduced in *Remedies for mode collapse*.
    """
    beta = check_number("beta", beta)
    d, third, g = per_player(options, "d", "third", "g")
    discriminator, generator = non_saturating(D, G)

    def information_loss(real: Tensor, noise: Tensor) -> Tensor:
        return -mutual_information(T, G(noise), noise)

    def generator_loss(real: Tensor, noise: Tensor) -> Tensor:
        return generator.loss(real, noise) - beta * mutual_information(T, G(noise), noise)

    return [
        Player(D, discriminator.loss, **d),
        Player(T, information_loss, **third),
        Player(G, generator_loss, **g),
    ]


def pix2pix(
    D: nn.Module,
    G: nn.Module,
    weight: float = 100.0,
    *,
    adversarial: bool = True,
    **options: Unpack[GameOptions],
) -> list[Player]:
    """Return the players of image-to-image translation with pairs.

    Isola et al. (2017), equation 4: D judges (x, y) and (x, G(x)), joined as channels; G minimises
    its non-saturating loss plus ``weight`` times the mean absolute error. Without ``adversarial``
    only G plays, for the error. A batch is (x, y), two stacks of images. Raises ValueError for a
    negative weight, and where G(x) is not of the shape of y. Introduced in *Applications*.
    """
    weight = check_number("weight", weight)

    def discriminator_loss(x: Tensor, y: Tensor) -> Tensor:
        real, made = D(_pair(x, y)), check_made("G", G(x), len(y), y)
        return softplus(-real).mean() + softplus(D(_pair(x, made.detach()))).mean()

    def generator_loss(x: Tensor, y: Tensor) -> Tensor:
        made = check_made("G", G(x), len(y), y)
        return softplus(-D(_pair(x, made))).mean() + weight * (made - y).abs().mean()

    def absolute_error_loss(x: Tensor, y: Tensor) -> Tensor:
        return (check_made("G", G(x), len(y), y) - y).abs().mean()

    if not adversarial:
        return [Player(G, absolute_error_loss, **per_player(options, "g")[0])]
    d, g = per_player(options, "d", "g")
    return [Player(D, discriminator_loss, **d), Player(G, generator_loss, **g)]


class Memory(nn.Module):
    """Generated images of earlier rounds, of which half of D's batch is taken.

    Shrivastava et al. (2017), section 2.3: ``size`` images of ``shape``; each call replaces some of
    them by chance. Not for games of several copies. Introduced in *Applications*.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(check_count("size", size), *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def reset_parameters(self) -> None:
        """Forget everything."""
        self.filled.zero_()

    @torch.no_grad()
    def mixed(self, fresh: Tensor) -> Tensor:
        """Return ``fresh`` (N, …) with half of it replaced by earlier images, and keep some of it.

        Until the memory is full, ``fresh`` is returned, and kept as far as there is room. Raises
        ValueError for images of another shape, for more than twice as many as it holds, and in a
        game of several copies.
        """
        size, half = len(self.images), len(fresh) // 2
        if fresh.shape[1:] != self.images.shape[1:] or half > size:
            allowed = f"of shape (N, …) like {tuple(self.images.shape)}, and N at most {2 * size}"
            refuse("the memory's batch", Words(f"of shape {tuple(fresh.shape)}"), allowed)
        try:
            filled = int(self.filled)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            refuse("memory", Words("in a game of several copies"), "in one without copies")
        if filled < size:
            new = fresh[: size - filled]
            self.images[filled : filled + len(new)] = new
            self.filled += len(new)
            return fresh
        chosen = torch.randperm(size, device=fresh.device)[:half]
        earlier = self.images[chosen].clone()
        self.images[chosen] = fresh[:half]
        return torch.cat([earlier, fresh[half:]])


def simgan(
    D: nn.Module,
    R: nn.Module,
    weight: float = 1.0,
    memory: Memory | None = None,
    **options: Unpack[GameOptions],
) -> list[Player]:
    """Return the players of simulated and unsupervised learning: R refines synthetic images.

    Shrivastava et al. (2017), equations 2 and 4: R fools D, which judges patch by patch, and pays
    ``weight`` times the mean absolute change; it moves twice a round, unless ``turns`` are given.
    Its own options are ``g``. With a ``memory`` half of what D is shown as refined comes from
    earlier rounds. A batch is (synthetic, real). Raises ValueError for a negative weight, and where
    R gives images of another shape. Introduced in *Applications*.
    """
    weight = check_number("weight", weight)

    def discriminator_loss(synthetic: Tensor, real: Tensor) -> Tensor:
        refined = check_made("R", R(synthetic), len(synthetic), synthetic).detach()
        shown = refined if memory is None else memory.mixed(refined)
        return softplus(-D(real)).mean() + softplus(D(shown)).mean()

    def refiner_loss(synthetic: Tensor, real: Tensor) -> Tensor:
        refined = check_made("R", R(synthetic), len(synthetic), synthetic)
        return softplus(-D(refined)).mean() + weight * (refined - synthetic).abs().mean()

    d, g = per_player(options, "d", "g")
    judges = [D] if memory is None else [D, memory]
    return [Player(judges, discriminator_loss, **d), Player(R, refiner_loss, **{"turns": 2} | g)]


def semi_supervised(
    body: nn.Module, head: nn.Module, G: nn.Module, **options: Unpack[GameOptions]
) -> list[Player]:
    """Return the players of the (K + 1)-class game, with feature matching.

    Salimans et al. (2016), sections 3.1 and 5: D = head ∘ body gives K logits l, and that of
    "generated" is fixed at 0, so that the logit of "real" is log Σ exp l. G matches the mean of
    ``body``'s features (N, d). A batch is (x, y, unlabelled, noise). The losses raise ValueError
    for samples of another shape than the images', or what are no labels. Introduced in
    *Applications*.
    """

    def discriminator_loss(x: Tensor, y: Tensor, unlabelled: Tensor, noise: Tensor) -> Tensor:
        made = check_made("G", G(noise), len(noise), unlabelled).detach()
        real, fake = (head(body(images)).logsumexp(1) for images in (unlabelled, made))
        logits, y = head(body(x)), check_labels("y", y, len(x))
        check_classes_of_loss(y, logits.shape[1])
        labelled = nn.functional.cross_entropy(logits, y)
        return labelled + softplus(-real).mean() + softplus(fake).mean()

    def generator_loss(x: Tensor, y: Tensor, unlabelled: Tensor, noise: Tensor) -> Tensor:
        real, made = body(unlabelled), check_made("G", G(noise), len(noise), unlabelled)
        return (real.mean(0) - body(made).mean(0)).square().sum()

    d, g = per_player(options, "d", "g")
    return [Player([body, head], discriminator_loss, **d), Player(G, generator_loss, **g)]
