"""The objectives: values and gradients against their equations, and what is refused.

The players of ``minimax.stabilisers`` that are games of their own are here too.
"""

import inspect
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from minimax import gans
from minimax.game import Player, minibatches, play
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
from minimax.stabilisers import MinibatchDiscrimination, feature_matching, smoothed


def said(t):
    """log σ(t): that a logit says "real"."""
    return t.sigmoid().log()


def denied(t):
    """log(1 − σ(t)): that it says "generated"."""
    return (1 - t.sigmoid()).log()


def pair(x, z):
    return torch.cat([x, z], 1)


def steepness(D, x):
    """‖∇ₓD(x)‖², by autograd instead of torch.func."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return slope.square().sum(1)


def between(n, x, z):
    share = torch.rand(len(x), 1)  # the first numbers after the seed, as in the objective
    return share * x + (1 - share) * n.G(z)


def information(n, x, z):
    others = torch.cat([z[-1:], z[:-1]])
    return n.T(pair(x, z)).mean() - n.T(pair(x, others)).exp().mean().log()


def looking_ahead(n, x, z, steps, rate):
    def discriminators(weights):
        real, fake = (functional_call(n.D, weights, points) for points in (x, n.G(z)))
        return -said(real).mean() - denied(fake).mean()

    weights = dict(n.D.named_parameters())
    for _ in range(steps):
        slopes = torch.autograd.grad(
            discriminators(weights), [*weights.values()], create_graph=True
        )
        weights = {k: w - rate * s for (k, w), s in zip(weights.items(), slopes, strict=True)}
    return -discriminators(weights)


def the_game(n, x, z):
    """What D minimises in most of the games."""
    return -said(n.D(x)).mean() - denied(n.D(n.G(z))).mean()


def fooling(n, x, z):
    return -said(n.D(n.G(z))).mean()


def telling_pairs(n, x, z):
    return -said(n.J(pair(x, n.F(x)))).mean() - denied(n.J(pair(n.G(z), z))).mean()


def slopes_at_both(n, x, z):
    return steepness(n.D, x).mean() + steepness(n.D, n.G(z)).mean()


def rebuilding(n, x, z):
    return (z - n.F(n.G(z))).square().mean()


# For each game: its players; of each player, in order, what it moves and what it minimises.
GAMES = {
    "minimax": (lambda n: minimax(n.D, n.G), {
        "discriminator": ("D", the_game),
        "generator": ("G", lambda n, x, z: denied(n.D(n.G(z))).mean()),
    }),
    "non_saturating": (lambda n: non_saturating(n.D, n.G), {
        "discriminator": ("D", the_game),
        "generator": ("G", fooling),
    }),
    "relativistic": (lambda n: relativistic(n.D, n.G, gamma=0.6), {
        "discriminator": ("D", lambda n, x, z: -said(n.D(x) - n.D(n.G(z))).mean()
                          + 0.6 / 2 * slopes_at_both(n, x, z)),
        "generator": ("G", lambda n, x, z: -said(n.D(n.G(z)) - n.D(x)).mean()),
    }),
    "wasserstein": (lambda n: wasserstein(n.D, n.G, penalty=3.0), {
        "discriminator": ("D", lambda n, x, z: n.D(n.G(z)).mean() - n.D(x).mean()
                          + 3 * (steepness(n.D, between(n, x, z)).sqrt() - 1).square().mean()),
        "generator": ("G", lambda n, x, z: -n.D(n.G(z)).mean()),
    }),
    "unrolled": (lambda n: unrolled(n.D, n.G, steps=2, step_size=0.3), {
        "discriminator": ("D", the_game),
        "generator": ("G", lambda n, x, z: looking_ahead(n, x, z, steps=2, rate=0.3)),
    }),
    "ali": (lambda n: ali(n.J, n.G, n.F), {
        "discriminator": ("J", telling_pairs),
        "generator": ("G F", lambda n, x, z: -denied(n.J(pair(x, n.F(x)))).mean()
                      - said(n.J(pair(n.G(z), z))).mean()),
    }),
    "veegan": (lambda n: veegan(n.J, n.G, n.F), {
        "discriminator": ("J", lambda n, x, z: -said(n.J(pair(n.G(z), z))).mean()
                          - denied(n.J(pair(x, n.F(x)))).mean()),
        "reconstructor": ("F", rebuilding),
        "generator": ("G", lambda n, x, z: n.J(pair(n.G(z), z)).mean() + rebuilding(n, x, z)),
    }),
    "lfvi": (lambda n: lfvi(n.J, n.G, n.F), {
        "discriminator": ("J", telling_pairs),
        "inference": ("F", lambda n, x, z: n.J(pair(x, n.F(x))).mean()),
        "generator": ("G", lambda n, x, z: -n.J(pair(n.G(z), z)).mean()),
    }),
    "informative": (lambda n: informative(n.D, n.G, n.T, beta=0.3), {
        "discriminator": ("D", the_game),
        "information": ("T", lambda n, x, z: -information(n, n.G(z), z)),
        "generator": ("G", lambda n, x, z: fooling(n, x, z) - 0.3 * information(n, n.G(z), z)),
    }),
    "smoothed": (lambda n: smoothed(n.D, n.G, target=0.8), {
        "discriminator": ("D", lambda n, x, z: -0.8 * said(n.D(x)).mean()
                          - 0.2 * denied(n.D(x)).mean() - denied(n.D(n.G(z))).mean()),
        "generator": ("G", fooling),
    }),
    "feature_matching": (lambda n: feature_matching(n.body, n.head, n.G), {
        "discriminator": ("body head", lambda n, x, z: -said(n.head(n.body(x))).mean()
                          - denied(n.head(n.body(n.G(z)))).mean()),
        "generator": ("G", lambda n, x, z: (n.body(x).mean(0) - n.body(n.G(z)).mean(0)).norm()**2),
    }),
    "pix2pix": (lambda n: pix2pix(n.J, n.R, weight=7.0), {  # x is translated into y
        "discriminator": ("J", lambda n, x, y: -said(n.J(pair(x, y))).mean()
                          - denied(n.J(pair(x, n.R(x)))).mean()),
        "generator": ("R", lambda n, x, y: -said(n.J(pair(x, n.R(x)))).mean()
                      + 7 * (n.R(x) - y).abs().mean()),
    }),
    "pix2pix, for the error alone": (lambda n: pix2pix(n.J, n.R, adversarial=False), {
        "absolute_error": ("R", lambda n, x, y: (n.R(x) - y).abs().mean()),
    }),
    "simgan": (lambda n: simgan(n.D, n.R, weight=3.0), {  # s is synthetic, x is real
        "discriminator": ("D", lambda n, s, x: -said(n.D(x)).mean() - denied(n.D(n.R(s))).mean()),
        "refiner": ("R", lambda n, s, x: -said(n.D(n.R(s))).mean()
                    + 3 * (n.R(s) - s).abs().mean()),
    }),
}  # fmt: skip
DETACHED = ["relativistic", "wasserstein", "pix2pix", "simgan"]  # D's loss reaches nobody else


def smooth(*sizes):
    return mlp(*sizes, activation=nn.Tanh).double()


@pytest.fixture
def n():
    """The networks: of points (N, 2) and codes (N, 2)."""
    torch.manual_seed(0)
    return SimpleNamespace(
        D=smooth(2, 6, 1), G=smooth(2, 6, 2), J=smooth(4, 6, 1), F=smooth(2, 6, 2),
        T=smooth(4, 6, 1), R=smooth(2, 6, 2), body=smooth(2, 6, 5), head=smooth(5, 1),
    )  # fmt: skip


@pytest.fixture
def batch():
    return 1 + torch.randn(9, 2).double(), torch.randn(9, 2).double()


def gradients(loss, networks):
    weights = [weight for network in networks for weight in network.parameters()]
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def assert_plays(players, equations, batch):
    """Each player's loss is its equation, in value and in the gradient of what it moves."""
    assert [player.name for player in players] == list(equations)
    for player, (moved, equation) in zip(players, equations.values(), strict=True):
        assert player.modules == moved
        losses = []
        for loss in (player.loss, equation):
            torch.manual_seed(7)
            losses.append(loss(*batch))
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
        slopes = [gradients(loss, moved) for loss in losses]
        assert max(slope.abs().max() for slope in slopes[1]) > 1e-3
        torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


