"""Defences: what the players minimise, with and without copies, and what certificates say."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import nn
from torch.nn.functional import cross_entropy

from minimax.attacks import fgsm
from minimax.data import load
from minimax.defenses import (
    adversarial_training,
    certify,
    interval_bounds,
    virtual_adversarial_loss,
    virtual_adversarial_training,
    worst_case,
)
from minimax.evaluation import accuracy
from minimax.game import Player, minibatches, play, reinitialise, seed_of
from minimax.networks import mlp, strided_network


def total(network, y):
    return lambda x: cross_entropy(network(x), y, reduction="sum")


def test_a_function_is_no_network_to_certify():
    with pytest.raises(ValueError, match=r"model is of type function; it has to be a torch\.nn"):
        certify(lambda x: x.flatten(1), GREY, 0.25, samples=10)


def test_one_step_is_fgsm():
    network = mlp(8, 16, 3)
    x, y = torch.rand(20, 8), torch.randint(3, (20,))
    step = worst_case(total(network, y), x, 0.1)
    assert torch.equal(step, fgsm(network, x, y, 0.1))


@pytest.mark.parametrize("start", [False, True])
def test_steps_stay_in_the_ball_and_raise_the_loss(start):
    network = mlp(8, 16, 3)
    x, y = torch.rand(50, 8), torch.randint(3, (50,))
    loss = total(network, y)
    moved = worst_case(loss, x, 0.2, steps=20, random_start=start)
    assert (moved - x).abs().max() <= 0.2 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    assert loss(moved) > loss(worst_case(loss, x, 0.2)) - 0.1 > loss(x)
    assert not moved.requires_grad


def test_a_random_start_lies_on_both_sides_and_anywhere_in_the_ball():
    x = torch.full((10_000,), 0.5)
    start = worst_case(lambda images: 0 * images.sum(), x, 0.2, random_start=True) - x
    assert -0.2 <= start.min() < -0.199 and 0.199 < start.max() <= 0.2
    assert abs(start.mean()) < 0.01 and start.abs().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(worst_case(lambda images: 0 * images.sum(), x, 0.2), x)


@pytest.mark.parametrize("clip", [False, True])
def test_a_start_may_leave_the_pixels_until_the_first_step(clip):
    """Wong et al. (2020) don't clip it; clipped, half of the black pixels start as they are."""
    x, seen = torch.cat([torch.zeros(5_000), torch.ones(5_000)]), []

    def loss(images):
        seen.append(images.detach().clone())
        return images.sum()

    options = {"steps": 2, "step_size": 0.01, "random_start": True, "clip_start": clip}
    moved = worst_case(loss, x, 0.2, **options)
    black, white = seen[0].split(5_000)
    assert (black.min() < -0.19, white.max() > 1.19) == (not clip, not clip)
    assert (black <= 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    for images in (seen[1], moved):
        assert images.min() >= 0 and images.max() <= 1


def test_one_step_from_a_random_start_is_as_long_as_the_radius():
    """So one from the lower edge of the ball ends in its middle."""
    x = torch.full((10_000,), 0.5)
    moved = worst_case(lambda images: images.sum(), x, 0.2, random_start=True) - x
    assert -1e-6 <= moved.min() < 0.001 and moved.max().item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("steps", "step_size", "far"),
    [(1, None, 0.1), (5, None, 0.05), (1, 0.04, 0.04), (3, 0.06, 0.06)],
)
def test_steps_are_as_long_as_they_are_said_to_be(steps, step_size, far):
    """Around a peak 0.03 away an odd number of steps ends one step away: ε, 2.5·ε/steps."""
    x = torch.full((2, 3), 0.5)

    def loss(images):
        return -(images - 0.53).square().sum()

    moved = worst_case(loss, x, 0.1, steps=steps, step_size=step_size)
    torch.testing.assert_close(moved, x + far)


