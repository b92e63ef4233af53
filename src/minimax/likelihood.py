"""Models whose likelihood is known, estimated or bounded: mixtures, RBM, VAE. All in nats.

Binary images are rows (N, d) of zeros and ones, as floats.

Floor 3; called by the book.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from minimax.errors import (
    Words,
    check_count,
    check_number,
    check_pixels,
    check_tensor,
    described,
    refuse,
)
from minimax.game import Options, Player
from minimax.networks import VAE
from minimax.scale import device_of


class BernoulliMixture:
    """A mixture of products of Bernoullis, p(x) = Σₖ πₖ Πᵢ μₖᵢ^xᵢ (1 − μₖᵢ)^(1 − xᵢ).

    ``weights`` π are (K,), not negative, and sum to 1, ``means`` μ are (K, d), strictly between 0
    and 1; it computes in their precision. Images ``x`` are (N, d). Raises ValueError for weights
    and means that are not like that, and for images of another width or outside [0, 1]. Bishop
    (2006), section 9.3.3. Introduced in *Generative models*.
    """

    def __init__(self, weights: Tensor, means: Tensor) -> None:
        check_tensor("weights", weights), check_tensor("means", means)
        if means.dim() != 2 or weights.shape != means.shape[:1]:
            got = Words(f"of shapes {tuple(weights.shape)} and {tuple(means.shape)}")
            refuse("(weights, means)", got, "of shapes (K,) and (K, d)")
        if not bool(((means > 0) & (means < 1)).all()):
            refuse("means", Words("with a value outside"), "strictly between 0 and 1")
        total = weights.sum().item()
        if not (bool((weights >= 0).all()) and abs(total - 1) <= 1e-4):
            got = Words(f"of sum {total:.4g}, the least being {weights.min().item():.4g}")
            refuse("weights", got, "at least 0, of sum 1")
        self.weights, self.means = weights.to(means.dtype), means

    @classmethod
    def start(
        cls, x: Tensor, components: int, generator: torch.Generator | None = None
    ) -> "BernoulliMixture":
        """Return equal weights, and means halfway between those of ``x`` and random rows of it."""
        check_pixels("x", x)
        if check_count("components", components) > len(x):
            refuse("components", components, f"at most {len(x)}, the number of images")
        order = torch.randperm(len(x), generator=generator, device=device_of(generator, x))
        means = 0.25 + (x.mean(0) + x[order[:components].to(x.device)]) / 4
        return cls(torch.full((components,), 1 / components, device=x.device), means)

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log πₖ + log p(x | k), of shape (N, K)."""
        check_pixels("x", x)
        if x.shape[1:] != self.means.shape[1:]:
            got = Words(f"of shape {tuple(x.shape)}")
            refuse("x", got, f"of shape (N, {self.means.shape[1]}), as the means are")
        on, off = self.means.log(), (-self.means).log1p()
        return x.to(on.dtype) @ (on - off).T + off.sum(1) + self.weights.log()

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, of shape (N,)."""
        return torch.cat([self.log_joint(part).logsumexp(1) for part in x.split(10_000)])

    def posterior(self, x: Tensor) -> Tensor:
        """Return p(k | x), of shape (N, K)."""
        return self.log_joint(x).softmax(1)

    def improved(self, x: Tensor, pseudocount: float = 1.0) -> "BernoulliMixture":
        """Return the mixture after one step of EM on ``x``.

        ``pseudocount`` images of each component, half on and half off, are added to what is
        counted: means stay off 0 and 1. (The step then climbs log-likelihood plus log-prior.) A
        component that explains nothing keeps its means.
        """
        pseudocount = check_number("pseudocount", pseudocount)
        mass, on = torch.zeros_like(self.weights), torch.zeros_like(self.means)
        for part in x.split(10_000):
            responsible = self.posterior(part)
            mass += responsible.sum(0)
            on += responsible.T @ part.to(on.dtype)
        counted = (mass + pseudocount)[:, None]
        means = torch.where(counted > 0, (on + pseudocount / 2) / counted, self.means)
        weights = (mass + pseudocount) / (mass + pseudocount).sum()
        return BernoulliMixture(weights, means.clamp(1e-6, 1 - 1e-6))

    def sample_means(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the means (count, d) of ``count`` components, drawn by their weights.

        ``torch.bernoulli`` makes binary images of them: samples of the mixture.
        """
        check_count("count", count)
        weights = self.weights.to(device_of(generator, self.weights))
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.means[drawn.to(self.means.device)]


