"""What a user would write instead of ``play``: plain PyTorch loops, and jitted, vmapped JAX."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn.functional import softplus

Batch = tuple[Tensor, ...]
ADAM: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}


def example_networks(size: int, width: int = 64, codes: int = 100) -> tuple[nn.Module, nn.Module]:
    """The networks of PyTorch's DCGAN example, for images of ``size`` × ``size`` pixels."""
    widths = [width * 2**k for k in range((size // 8).bit_length())]  # 64, 128, … from the image in
    G: list[nn.Module] = []
    for inputs, outputs in zip([codes, *widths[:0:-1]], widths[::-1], strict=True):
        stride, padding = (1, 0) if not G else (2, 1)
        G.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
        G += [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    G += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    D: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for inputs, outputs in itertools.pairwise(widths):
        D.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        D += [nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    D.append(nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False))
    return nn.Sequential(*D), nn.Sequential(*G)


def gan_loop(
    D: nn.Module, G: nn.Module, batches: Iterator[Batch], half: Any = None, compiled: bool = False
) -> None:
    """Train as PyTorch's DCGAN example does: the samples of D's turn serve G's turn as well.

    ``half`` is an autocast in which networks and losses are evaluated.
    """
    half = half or torch.autocast("cpu", enabled=False)
    judge, make = (torch.compile(net) if compiled else net for net in (D, G))
    d, g = (torch.optim.Adam(net.parameters(), **ADAM) for net in (D, G))
    for real, noise in batches:
        D.zero_grad()
        with half:
            real_loss = softplus(-judge(real)).mean()
        real_loss.backward()
        with half:
            fake = make(noise)
            fake_loss = softplus(judge(fake.detach())).mean()
        fake_loss.backward()
        d.step()
        G.zero_grad()
        with half:
            generator_loss = softplus(-judge(fake)).mean()
        generator_loss.backward()
        g.step()


def slopes(D: nn.Module, x: Tensor) -> Tensor:
    """The squared length of D's gradient at each x, by ``autograd.grad``."""
    x = x.detach().requires_grad_()
    (slope,) = autograd.grad(D(x).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1)


def relativistic_losses(D: nn.Module, G: nn.Module, gamma: float = 0.1) -> list[Any]:
    """RpGAN + R1 + R2, as ``gans.relativistic`` has it."""

    def d_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = G(noise).detach()
        penalty = gamma / 2 * (slopes(D, real) + slopes(D, fake)).mean()
        return softplus(D(fake) - D(real)).mean() + penalty

    def g_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(D(real) - D(G(noise))).mean()

    return [d_loss, g_loss]


def wasserstein_losses(D: nn.Module, G: nn.Module, penalty: float = 10.0) -> list[Any]:
    """WGAN-GP, as ``gans.wasserstein`` has it."""

    def d_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake = G(noise).detach()
        share = torch.rand(len(real), 1, device=real.device)
        slope = (slopes(D, share * real + (1 - share) * fake) + 1e-12).sqrt()
        return D(fake).mean() - D(real).mean() + penalty * (slope - 1).square().mean()

    def g_loss(real: Tensor, noise: Tensor) -> Tensor:
        return -D(G(noise)).mean()

    return [d_loss, g_loss]


def unrolled_losses(D: nn.Sequential, G: nn.Module, steps: int = 5, eta: float = 0.1) -> list[Any]:
    """Five steps of D ahead, as ``gans.unrolled`` has it."""

    def value(weights: list[Tensor], real: Tensor, fake: Tensor) -> Tensor:
        def judge(x: Tensor) -> Tensor:
            return torch.func.functional_call(D, dict(zip(names, weights, strict=True)), x)

        return softplus(-judge(real)).mean() + softplus(judge(fake)).mean()

    names = [name for name, _ in D.named_parameters()]

    def d_loss(real: Tensor, noise: Tensor) -> Tensor:
        return softplus(-D(real)).mean() + softplus(D(G(noise).detach())).mean()

    def g_loss(real: Tensor, noise: Tensor) -> Tensor:
        fake, weights = G(noise), list(D.parameters())
        for _ in range(steps):
            moves = autograd.grad(value(weights, real, fake), weights, create_graph=True)
            weights = [w - eta * move for w, move in zip(weights, moves, strict=True)]
        return -value(weights, real, fake)

    return [d_loss, g_loss]


def loop(
    networks: tuple[nn.Module, nn.Module], losses: list[Any], batches: Iterator[list[Batch]]
) -> None:
    """Let D take a step on each batch of a round, and G one on the first."""
    d, g = (torch.optim.Adam(net.parameters(), **ADAM) for net in networks)
    for drawn in batches:
        for batch in drawn:
            d.zero_grad()
            losses[0](*batch).backward()
            d.step()
        g.zero_grad()
        losses[1](*drawn[0]).backward()
        g.step()


def jax_game(data: Tensor, hidden: int, batch: int, copies: int) -> Callable[[int], None]:
    """Return a function that plays so many rounds of all copies: one jitted, vmapped step each."""
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.adam(ADAM["lr"], b1=0.5, b2=0.999)
    rows = jnp.asarray(data.numpy())

    def network(key: Any, sizes: list[int]) -> Any:
        keys = jax.random.split(key, len(sizes))
        return [
            (jax.random.uniform(key, (a, b), minval=-1, maxval=1) / a**0.5, jnp.zeros(b))
            for key, (a, b) in zip(keys, itertools.pairwise(sizes), strict=False)
        ]

    def out(weights: Any, x: Any) -> Any:
        for w, b in weights[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ weights[-1][0] + weights[-1][1]

    def d_loss(d: Any, g: Any, real: Any, z: Any) -> Any:
        softplus = jax.nn.softplus
        return softplus(-out(d, real)).mean() + softplus(out(d, out(g, z))).mean()

    def g_loss(g: Any, d: Any, z: Any) -> Any:
        return jax.nn.softplus(-out(d, out(g, z))).mean()

    def start(key: Any) -> Any:
        d, g = network(key, [2, hidden, hidden, 1]), network(key, [2, hidden, hidden, 2])
        return d, g, adam.init(d), adam.init(g), key

    def step(state: Any) -> Any:
        d, g, d_slots, g_slots, key = state
        key, for_rows, for_noise = jax.random.split(key, 3)
        real = rows[jax.random.randint(for_rows, (batch,), 0, len(rows))]
        z = jax.random.normal(for_noise, (batch, 2))
        lost, slope = jax.value_and_grad(d_loss)(d, g, real, z)
        move, d_slots = adam.update(slope, d_slots)
        d = optax.apply_updates(d, move)
        also, slope = jax.value_and_grad(g_loss)(g, d, z)
        move, g_slots = adam.update(slope, g_slots)
        return (d, optax.apply_updates(g, move), d_slots, g_slots, key), (lost, also)

    state = jax.vmap(start)(jax.random.split(jax.random.key(0), copies))
    each = jax.jit(jax.vmap(step))

    def play(rounds: int) -> None:
        nonlocal state
        for _ in range(rounds):
            state, _ = each(state)
        jax.block_until_ready(state)

    play(1)
    return play