def test_long_steps_end_on_the_ball_and_inside_the_pixels():
    x = torch.tensor([[0.0, 0.05, 0.5, 0.95, 1.0]])
    up = worst_case(lambda images: images.sum(), x, 0.1, steps=3, step_size=5.0)
    down = worst_case(lambda images: -images.sum(), x, 0.1, steps=3, step_size=5.0)
    torch.testing.assert_close(up, torch.tensor([[0.1, 0.15, 0.6, 1.0, 1.0]]))
    torch.testing.assert_close(down, torch.tensor([[0.0, 0.0, 0.4, 0.85, 0.9]]))


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "inner",
    [{}, {"steps": 3, "step_size": 0.07, "random_start": True, "clip_start": True}],
    ids=["one step", "three"],
)
def test_adversarial_training_minimises_its_equation(mix, inner):
    """Goodfellow et al. (2015), section 6: α·ℓ(x, y) + (1 − α)·ℓ(x + δ, y); in the end δ alone."""
    network = mlp(8, 16, 3)
    x, y = torch.rand(20, 8), torch.randint(3, (20,))
    player = adversarial_training(network, 0.1, mix=mix, **inner)
    torch.manual_seed(7)
    loss = player.loss(x, y)
    torch.manual_seed(7)
    worst = worst_case(total(network, y), x, 0.1, **inner)
    by_hand = mix * cross_entropy(network(worst), y) + (1 - mix) * cross_entropy(network(x), y)
    torch.testing.assert_close(loss, by_hand)
    weights = list(network.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(value, weights) for value in (loss, by_hand)))


def test_copies_train_as_single_games_do():
    x, y = torch.rand(100, 6), torch.randint(3, (100,))
    network = mlp(6, 12, 3)
    player = adversarial_training(network, 0.1, steps=3)
    batches = minibatches(x, y, size=20)
    together = play([player], batches, rounds=20, copies=2, seed=5)
    losses = together.losses["adversarial"]
    for copy in range(2):
        seed = seed_of(5, copy)
        torch.manual_seed(seed)
        reinitialise(network)
        alone = play([player], batches, rounds=20, seed=seed)
        torch.testing.assert_close(
            losses[:, copy], alone.losses["adversarial"], atol=1e-4, rtol=1e-4
        )


def test_adversarial_training_defends():
    torch.manual_seed(0)
    train, test = load("digits"), load("digits", split="test")
    robust = {}
    for mix in (0.0, 1.0):
        network = nn.Sequential(nn.Flatten(), mlp(64, 64, 10))
        player = adversarial_training(network, 0.15, steps=3, mix=mix)
        play([player], minibatches(train.x, train.y, size=100), rounds=300)
        robust[mix] = accuracy(network, fgsm(network, test.x, test.y, 0.15), test.y)
    assert robust[1.0] > robust[0.0] + 0.2


def test_virtual_adversary_finds_the_direction_that_changes_most():
    """For a linear network with two classes it is known: the difference of the two weights."""
    torch.manual_seed(0)
    network = nn.Linear(5, 2)
    x = torch.rand(30, 5)
    found = virtual_adversarial_loss(network, x, 0.5, steps=10)
    along = (network.weight[1] - network.weight[0]).detach()
    along = 0.5 * along / along.norm()
    before = network(x).log_softmax(1)
    best = torch.stack(
        [(before.exp() * (before - network(x + s * along).log_softmax(1))).sum(1) for s in (1, -1)]
    )
    assert best.amin(0).mean() * 0.99 <= found <= best.amax(0).mean() * 1.01
    random = torch.randn(5)
    other = network(x + 0.5 * random / random.norm()).log_softmax(1)
    assert found > (before.exp() * (before - other)).sum(1).mean()


@pytest.mark.parametrize(("steps", "xi"), [(1, 0.5), (3, 0.5), (1, 1e-2)])
def test_virtual_adversarial_loss_is_the_papers_in_value_and_gradient(steps, xi):
    """The answer at x is a constant: no gradient flows through it (Miyato et al. 2018, eq. 5)."""
    torch.manual_seed(0)
    network = mlp(4, 8, 3, activation=nn.Tanh).double()
    x = torch.rand(6, 2, 2).double()
    network = nn.Sequential(nn.Flatten(), network)

    def divergence(r):
        p = network(x).softmax(1).detach()
        return (p * (p.log() - network(x + r).softmax(1).log())).sum(1)

    def unit(d):
        return torch.stack([row / row.norm() for row in d])

    torch.manual_seed(7)
    d = unit(torch.randn_like(x))
    for _ in range(steps):
        r = (xi * d).requires_grad_()
        d = unit(torch.autograd.grad(divergence(r).sum(), r)[0])
    by_hand = divergence(0.8 * d).mean()
    torch.manual_seed(7)
    loss = virtual_adversarial_loss(network, x, 0.8, steps=steps, xi=xi)
    torch.testing.assert_close(loss, by_hand)
    weights = list(network.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(value, weights) for value in (loss, by_hand)))