def test_every_objective_is_among_the_games():
    functions = [f for f in vars(gans).values() if inspect.isfunction(f) and f.__name__[0] != "_"]
    own = [f for f in functions if f.__module__ == "minimax.gans"]
    objectives = {f.__name__ for f in own if f.__annotations__["return"] == list[Player]}
    assert objectives - {name.split(",")[0] for name in GAMES} == {"semi_supervised"}  # classes


@pytest.mark.parametrize("game", GAMES)
def test_each_player_minimises_its_equation(game, n, batch):
    players, equations = GAMES[game]
    written_out = {
        name: ([getattr(n, part) for part in moved.split()], partial(equation, n))
        for name, (moved, equation) in equations.items()
    }
    assert_plays(players(n), written_out, batch)


@pytest.mark.parametrize("game", DETACHED)
def test_what_d_minimises_sends_no_gradient_to_the_generator(game, n, batch):
    loss = GAMES[game][0](n)[0].loss(*batch)
    for slope in gradients(loss, [n.G, n.R]):
        assert not slope.any()


def test_the_semi_supervised_players_minimise_their_equations(n):
    """With logits l and 0 for "generated", which is then the class K + 1 of one softmax."""
    x, unlabelled, noise = torch.randn(3, 6, 2).double().unbind(0)
    y, head = torch.randint(3, (6,)), smooth(5, 3)

    def log_probability(images, classes):
        logits = torch.cat([head(n.body(images)), torch.zeros(6, 1)], 1)
        chosen = logits.softmax(1) * classes
        return chosen.sum(1).log().mean()

    def discriminators(x, y, unlabelled, noise):
        known = one_hot(torch.tensor(3), 4)
        labelled = (head(n.body(x)).softmax(1) * one_hot(y, 3)).sum(1).log().mean()
        real, fake = (
            log_probability(unlabelled, 1 - known),
            log_probability(n.G(noise), known),
        )
        return -labelled - real - fake

    def generators(x, y, unlabelled, noise):
        return (n.body(unlabelled).mean(0) - n.body(n.G(noise)).mean(0)).norm() ** 2

    players = semi_supervised(n.body, head, n.G)
    equations = {
        "discriminator": ([n.body, head], discriminators),
        "generator": ([n.G], generators),
    }
    assert_plays(players, equations, (x, y, unlabelled, noise))
    loss = players[0].loss(x, y, unlabelled, noise)
    assert not any(slope.any() for slope in gradients(loss, [n.G]))
    assert torch.equal(loss, players[0].loss(x, y.int(), unlabelled, noise))


