"""Defences: what the players minimise, with and without copies, and what certificates say."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn.functional import cross_entropy

from minimax.attacks import fgsm
from minimax.data import load
from minimax.defenses import (
    adversarial_training,
    certify,
    virtual_adversarial_loss,
    virtual_adversarial_training,
    worst_case,
)
from minimax.game import minibatches, play
from minimax.networks import accuracy, mlp, reinitialise


def total(network, y):
    return lambda x: cross_entropy(network(x), y, reduction="sum")


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


def test_the_mix_is_the_papers():
    """Goodfellow et al. (2015), section 6: α·ℓ(x, y) + (1 − α)·ℓ(x + δ, y)."""
    network = mlp(8, 16, 3)
    x, y = torch.rand(20, 8), torch.randint(3, (20,))
    loss = adversarial_training(network, 0.1, mix=0.3).loss(x, y)
    by_hand = 0.7 * cross_entropy(network(x), y)
    by_hand += 0.3 * cross_entropy(network(fgsm(network, x, y, 0.1)), y)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_copies_train_as_single_games_do():
    x, y = torch.rand(100, 6), torch.randint(3, (100,))
    network = mlp(6, 12, 3)
    player = adversarial_training(network, 0.1, steps=3)
    batches = minibatches(x, y, size=20)
    together = play([player], batches, rounds=20, copies=2, seed=5)
    losses = together.losses["adversarial"]
    for copy in range(2):
        torch.manual_seed(5 + copy)
        reinitialise(network)
        alone = play([player], batches, rounds=20, seed=5 + copy)
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
    found = virtual_adversarial_loss(network, x, 0.5, iterations=10)
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


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda n, x: adversarial_training(n, -0.1), "epsilon"),
        (lambda n, x: adversarial_training(n, math.nan), "epsilon"),
        (lambda n, x: adversarial_training(n, 0.1, steps=0), "steps"),
        (lambda n, x: adversarial_training(n, 0.1, mix=2), "mix is 2"),
        (lambda n, x: virtual_adversarial_training(n, 0.1, iterations=0), "iterations"),
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