def test_virtual_adversarial_training_weighs_the_change_on_all_images():
    network = mlp(5, 8, 2)
    x, y, unlabelled = torch.rand(4, 5), torch.randint(2, (4,)), torch.rand(9, 5)
    options = {"steps": 2, "xi": 0.1}
    player = virtual_adversarial_training(network, 0.4, weight=3.0, **options)
    torch.manual_seed(7)
    loss = player.loss(x, y, unlabelled)
    torch.manual_seed(7)
    change = virtual_adversarial_loss(network, torch.cat([x, unlabelled]), 0.4, **options)
    torch.testing.assert_close(loss, cross_entropy(network(x), y) + 3 * change)


def test_virtual_adversary_works_on_copies_and_passes_a_gradient():
    x, y = torch.rand(40, 5), torch.randint(2, (40,))
    network = mlp(5, 8, 2)
    player = virtual_adversarial_training(network, 0.1)
    draw = minibatches(x, y, size=10)
    history = play([player], lambda g: (*draw(g), x), rounds=30, copies=3)
    losses = history.losses["virtual_adversarial"]
    assert losses.shape == (30, 3) and torch.isfinite(losses).all()
    loss = virtual_adversarial_loss(network, x, 0.1)
    assert loss >= 0 and torch.autograd.grad(loss, network[0].weight)[0].abs().sum() > 0


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("mix", [1.0, 0.5])
def test_adversarial_training_of_a_network_with_batch_normalisation(copies, mix):
    """Only the losses count for the running statistics, not what is tried on the way to them."""
    network, x, y = normalised(), torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    player = adversarial_training(network, 0.1, steps=3, mix=mix)
    game = play([player], minibatches(x, y, size=6), rounds=4, seed=0, copies=copies)
    assert torch.isfinite(game.losses["adversarial"]).all()
    assert network[1].num_batches_tracked == (4 if mix == 1 else 8)
    assert network[1].running_mean.abs().sum() > 0
    assert network[1].training and network[1].track_running_stats


@pytest.mark.parametrize("copies", [None, 2])
def test_virtual_adversarial_training_of_a_network_with_batch_normalisation(copies):
    """As in the code of Miyato et al., the labelled images alone count for the statistics."""
    network, x, y = normalised(), torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    draw = minibatches(x, y, size=6)
    player = virtual_adversarial_training(network, 0.1, steps=2)
    game = play([player], lambda g: (*draw(g), x), rounds=4, seed=0, copies=copies)
    assert torch.isfinite(game.losses["virtual_adversarial"]).all()
    assert network[1].num_batches_tracked == 4
    assert network[1].training and network[1].track_running_stats


def test_the_worst_images_of_a_network_in_training_are_normalised_by_their_batch():
    network, x, y = normalised(), torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    twin = nn.Sequential(network[0], nn.BatchNorm2d(4, track_running_stats=False), *network[2:])
    moved, expected = (worst_case(total(n, y), x, 0.1, steps=3) for n in (network, twin))
    assert torch.equal(moved, expected)
    assert not torch.equal(moved, worst_case(total(network.eval(), y), x, 0.1, steps=3))


def test_bounds_of_a_linear_classifier_are_reached():
    """There no interval is too wide: the worst image has each pixel at an end of its interval."""
    torch.manual_seed(0)
    network, x = mlp(6, 3), torch.rand(20, 6)
    lower, upper = interval_bounds(network, x, 0.3)
    ends = (x - 0.3).clamp(0, 1), (x + 0.3).clamp(0, 1)
    for k, w in enumerate(network[0].weight):
        low, high = (torch.where(w > 0, a, b) for a, b in (ends, ends[::-1]))
        torch.testing.assert_close(lower[:, k], network(low)[:, k])
        torch.testing.assert_close(upper[:, k], network(high)[:, k])


def test_no_image_of_the_ball_leaves_the_bounds_and_without_a_ball_they_are_the_logits():
    torch.manual_seed(0)
    network, x = strided_network(), torch.rand(4, 1, 28, 28)
    y = torch.tensor([3, 1, 4, 1])
    bounds = interval_bounds(network, x, 0.01)
    for _ in range(20):
        logits = network((x + 0.01 * torch.randn_like(x).sign()).clamp(0, 1))
        assert (bounds.lower <= logits + 1e-6).all() and (logits <= bounds.upper + 1e-6).all()
    with torch.no_grad():
        attacked = network(fgsm(network, x, y, 0.01))
    loss = cross_entropy(bounds.worst(y), y)
    assert cross_entropy(attacked, y) <= loss
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
    point = interval_bounds(network, x, 0.0)
    torch.testing.assert_close(point.lower, point.upper)
    torch.testing.assert_close(point.lower, network(x))