class Constant(nn.Module):
    """A discriminator whose logit is always the same."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, x):
        return self.logit.expand(len(x), 1)


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 3.0, 30.0])
def test_the_generators_losses_and_their_slopes(logit):
    """Also where D is sure, and the minimax game saturates."""
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


def test_each_player_has_its_own_options_before_the_common_ones():
    D, G, T = mlp(2, 1), mlp(3, 2), mlp(5, 1)
    own = {"d": {"lr": 0.1}, "g": {"turns": 2}, "third": {"clip": 0.5}}
    d, third, g = informative(D, G, T, lr=0.5, betas=(0.1, 0.2), **own)
    assert (d.modules, third.modules, g.modules) == ([D], [T], [G])
    assert [(p.lr, p.turns, p.clip) for p in (d, third, g)] == [
        (0.1, 1, None), (0.5, 1, 0.5), (0.5, 2, None),
    ]  # fmt: skip
    assert {p.betas for p in (d, third, g)} == {(0.1, 0.2)}
    assert own == {"d": {"lr": 0.1}, "g": {"turns": 2}, "third": {"clip": 0.5}}
    for none in (None, 0.1, [("lr", 0.1)]):
        with pytest.raises(ValueError, match=r"^d is .*; it has to be a dictionary of options"):
            minimax(D, G, d=none)


def test_the_papers_turns_give_way_to_those_that_are_asked_for():
    D, G = mlp(2, 1), mlp(3, 2)
    assert [p.turns for p in wasserstein(D, G, d={"turns": 3})] == [3, 1]
    assert [p.turns for p in simgan(mlp(2, 1), mlp(2, 2), g={"turns": 1})] == [1, 1]


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


def test_wasserstein_penalty_is_zero_for_slope_one():
    real, noise = torch.randn(16, 2), torch.randn(16, 2)
    G = mlp(2, 4, 2)
    for D, extra in [(Slope(0.6, 0.8), 0.0), (Slope(0.0, 3.0), 10 * 4.0)]:
        critic, generator = wasserstein(D, G)
        distance = D(G(noise)).mean() - D(real).mean()
        assert torch.allclose(critic.loss(real, noise), distance + extra, atol=1e-4)
        assert (critic.turns, generator.turns) == (5, 1)


class Bowl(nn.Module):
    """D(x) = ‖x‖² / 2, whose slope is as long as x."""

    def forward(self, x):
        return x.square().sum(1, keepdim=True) / 2


def test_wasserstein_penalty_is_paid_between_data_and_samples_with_a_share_for_each():
    """Data lie at 0, samples at (2, 0), so that E (slope − 1)² is ∫ (2u − 1)² du = ⅓.

    At the data alone, or the samples alone, it would be 1, and with one share for all no mean.
    """
    torch.manual_seed(0)
    real, noise = torch.zeros(20_000, 2), torch.tensor([[2.0, 0.0]]).expand(20_000, 2)
    paid, free = (
        wasserstein(Bowl(), nn.Identity(), penalty)[0].loss(real, noise) for penalty in (1.0, 0.0)
    )
    assert (paid - free).item() == pytest.approx(1 / 3, abs=0.01)


def test_unrolling_no_steps_is_the_minimax_game_up_to_what_g_cant_change():
    real, noise = torch.randn(16, 2), torch.randn(16, 3)
    D, G = mlp(2, 8, 1), mlp(3, 8, 2)
    slopes = [
        torch.autograd.grad(players[1].loss(real, noise), list(G.parameters()))
        for players in (unrolled(D, G, 0), minimax(D, G))
    ]
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


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


MIXING = [
    lambda: nn.BatchNorm1d(8),
    lambda: nn.BatchNorm1d(8, track_running_stats=False).eval(),
    lambda: MinibatchDiscrimination(8, 2, 2),
]


@pytest.mark.parametrize("layer", MIXING)
@pytest.mark.parametrize("objective", [relativistic, wasserstein, None])
def test_slopes_of_a_d_that_mixes_samples_are_refused_by_name(layer, objective):
    D = Packed(nn.Sequential(nn.Linear(2, 8), layer()), 1)
    named = rf"D is a network with {type(layer()).__name__}.*judges each sample by itself"
    with pytest.raises(ValueError, match=named):
        objective(D, mlp(2, 2)) if objective else squared_slope(D, torch.randn(4, 2))


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8).eval()],
    ids=["layer", "group", "batch, in evaluation"],
)
@pytest.mark.parametrize("objective", [relativistic, wasserstein])
def test_slopes_of_a_d_that_normalises_each_sample_by_itself_are_played(layer, objective):
    D = nn.Sequential(nn.Linear(2, 8), layer, nn.Tanh(), nn.Linear(8, 1))
    players = objective(D, mlp(2, 8, 2))
    game = play(players, minibatches(torch.randn(32, 2), size=8, noise=2), rounds=2)
    assert all(torch.isfinite(loss).all() for loss in game.losses.values())


@pytest.mark.parametrize("copies", [None, 2])
def test_unrolling_a_d_with_batch_normalisation_leaves_its_running_statistics(copies):
    D = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    players = unrolled(D, mlp(2, 8, 2), steps=2)
    play(players, minibatches(torch.randn(32, 2), size=8, noise=2), rounds=3, copies=copies)
    assert D[1].num_batches_tracked == 3 * 2  # D's own turns, at data and at samples
    assert D[1].track_running_stats and D[1].training


def test_unrolling_normalises_by_each_batch():
    real, noise = torch.randn(2, 16, 2)
    torch.manual_seed(0)
    D, G = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), mlp(2, 8, 2)
    twin = nn.Sequential(D[0], nn.BatchNorm1d(8, track_running_stats=False), D[2])
    ahead, expected = (unrolled(net, G, 3)[1].loss(real, noise) for net in (D, twin))
    assert torch.equal(ahead, expected)


X, Z, IMAGES, Y = torch.randn(6, 2), torch.randn(6, 3), torch.rand(6, 1, 8, 8), torch.arange(6) % 3
D1, G1, F1, J1 = mlp(2, 1), mlp(3, 2), mlp(2, 3), mlp(5, 1)  # these fit X and Z
NARROW_G, NARROW_F = mlp(3, 1), mlp(2, 1)  # these give one column
GREY = nn.Conv2d(3, 1, 1)  # this one channel
PATCHES = nn.Conv2d(4, 1, 1)
PAINTER = nn.Sequential(mlp(3, 64), nn.Unflatten(1, (1, 8, 8)))
FLAT_D = nn.Sequential(nn.Flatten(), mlp(64, 1))
EXTRA = semi_supervised(mlp(2, 4), mlp(4, 3), NARROW_G)
COLOURS = (torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))
NO_G, NO_F = r"G is giving shape \(6, 1\).*giving \(6, 2\)", r"F is giving shape \(6, 1\).*\(6, 3\)"
NO_COLOUR = r"G is giving shape \(2, 1, 4, 4\).*giving \(2, 3, 4, 4\)"
SHAPES = {
    "relativistic, D": (relativistic(D1, NARROW_G)[0], (X, Z), NO_G),
    "relativistic, G": (relativistic(D1, NARROW_G)[1], (X, Z), NO_G),
    "relativistic, one sample": (relativistic(D1, G1)[1], (X, Z[:1]), r"G is .*\(1, 2\).*\(6, 2\)"),
    "wasserstein": (wasserstein(FLAT_D, PAINTER)[0], (IMAGES[:, 0], Z), r"G is.*\(6, 1, 8, 8\)"),
    "veegan, D": (veegan(J1, G1, NARROW_F)[0], (X, Z), NO_F),
    "veegan, F": (veegan(J1, G1, NARROW_F)[1], (X, Z), NO_F),
    "veegan, G": (veegan(J1, G1, NARROW_F)[2], (X, Z), NO_F),
    "veegan, narrow G": (veegan(J1, NARROW_G, F1)[2], (X, Z), NO_G),
    "lfvi, F": (lfvi(J1, G1, NARROW_F)[1], (X, Z), NO_F),
    "lfvi, G": (lfvi(J1, NARROW_G, F1)[2], (X, Z), NO_G),
    "ali": (ali(J1, NARROW_G, F1)[0], (X, Z), NO_G),
    "two numbers of T": (informative(D1, G1, mlp(5, 2))[1], (X, Z), r"T is giving shape \(6, 2\)"),
    "pix2pix, D": (pix2pix(nn.Conv2d(6, 1, 1), GREY)[0], COLOURS, NO_COLOUR),
    "pix2pix, G": (pix2pix(PATCHES, GREY)[1], COLOURS, NO_COLOUR),
    "pix2pix, error": (pix2pix(PATCHES, GREY, adversarial=False)[0], COLOURS, NO_COLOUR),
    "a small y": (pix2pix(PATCHES, GREY)[0], (COLOURS[0], IMAGES[:2]), r"4, 4\) and \(2, 1, 8"),
    "simgan, D": (simgan(FLAT_D, nn.Flatten())[0], (IMAGES, IMAGES), r"R is.*\(6, 64\)"),
    "simgan, R": (simgan(FLAT_D, GREY)[1], (COLOURS[0], IMAGES), r"R is giving shape \(2, 1, 4"),
    "semi-supervised, D": (EXTRA[0], (X, Y, X, Z), NO_G),
    "semi-supervised, G": (EXTRA[1], (X, Y, X, Z), NO_G),
    "a column of labels": (
        semi_supervised(mlp(2, 4), mlp(4, 3), G1)[0], (X, Y[:, None], X, Z), r"y is \(6, 1\)",
    ),
    "feature matching, D": (feature_matching(mlp(2, 4), mlp(4, 1), NARROW_G)[0], (X, Z), NO_G),
    "feature matching, G": (feature_matching(mlp(2, 4), mlp(4, 1), NARROW_G)[1], (X, Z), NO_G),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_differ_are_refused_and_the_network_named(case):
    player, batch, named = SHAPES[case]
    with pytest.raises(ValueError, match=named):
        player.loss(*batch)


def test_shapes_that_differ_are_refused_in_games_of_copies_too():
    players = veegan(mlp(4, 1), mlp(2, 2), mlp(2, 1))
    draw = minibatches(torch.randn(9, 2), size=8, noise=2)
    with pytest.raises(ValueError, match=r"F is giving shape \(8, 1\).*\(8, 2\)"):
        play(players, draw, rounds=1, copies=2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda D, G: relativistic(D, G, gamma=-1), "gamma is -1"),
        (lambda D, G: relativistic(D, G, gamma="0.1"), "gamma is '0.1'"),
        (lambda D, G: wasserstein(D, G, penalty=math.nan), "penalty is nan"),
        (lambda D, G: wasserstein(D, G, d={"turns": 0}), "turns is 0"),
        (lambda D, G: unrolled(D, G, steps=-1), "steps is -1"),
        (lambda D, G: unrolled(D, G, step_size=math.inf), "step_size is inf"),
        (lambda D, G: informative(D, G, D, beta=-1), "beta is -1"),
        (lambda D, G: pix2pix(D, G, weight=-1.0), "weight is -1"),
        (lambda D, G: simgan(D, G, weight=None), "weight is None"),
        (lambda D, G: Packed(D, 0), "pack is 0"),
        (lambda D, G: Memory(0, (1,)), "size is 0"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(mlp(2, 1), mlp(2, 2))


def test_numbers_of_numpy_are_numbers(n, batch):
    plain = [relativistic(n.D, n.G, 0.5), unrolled(n.D, n.G, 2, 0.5), pix2pix(n.J, n.R, 2.0)]
    exotic = [
        relativistic(n.D, n.G, np.float32(0.5)),
        unrolled(n.D, n.G, np.int64(2), np.float64(0.5)),
        pix2pix(n.J, n.R, torch.tensor(2.0)),
    ]
    for one, other in zip(plain, exotic, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.loss(*batch), b.loss(*batch))


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


def test_a_memory_replaces_what_it_gives_and_draws_by_chance():
    torch.manual_seed(0)
    given = set()
    for _ in range(20):
        memory = Memory(10, (1,))
        memory.mixed(torch.arange(10.0)[:, None])
        mixed = memory.mixed(torch.full((5, 1), 99.0))  # of an odd batch, the smaller half
        earlier = mixed[mixed < 10].tolist()
        assert len(mixed) == 5 and len(earlier) == len(set(earlier)) == 2
        assert set(memory.images.flatten().tolist()) == set(range(10)) - set(earlier) | {99.0}
        given |= set(earlier)
    assert len(given) > 5


@pytest.mark.parametrize("fresh", [torch.zeros(4, 1, 3), torch.zeros(4), torch.zeros(14, 1)])
def test_a_memory_refuses_what_does_not_fit(fresh):
    memory = Memory(6, (1,))
    with pytest.raises(ValueError, match=r"the memory's batch is of shape.*\(6, 1\).*at most 12"):
        memory.mixed(fresh)


def test_a_memory_is_not_for_several_copies():
    R, D, images = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3), torch.rand(8, 1, 4, 4)
    players = simgan(D, R, memory=Memory(16, (1, 4, 4)))
    draw = minibatches(images, images, size=4)
    with pytest.raises(ValueError, match="memory is in a game of several copies"):
        play(players, draw, rounds=1, copies=2)


def test_what_d_is_shown_as_refined_comes_half_from_the_memory(n):
    memory = Memory(4, (2,)).double()
    players = simgan(n.D, n.R, memory=memory)
    earlier, synthetic, real = (shift + torch.randn(4, 2).double() for shift in (5, 0, 0))
    memory.mixed(earlier)
    torch.manual_seed(3)
    loss = players[0].loss(synthetic, real)
    torch.manual_seed(3)
    shown = torch.cat([earlier[torch.randperm(4)[:2]], n.R(synthetic)[2:]])
    torch.testing.assert_close(loss, -(said(n.D(real)) + denied(n.D(shown))).mean())


def test_the_refiner_moves_twice_and_the_memory_is_d_s_to_keep():
    synthetic, real = torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4)
    R, D, memory = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3), Memory(16, (1, 4, 4))
    discriminator, refiner = simgan(D, R, weight=3.0, memory=memory)
    assert (discriminator.turns, refiner.turns) == (1, 2)
    assert discriminator.modules == [D, memory]
    play([discriminator, refiner], minibatches(synthetic, real, size=8), rounds=3, seed=0)
    assert memory.filled == 16  # what it saw in three rounds of eight


@pytest.mark.parametrize("wrong", [3, -100])
def test_a_class_that_the_semi_supervised_head_does_not_know_is_named(wrong):
    player = semi_supervised(mlp(2, 4), mlp(4, 3), G1)[0]
    with pytest.raises(ValueError, match=rf"y is from {wrong} to {wrong}; .* from 0 to 2"):
        player.loss(X, torch.full((6,), wrong), X, Z)


@pytest.mark.parametrize(
    ("objective", "networks", "absent"),
    [(non_saturating, (D1, G1), "third"), (partial(pix2pix, adversarial=False), (D1, G1), "d")],
)
def test_options_for_somebody_who_does_not_play_are_refused(objective, networks, absent):
    with pytest.raises(ValueError, match=f"options is given for '{absent}'; it has to be for "):
        objective(*networks, **{absent: {"lr": 0.1}})