class RBM(nn.Module):
    """A restricted Boltzmann machine, p(v, h) ∝ exp(vᵀWh + vᵀa + hᵀb), all units binary.

    v is (N, ``visible``), h (N, ``hidden``). Smolensky (1986); Hinton (2002). Introduced in
    *Generative models*.
    """

    def __init__(self, visible: int, hidden: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(visible, hidden))
        self.a = nn.Parameter(torch.empty(visible))
        self.b = nn.Parameter(torch.empty(hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights of standard deviation 0.01; biases are 0."""
        nn.init.normal_(self.W, std=0.01)
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.b)

    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) = −log Σₕ exp(vᵀWh + vᵀa + hᵀb), (N,): log p(v) = −F(v) − log Z."""
        return -(v @ self.a) - softplus(v @ self.W + self.b).sum(-1)

    def hidden_given(self, v: Tensor) -> Tensor:
        """Return p(h = 1 | v), (N, hidden)."""
        return (v @ self.W + self.b).sigmoid()

    def visible_given(self, h: Tensor) -> Tensor:
        """Return p(v = 1 | h), (N, visible)."""
        return (h @ self.W.T + self.a).sigmoid()

    @torch.no_grad()
    def gibbs(
        self, v: Tensor, steps: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return v after ``steps`` of sampling h given v and v given h, and the last p(v | h)."""
        check_count("steps", steps)
        for _ in range(steps):
            mean = self.visible_given(_coins(self.hidden_given(v), generator))
            v = _coins(mean, generator)
        return v, mean


def contrastive_divergence(rbm: RBM, steps: int = 1, **options: Unpack[Options]) -> Player:
    """Return the player that trains ``rbm`` by CD-k, k being ``steps``.

    Hinton (2002): lower the free energy of the data and raise that of what ``steps`` Gibbs steps
    make of them. A batch is (v,); ``options`` go to the player. Introduced in *Generative models*.
    """
    check_count("steps", steps)

    def contrastive_divergence_loss(v: Tensor) -> Tensor:
        fantasy, _ = rbm.gibbs(v, steps)
        return rbm.free_energy(v).mean() - rbm.free_energy(fantasy).mean()

    return Player(rbm, contrastive_divergence_loss, **options)


def log_partition_exact(rbm: RBM) -> float:
    """Return log Z of ``rbm`` by summing over all states of the smaller layer, in double precision.

    Raises ValueError if that layer has more than 20 units. Introduced in *Generative models*.
    """
    _check_rbm(rbm)
    W, a, b = (w.detach().double() for w in (rbm.W, rbm.a, rbm.b))
    if W.shape[0] < W.shape[1]:
        W, a, b = W.T, b, a
    units = W.shape[1]
    if units > 20:
        refuse("rbm", Words(f"with a smaller layer of {units} units"), "one of at most 20 units")
    bits = 2 ** torch.arange(units, device=W.device)
    total = W.new_tensor(-math.inf)
    for states in torch.arange(2**units, device=W.device).split(2**14):
        h = (states[:, None] & bits > 0).double()
        part = (h @ b + softplus(h @ W.T + a).sum(1)).logsumexp(0)
        total = torch.logaddexp(total, part)
    return total.item()


def temperatures(*steps: tuple[int, float]) -> Tensor:
    """Return rising inverse temperatures from 0: so many steps up to each end.

    The default, 500 up to 0.5, 4,000 up to 0.9 and 10,000 up to 1, is that of Salakhutdinov and
    Murray (2008). Raises ValueError for ends that do not rise. Introduced in *Generative models*.
    """
    parts, low = [torch.zeros(1)], 0.0
    for count, end in steps or ((500, 0.5), (4_000, 0.9), (10_000, 1.0)):
        high = check_number("the end of steps", end, at_least=low)
        parts.append(torch.linspace(low, high, check_count("steps", count) + 1)[1:])
        low = high
    return torch.cat(parts)


@torch.no_grad()
def annealed_importance_sampling(
    rbm: RBM,
    betas: Tensor | Sequence[float],
    chains: int = 100,
    base: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``chains`` estimates of log Z, (chains,): log-mean-exp of them is the estimate.

    Neal (2001); Salakhutdinov and Murray (2008), section 4.1. The chains start in independent
    pixels with the log-odds ``base`` (visible,), 0 by default, and pass through the inverse
    temperatures ``betas``, which rise from 0 to 1. Raises ValueError if they don't, and for a
    ``base`` of another shape or with infinite log-odds. Introduced in *Generative models*.
    """
    chains = check_count("chains", chains)
    _check_rbm(rbm)
    betas = torch.as_tensor(betas).to(rbm.W)
    rises = betas.dim() == 1 and len(betas) > 0 and bool((betas.diff() >= 0).all())
    if not rises or betas[0] != 0 or betas[-1] != 1:
        got = Words(f"{described(betas).text}, {betas.tolist()[:3]} …")
        refuse("betas", got, "a vector that rises from 0 to 1")
    start = torch.zeros_like(rbm.a) if base is None else base.to(rbm.a)
    if start.shape != rbm.a.shape or not bool(start.isfinite().all()):
        refuse("base", described(start), f"finite log-odds of shape {tuple(rbm.a.shape)}")

    def log_p(v: Tensor, beta: Tensor) -> Tensor:
        """Return the unnormalised log-probability at inverse temperature ``beta``."""
        visible = v @ ((1 - beta) * start + beta * rbm.a)
        return visible + softplus(beta * (v @ rbm.W + rbm.b)).sum(1)

    v = _coins(start.sigmoid().expand(chains, -1), generator)
    log_weight = softplus(start).sum() + len(rbm.b) * math.log(2) + torch.zeros(chains).to(start)
    for beta, hotter in zip(betas[1:], betas[:-1], strict=True):
        log_weight += log_p(v, beta) - log_p(v, hotter)
        hidden = (beta * (v @ rbm.W + rbm.b)).sigmoid()
        h = _coins(hidden, generator)
        visible = ((1 - beta) * start + beta * (h @ rbm.W.T + rbm.a)).sigmoid()
        v = _coins(visible, generator)
    return log_weight


def _coins(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return 0 or 1, which is 1 with the probability ``mean``."""
    here = mean.to(device_of(generator, mean))
    return torch.bernoulli(here, generator=generator).to(mean.device)


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """Return log mean exp(``values``) along ``dim``, of at least one value.

    Introduced in *Generative models*.
    """
    if check_tensor("values", values).dim() == 0 or values.shape[dim] == 0:
        refuse("values", described(values), "of at least one value to average")
    return values.logsumexp(dim) - math.log(values.shape[dim])


@torch.no_grad()
def importance_weighted_bound(
    vae: VAE,
    x: Tensor,
    samples: Sequence[int] | int,
    at_once: int = 100_000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return E log (1/k) Σ p(x, zᵢ) / q(zᵢ | x) with k codes drawn for each image, in nats: (N,).

    Burda et al. (2016), equation 8: with k = 1 the ELBO, and the nearer to log p(x) the larger k
    is. For several values in ``samples`` the result is (len(samples), N), from the same codes.
    ``at_once`` codes are decoded at a time. Raises ValueError for images outside [0, 1], or of
    another shape or precision than those of the ``vae``. Introduced in *Generative models*.
    """
    single = isinstance(samples, (int, Integral))
    counts = [samples] if isinstance(samples, (int, Integral)) else list(samples)
    several = [check_count("samples", count) for count in counts]
    if not several:
        refuse("samples", samples, "a count, or a sequence of at least one")
    check_pixels("x", x)
    weight = next(vae.parameters(), x)
    if x.dtype != weight.dtype:
        refuse("x", Words(str(x.dtype)), f"{weight.dtype}, as the weights of the model are")
    at_once = check_count("at_once", at_once)
    most, bounds = max(several), []
    for part in x.split(max(1, at_once // most)):
        mean, log_variance = vae.encode(part)
        spread = (log_variance / 2).exp()
        shape, drawn_on = (most, *mean.shape), device_of(generator, mean)
        noise = torch.randn(shape, generator=generator, device=drawn_on).to(mean)
        z = mean + spread * noise
        logits = vae.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        if logits.shape[2:] != x.shape[1:]:
            got = Words(f"of shape {tuple(x.shape)}")
            refuse("x", got, f"of shape {('N', *logits.shape[2:])}".replace("'", ""))
        pixels = -binary_cross_entropy_with_logits(logits, part.expand_as(logits), reduction="none")
        log_p = pixels.flatten(2).sum(2) - (z**2).sum(2) / 2
        log_q = -(noise**2).sum(2) / 2 - spread.log().sum(1)
        log_ratio = log_p - log_q  # the constants of the two normal densities cancel
        bounds.append(torch.stack([log_mean_exp(log_ratio[:count]) for count in several]))
    joined = torch.cat(bounds, 1)
    if not bool(joined.isfinite().all()):
        refuse("vae", Words("giving NaN or infinity"), "one that gives finite logits")
    return joined[0] if single else joined


def _check_rbm(rbm: RBM) -> None:
    if not all(bool(weight.isfinite().all()) for weight in rbm.parameters()):
        refuse("rbm", Words("with NaN or infinite weights"), "one with finite weights")