def test_bounds_are_those_of_the_paper_written_out():
    """Gowal et al. (2018), equation 6, for two layers with ReLU between them."""
    torch.manual_seed(0)
    first, second = nn.Linear(5, 7), nn.Linear(7, 4, bias=False)
    x = torch.rand(3, 5)
    low, high = (x - 0.2).clamp(0, 1), (x + 0.2).clamp(0, 1)
    for layer in (first, second):
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        bias = 0 if layer.bias is None else layer.bias
        low, high = low @ up.T + high @ down.T + bias, high @ up.T + low @ down.T + bias
        if layer is first:
            low, high = low.clamp(min=0), high.clamp(min=0)
    network = nn.Sequential(nn.Sequential(first, nn.ReLU()), second)
    bounds = interval_bounds(network, x, 0.2)
    torch.testing.assert_close(bounds.lower, low)
    torch.testing.assert_close(bounds.upper, high)
    worst = bounds.worst(torch.tensor([0, 3, 1]))
    torch.testing.assert_close(worst[1], torch.stack([*high[1, :3], low[1, 3]]))


@pytest.mark.parametrize("copies", [None, 2])
def test_a_player_can_minimise_a_loss_of_bounds(copies):
    torch.manual_seed(0)
    train = load("digits")
    network = nn.Sequential(nn.Flatten(), mlp(64, 32, 10))

    def proved_loss(x, y):
        return cross_entropy(interval_bounds(network, x, 0.01).worst(y), y)

    history = play([Player(network, proved_loss, lr=1e-2)], minibatches(train.x, train.y, size=50),
                   rounds=60, copies=copies)  # fmt: skip
    losses = history.losses["proved"]
    assert (losses[-10:].mean(0) < 0.7 * losses[:10].mean(0)).all()


class Halfspace(nn.Module):
    """Class 1 where the first pixel is above a half: its smoothed margin is known exactly."""

    def forward(self, x):
        score = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-score, score], 1)


def test_certificates_of_a_halfspace():
    """There the true radius is the distance to the border, whatever σ (Cohen et al., section 3)."""
    torch.manual_seed(0)
    x = torch.full((3, 1, 2, 2), 0.5)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.9, 0.2
    found = certify(Halfspace(), x, 0.5, samples=20_000)
    assert found.labels[:2].tolist() == [1, 0]
    assert 0.36 < found.radii[0] <= 0.4 + 1e-6 and 0.27 < found.radii[1] <= 0.3 + 1e-6
    assert found.labels[2] == -1 and found.radii[2] == 0


def test_no_radius_beyond_what_so_many_votes_can_prove():
    found = certify(Halfspace(), torch.ones(1, 1, 2, 2), 0.1, samples=100, alpha=0.01)
    assert found.radii.item() == pytest.approx(0.1 * norm.ppf(0.01 ** (1 / 100)), rel=1e-4)


class Ballot(nn.Module):
    """Casts the votes that are written down, one for each image, and keeps the images."""

    def __init__(self, *votes):
        super().__init__()
        self.votes, self.seen = torch.tensor(votes), []

    def forward(self, x):
        now, self.votes = self.votes.split([len(x), len(self.votes) - len(x)])
        self.seen.append(x)
        return nn.functional.one_hot(now, 3).float()


GREY = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize(("hits", "alpha"), [(150, 0.001), (180, 0.05), (200, 0.001)])
def test_the_bound_is_where_so_many_votes_have_probability_alpha(hits, alpha):
    ballot = Ballot(*[1] * 10, *[1] * hits, *[2] * (200 - hits))
    options = {"first": 10, "samples": 200, "alpha": alpha, "batch_size": 64}
    found = certify(ballot, GREY, 0.25, **options)
    p = norm.cdf(found.radii.item() / 0.25)
    assert binom.sf(hits - 1, 200, p) == pytest.approx(alpha, rel=1e-3)
    assert found.labels.tolist() == [1] and len(ballot.votes) == 0


def test_the_radius_grows_with_sigma_as_the_noise_does():
    torch.manual_seed(0)
    radii = []
    for sigma in (0.1, 0.3):
        ballot = Ballot(*[2] * 600)
        radii.append(certify(ballot, GREY, sigma, first=100, samples=500).radii.item())
        noise = torch.cat(ballot.seen) - GREY
        assert noise.std().item() == pytest.approx(sigma, rel=0.1)
        assert abs(noise.mean().item()) < sigma / 10
    assert radii[1] == pytest.approx(3 * radii[0])


