"""The objectives: values and gradients against closed forms."""

import math

import pytest
import torch
from torch import nn

from minimax.game import minibatches, play
from minimax.gans import (
    Memory,
    Packed,
    ali,
    informative,
    lfvi,
    minimax,
    mutual_information,
    non_saturating,
    pix2pix,
    relativistic,
    semi_supervised,
    simgan,
    squared_slope,
    unrolled,
    veegan,
    wasserstein,
)
from minimax.networks import mlp


class Constant(nn.Module):
    """A discriminator whose logit is always the same."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, x):
        return self.logit.expand(len(x), 1)


@pytest.mark.parametrize("objective", [minimax, non_saturating])
def test_the_discriminator_minimises_its_cross_entropy(objective):
    real, noise = torch.randn(64, 2), torch.randn(64, 3)
    D, G = mlp(2, 8, 1), mlp(3, 8, 2)
    loss = objective(D, G)[0].loss(real, noise)
    logits = torch.cat([D(real), D(G(noise))])
    labels = torch.cat([torch.ones(64, 1), torch.zeros(64, 1)])
    expected = 2 * nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert torch.allclose(loss, expected)
    half = objective(Constant(0.0), G)[0].loss(real, noise)
    assert math.isclose(half.item(), math.log(4), rel_tol=1e-6)


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 3.0, 30.0])
def test_the_generators_losses_and_their_slopes(logit):
    sigmoid = 1 / (1 + math.exp(-logit))
    real, noise = torch.randn(4, 2), torch.randn(4, 3)
    G = mlp(3, 2)
    slopes = {minimax: -sigmoid, non_saturating: sigmoid - 1}
    for objective, slope in slopes.items():
        D = Constant(logit)
        loss = objective(D, G)[1].loss(real, noise)
        (gradient,) = torch.autograd.grad(loss, D.logit)
        assert math.isclose(gradient.item(), slope, rel_tol=1e-5, abs_tol=1e-12)
    loss = minimax(Constant(logit), G)[1].loss(real, noise)
    assert math.isclose(loss.item(), math.log1p(-sigmoid) if logit < 20 else -logit, rel_tol=1e-5)


def test_options_go_to_both_players():
    players = minimax(mlp(2, 1), mlp(3, 2), lr=0.5, betas=(0.1, 0.2), turns=2)
    assert [(p.lr, p.betas, p.turns) for p in players] == [(0.5, (0.1, 0.2), 2)] * 2
    assert [p.name for p in players] == ["discriminator", "generator"]


class Slope(nn.Module):
    """D(x) = a·x, whose slope is a."""

    def __init__(self, *a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def reset_parameters(self):
        pass

    def forward(self, x):
        return (x @ self.a)[:, None]


def test_squared_slope_of_linear_and_quadratic_functions():
    x = torch.randn(5, 2)
    assert torch.allclose(squared_slope(Slope(3.0, 4.0), x), torch.full((5,), 25.0))
    assert torch.allclose(
        squared_slope(lambda x: x.square().sum(1), x), 4 * x.square().sum(1), atol=1e-5
    )
    D = Slope(3.0, 4.0)
    squared_slope(D, x).mean().backward()
    assert torch.allclose(D.a.grad, 2 * D.a)  # the weights get their gradient through it


def test_relativistic_loss_and_penalty_in_closed_form():
    real, noise = torch.randn(16, 2), torch.randn(16, 2)
    D, G = Slope(1.0, -2.0), mlp(2, 4, 2)
    gap = D(real) - D(G(noise))
    d, g = relativistic(D, G, gamma=0.6)
    plain = nn.functional.softplus(-gap).mean()
    assert torch.allclose(d.loss(real, noise), plain + 0.3 * (5 + 5))
    assert torch.allclose(g.loss(real, noise), nn.functional.softplus(gap).mean())
    with pytest.raises(ValueError, match=r"gamma is -1"):
        relativistic(D, G, gamma=-1)


def test_wasserstein_penalty_is_zero_for_slope_one():
    real, noise = torch.randn(16, 2), torch.randn(16, 2)
    G = mlp(2, 4, 2)
    for D, extra in [(Slope(0.6, 0.8), 0.0), (Slope(0.0, 3.0), 10 * 4.0)]:
        critic, generator = wasserstein(D, G)
        distance = D(G(noise)).mean() - D(real).mean()
        assert torch.allclose(critic.loss(real, noise), distance + extra, atol=1e-4)
        assert torch.allclose(generator.loss(real, noise), -D(G(noise)).mean())
        assert (critic.turns, generator.turns) == (5, 1)


def test_unrolling_no_steps_is_the_minimax_game_up_to_what_g_cant_change():
    real, noise = torch.randn(16, 2), torch.randn(16, 3)
    D, G = mlp(2, 8, 1), mlp(3, 8, 2)
    slopes = [
        torch.autograd.grad(players[1].loss(real, noise), list(G.parameters()))
        for players in (unrolled(D, G, 0), minimax(D, G))
    ]
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_unrolled_steps_are_steps_of_gradient_descent():
    real, noise = torch.randn(16, 2), torch.randn(16, 3)
    D, G = mlp(2, 8, 1), mlp(3, 8, 2)
    discriminator, generator = unrolled(D, G, 3, rate=0.2)
    ahead = generator.loss(real, noise).item()
    descent = torch.optim.SGD(D.parameters(), lr=0.2)
    for _ in range(3):
        descent.zero_grad()
        discriminator.loss(real, noise).backward()
        descent.step()
    assert math.isclose(ahead, -discriminator.loss(real, noise).item(), rel_tol=1e-5)


def test_the_gradient_runs_through_the_unrolled_steps():
    real, noise = torch.randn(8, 2).double(), torch.randn(8, 2).double()
    D, G = mlp(2, 4, 1, activation=nn.Tanh).double(), mlp(2, 2).double()
    generator = unrolled(D, G, 2, rate=0.5)[1]
    (slope,) = torch.autograd.grad(generator.loss(real, noise), G[0].bias)
    for axis in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                G[0].bias[axis] += sign * 1e-5
                values.append(generator.loss(real, noise))
                G[0].bias[axis] -= sign * 1e-5
        assert math.isclose(slope[axis], (values[0] - values[1]) / 2e-5, rel_tol=1e-5)


def test_a_pack_is_judged_as_one():
    seen = []

    class Remembers(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, :1]

    x = torch.arange(12.0).view(6, 2)
    assert len(Packed(Remembers(), 3)(x)) == 2
    assert seen[0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    Packed(Remembers(), 2)(torch.zeros(4, 3, 5, 5))
    assert seen[1].shape == (2, 6, 5, 5)
    with pytest.raises(ValueError, match=r"of 5 samples.*multiple of 2"):
        Packed(Remembers(), 2)(torch.zeros(5, 2))


def test_mutual_information_of_normal_numbers_with_the_best_critic():
    """T = log p(x, z) / p(x)p(z) attains the bound: −log(1 − ρ²) / 2 for correlation ρ."""
    rho = 0.8
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1)).double()
    x = rho * z + math.sqrt(1 - rho**2) * noise

    def log_ratio(pair):
        x, z = pair[:, :1], pair[:, 1:]
        s = 1 - rho**2
        return -0.5 * math.log(s) - (x - rho * z) ** 2 / (2 * s) + x**2 / 2

    exact = -0.5 * math.log(1 - rho**2)
    assert math.isclose(mutual_information(log_ratio, x, z).item(), exact, abs_tol=0.01)
    constant = mutual_information(lambda pair: torch.ones(len(pair), 1), x, z)
    assert abs(constant.item()) < 1e-9


def test_veegan_moves_each_player_by_its_own_terms():
    real, noise = torch.randn(8, 2), torch.randn(8, 3)
    D, G, F = mlp(5, 4, 1), mlp(3, 4, 2), mlp(2, 4, 3)
    discriminator, reconstructor, generator = veegan(D, G, F)
    back = (noise - F(G(noise))).square().mean()
    at_samples = D(torch.cat([G(noise), noise], 1))
    assert torch.allclose(reconstructor.loss(real, noise), back)
    assert torch.allclose(generator.loss(real, noise), at_samples.mean() + back)
    assert [player.modules for player in (discriminator, reconstructor, generator)] == [
        [D], [F], [G],
    ]  # fmt: skip


@pytest.mark.parametrize("objective", [ali, lfvi])
def test_a_joint_discriminator_sees_data_with_codes_and_samples_with_noise(objective):
    real, noise = torch.randn(8, 2), torch.randn(8, 3)
    D, G, F = mlp(5, 4, 1), mlp(3, 4, 2), mlp(2, 4, 3)
    at_data = D(torch.cat([real, F(real)], 1))
    at_samples = D(torch.cat([G(noise), noise], 1))
    loss = nn.functional.softplus(-at_data).mean() + nn.functional.softplus(at_samples).mean()
    assert torch.allclose(objective(D, G, F)[0].loss(real, noise), loss)


JOINT = {"ali": ali, "veegan": veegan, "lfvi": lfvi}


@pytest.mark.parametrize(
    "objective",
    [minimax, non_saturating, relativistic, wasserstein, unrolled, *JOINT.values(), informative],
)
@pytest.mark.parametrize("pack", [1, 2])
def test_every_objective_is_played_alone_packed_and_by_copies(objective, pack):
    """Copies use torch.func.vmap, inside which gradients of gradients have to work too."""
    joint = objective in JOINT.values()
    third = [mlp(2, 8, 2)] if joint else [mlp(4, 8, 1)] if objective is informative else []
    D, G = Packed(mlp((4 if joint else 2) * pack, 8, 1), pack), mlp(2, 8, 2)
    data = torch.randn(64, 2)
    players = objective(D, G, *third)
    options = {"rounds": 3, "seed": 5}
    stacked = play(players, minibatches(data, size=8, noise=2), copies=2, **options)
    assert all(torch.isfinite(loss).all() for loss in stacked.losses.values())
    z = torch.randn(4, 2)
    first, second = stacked.each(lambda: G(z))
    assert not torch.equal(first, second)


def test_pix2pix_adds_the_mean_absolute_error():
    x, y = torch.rand(4, 2, 8, 8), torch.rand(4, 3, 8, 8)
    G, D = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 1, 3)
    error = (G(x) - y).abs().mean()
    fooled = nn.functional.softplus(-D(torch.cat([x, G(x)], 1))).mean()
    _, generator = pix2pix(D, G, weight=7.0)
    assert torch.allclose(generator.loss(x, y), fooled + 7 * error)
    (alone,) = pix2pix(D, G, adversarial=False)
    assert torch.allclose(alone.loss(x, y), error) and alone.modules == [G]
    with pytest.raises(ValueError, match="weight is -1"):
        pix2pix(D, G, weight=-1.0)


def test_a_memory_gives_half_of_what_it_has_seen_before():
    memory = Memory(6, (1,))
    for first in (0.0, 4.0):
        fresh = first + torch.arange(4.0)[:, None]
        assert torch.equal(memory.mixed(fresh), fresh)  # until it is full
    assert sorted(memory.images.flatten().tolist()) == [0, 1, 2, 3, 4, 5]
    fresh = torch.full((4, 1), 9.0)
    mixed = memory.mixed(fresh)
    assert (mixed == 9).sum() == 2 and (mixed < 6).sum() == 2
    assert (memory.images == 9).sum() == 2
    memory.reset_parameters()
    assert torch.equal(memory.mixed(fresh), fresh)


def test_simgan_pays_for_change_and_moves_twice():
    synthetic, real = torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4)
    R, D, memory = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3), Memory(16, (1, 4, 4))
    discriminator, refiner = simgan(D, R, weight=3.0, memory=memory)
    refined = R(synthetic)
    fooled = nn.functional.softplus(-D(refined)).mean()
    expected = fooled + 3 * (refined - synthetic).abs().mean()
    assert torch.allclose(refiner.loss(synthetic, real), expected)
    assert (discriminator.turns, refiner.turns) == (1, 2)
    play([discriminator, refiner], minibatches(synthetic, real, size=8), rounds=3, seed=0)
    assert memory.filled == 16  # what it saw in three rounds of eight


def test_the_extra_class_of_the_semi_supervised_game():
    """With logits l and 0 for "generated", σ(log Σ exp l) is the probability of the K classes."""
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    body, head, G = mlp(5, 8), mlp(8, 3), mlp(2, 5)
    noise = torch.randn(6, 2)
    discriminator, generator = semi_supervised(body, head, G)

    def extended(images):
        logits = head(body(images))
        return torch.cat([logits, torch.zeros(6, 1)], 1).softmax(1)

    real, fake = 1 - extended(x)[:, 3], extended(G(noise))[:, 3]
    labelled = nn.functional.cross_entropy(head(body(x)), y)
    expected = labelled - real.log().mean() - fake.log().mean()
    assert torch.allclose(discriminator.loss(x, y, x, noise), expected, atol=1e-5)
    gap = body(x).mean(0) - body(G(noise)).mean(0)
    assert torch.allclose(generator.loss(x, y, x, noise), gap @ gap, atol=1e-6)