def test_it_abstains_where_the_bound_is_not_above_a_half():
    for hits, label in [(115, -1), (140, 0)]:  # at α = 0.001 the bounds are 0.47 and 0.59
        ballot = Ballot(*[0] * 10, *[0] * hits, *[1] * (200 - hits))
        found = certify(ballot, GREY, 0.25, first=10, samples=200)
        assert found.labels.tolist() == [label] and (found.radii > 0).tolist() == [label == 0]


def test_the_first_votes_guess_and_only_the_others_count():
    guess, other = [1] * 30, [2] * 60
    found = certify(Ballot(*guess, *other), GREY, 0.25, first=30, samples=60)
    assert found.labels.tolist() == [-1] and found.radii.tolist() == [0]
    found = certify(Ballot(*guess, *[1] * 20), GREY, 0.25, first=30, samples=20)
    assert found.radii.item() == pytest.approx(0.25 * norm.ppf(0.001 ** (1 / 20)), rel=1e-4)


class Broken(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 10), math.nan)


def test_a_network_that_returns_nan_is_not_certified():
    with pytest.raises(ValueError, match="model is returning NaN or infinity"):
        certify(Broken(), GREY, 0.25, samples=200)


def test_double_images_are_certified_in_double():
    assert certify(Halfspace(), torch.ones(1, 4).double(), 0.1, samples=100).labels.item() == 1


def test_numbers_of_numpy_are_numbers():
    x, y, network = torch.rand(4, 5), torch.tensor([0, 1, 1, 0], dtype=torch.int32), mlp(5, 2)
    for plain, exotic in [
        (
            adversarial_training(network, 0.1, steps=2, step_size=0.1, mix=0.5),
            adversarial_training(
                network, torch.tensor(0.1), steps=np.int64(2), step_size=np.float64(0.1),
                random_start=np.False_, mix=np.float32(0.5),
            ),
        ),
        (
            virtual_adversarial_training(network, 0.5, weight=2, steps=2, xi=0.5),
            virtual_adversarial_training(
                network, np.float32(0.5), weight=np.int64(2), steps=np.int8(2),
                xi=np.float64(0.5),
            ),
        ),
    ]:  # fmt: skip
        losses = []
        for player in (plain, exotic):
            torch.manual_seed(0)
            batch = (x, y, x) if "virtual" in player.name else (x, y)
            losses.append(player.loss(*batch))
        torch.testing.assert_close(*losses)
    counts = {"first": np.int64(5), "samples": np.int32(50), "batch_size": np.int64(7)}
    certify(Halfspace(), torch.ones(1, 4), np.float64(0.1), alpha=np.float32(0.01), **counts)


@pytest.mark.parametrize(
    ("loss", "batch", "named"),
    [
        (adversarial_training(mlp(5, 2), 0.1).loss, [(4, 5), (4, 1)], r"y is \(4, 1\)"),
        (adversarial_training(mlp(5, 2), 0.1).loss, [(4, 5), (3,)], r"y is \(3,\)"),
        (adversarial_training(mlp(5, 1), 0.1).loss, [(4, 5), (4,)], r"network is.*\(4, 1\)"),
        (
            virtual_adversarial_training(mlp(5, 2), 0.1).loss,
            [(4, 5), (4, 1), (4, 5)],
            r"y is \(4, 1\)",
        ),
        (
            virtual_adversarial_training(mlp(5, 1), 0.1).loss,
            [(4, 5), (4,), (4, 5)],
            r"network is giving shape \(8, 1\)",
        ),
        (
            virtual_adversarial_training(mlp(5, 2), 0.1).loss,
            [(4, 5), (4,), (4, 6)],
            r"unlabelled is of shape \(4, 6\)",
        ),
    ],
)
def test_batches_that_do_not_fit_are_named(loss, batch, named):
    images, labels, *unlabelled = batch
    parts = (torch.rand(images), torch.zeros(labels).long(), *map(torch.rand, unlabelled))
    with pytest.raises(ValueError, match=named):
        loss(*parts)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda n, x: adversarial_training(n, -0.1), "epsilon"),
        (lambda n, x: adversarial_training(n, np.ones(2)), "epsilon"),
        (lambda n, x: adversarial_training(n, "0.1"), "epsilon is '0.1'"),
        (lambda n, x: adversarial_training(n, 0.1, step_size=-1), "step_size is -1"),
        (lambda n, x: adversarial_training(n, 0.1, step_size="1"), "step_size is '1'"),
        (lambda n, x: adversarial_training(n, 0.1, random_start="no"), "random_start is 'no'"),
        (lambda n, x: adversarial_training(n, 0.1, clip_start=2), "clip_start is 2"),
        (lambda n, x: interval_bounds(nn.Linear(3, 2), x, -1), "epsilon is -1"),
        (lambda n, x: interval_bounds(nn.Linear(3, 2), x + 1, 0.1), "x is between"),
        (lambda n, x: interval_bounds(nn.Sequential(nn.Tanh()), x, 0.1), "a layer of type Tanh"),
        (lambda n, x: interval_bounds(n, x, 0.1), "a layer of type Halfspace"),
        (lambda n, x: adversarial_training(n, 0.1, mix=math.nan), "mix is nan"),
        (lambda n, x: adversarial_training(n, 0.1, mix="half"), "mix is 'half'"),
        (lambda n, x: virtual_adversarial_training(n, math.inf), "epsilon is inf"),
        (lambda n, x: virtual_adversarial_training(n, 0.1, xi=0), "xi is 0"),
        (lambda n, x: virtual_adversarial_loss(n, x, -1), "epsilon is -1"),
        (lambda n, x: virtual_adversarial_loss(n, x, 0.1, steps=0), "steps is 0"),
        (lambda n, x: certify(n, x, 0.5, batch_size=0), "batch_size is 0"),
        (lambda n, x: certify(n, x, 0.5, first=0), "first is 0"),
        (lambda n, x: certify(n, x, 0.5, alpha="0.1"), "alpha is '0.1'"),
        (lambda n, x: certify(n, x, 0.5, alpha=0), "alpha is 0"),
        (lambda n, x: certify(n, x[:0], 0.5), "x is"),
        (lambda n, x: certify(nn.Flatten(0), x, 0.5), "model is returning shape"),
        (lambda n, x: adversarial_training(n, math.nan), "epsilon"),
        (lambda n, x: adversarial_training(n, 0.1, steps=0), "steps"),
        (lambda n, x: adversarial_training(n, 0.1, mix=2), "mix is 2"),
        (lambda n, x: virtual_adversarial_training(n, 0.1, steps=0), "steps"),
        (lambda n, x: virtual_adversarial_training(n, 0.1, weight=-1), "weight"),
        (lambda n, x: certify(n, x, 0.0), "sigma is 0"),
        (lambda n, x: certify(n, x, 0.5, alpha=1.5), "alpha is 1.5"),
        (lambda n, x: certify(n, x + 1, 0.5), "x is between"),
        (lambda n, x: certify(n, x, 0.5, samples=0), "samples"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(Halfspace(), torch.rand(2, 1, 2, 2) * 0.9)


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("wrong", [10, -100])
def test_labels_that_the_network_does_not_know_are_named_in_a_game(copies, wrong):
    network, x = mlp(5, 10), torch.rand(8, 5)
    y = torch.full((8,), wrong)
    players = [
        (adversarial_training(network, 0.1, mix=0.5), (x, y)),
        (virtual_adversarial_training(network, 0.1), (x, y, x)),
    ]
    for player, data in players:
        with pytest.raises(ValueError, match=rf"y is from {wrong} to {wrong}; .* from 0 to 9"):
            play([player], minibatches(*data, size=4), rounds=1, copies=copies)


@pytest.mark.parametrize("copies", [None, 2])
def test_images_outside_the_unit_interval_are_named_in_a_game(copies):
    """They would be clamped into it without a word, and the ball left."""
    player = adversarial_training(mlp(5, 10), 0.1)
    x = torch.linspace(-1, 1, 40).view(8, 5)
    batches = lambda generator: (x, torch.zeros(8).long())  # noqa: E731
    with pytest.raises(ValueError, match=r"x is between -1 and 1; it has to be between 0 and 1"):
        play([player], batches, rounds=1, copies=copies)


def test_a_gradient_of_nan_is_no_defense():
    """The sign of NaN is 0: the images would stay where they are, and pass for the worst."""
    moved = worst_case(lambda x: (x - 0.5).abs().sqrt().sum(), torch.tensor([[0.5, 0.2]]), 0.1)
    assert moved[0, 0].isnan() and moved[0, 1] == pytest.approx(0.1)
