"""The stabilisers of Salimans et al. against closed forms, and in games of several copies.

The equations of ``smoothed`` and ``feature_matching`` stand with those of the other games.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from minimax.evaluation import statistics_held
from minimax.game import Player, minibatches, play
from minimax.gans import non_saturating
from minimax.networks import mlp
from minimax.stabilisers import (
    HistoricalAverage,
    MinibatchDiscrimination,
    VirtualBatchNorm,
    WithReference,
    feature_matching,
    smoothed,
    with_history,
)


def batch(count=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 2, generator=generator).unbind(0)


def test_smoothing_with_target_one_is_the_plain_game():
    D, G = mlp(2, 8, 1), mlp(2, 8, 2)
    for plain, smooth in zip(non_saturating(D, G), smoothed(D, G, 1.0), strict=True):
        assert torch.allclose(plain.loss(*batch()), smooth.loss(*batch()))


def test_the_best_smoothed_answer_where_data_and_samples_are_alike_is_half_the_target():
    D, G = nn.Linear(2, 1), nn.Identity()
    nn.init.zeros_(D.weight)
    real, _ = batch(512)
    for target in (0.9, 0.6):
        player = smoothed(D, G, target)[0]
        for answer in (target / 2 - 0.05, target / 2 + 0.05):
            losses = []
            for p in (target / 2, answer):
                nn.init.constant_(D.bias, math.log(p / (1 - p)))
                losses.append(player.loss(real, real).item())
            assert losses[0] < losses[1]


@pytest.mark.parametrize("target", [0.0, 1.1, -1.0, math.nan, "0.9"])
def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(ValueError, match="target"):
        smoothed(mlp(2, 1), mlp(2, 2), target)


def test_matching_features_of_the_identity_is_the_distance_of_means():
    real, noise = batch()
    player = feature_matching(nn.Identity(), nn.Linear(2, 1), nn.Identity())[1]
    expected = (real.mean(0) - noise.mean(0)).square().sum()
    assert torch.allclose(player.loss(real, noise), expected)


def test_minibatch_discrimination_counts_neighbours():
    layer = MinibatchDiscrimination(3, kernels=4, dimensions=2)
    same = torch.randn(1, 3).expand(6, 3)
    assert torch.allclose(layer(same)[:, 3:], torch.full((6, 4), 5.0))
    apart = 1e4 * torch.arange(6.0)[:, None] * torch.ones(6, 3)
    assert layer(apart)[:, 3:].max() < 1e-3
    assert torch.equal(layer(apart)[:, :3], apart)


def test_minibatch_discrimination_is_the_sum_of_the_paper():
    layer, f = MinibatchDiscrimination(3, kernels=2, dimensions=4), torch.randn(5, 3)
    M = layer.T(f).view(5, 2, 4)
    for i in range(5):
        for b in range(2):
            o = sum(math.exp(-(M[i, b] - M[j, b]).abs().sum().item()) for j in range(5) if j != i)
            assert layer(f)[i, 3 + b].item() == pytest.approx(o, rel=1e-5, abs=1e-6)


def test_historical_average_is_the_mean_of_the_past():
    network = nn.Linear(2, 1)
    past, weights = HistoricalAverage(network), []
    for step in range(5):
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(step**2)
        weights.append(float(step**2))
        mean = sum(weights) / len(weights)
        assert past.penalty(network).item() == pytest.approx(3 * (weights[-1] - mean) ** 2)
    past.penalty(network).backward()
    mean = past.mean[0].item()
    assert network.bias.grad.item() == pytest.approx(2 * (16 - mean))
    with pytest.raises(ValueError, match="network"):
        past.penalty(nn.Linear(3, 1))


def test_with_history_each_pays_for_its_own_distance_in_value_and_gradient():
    networks = mlp(2, 4, 1), mlp(2, 4, 2)
    plain = non_saturating(*networks)
    games = zip(networks, plain, with_history(plain, weight=0.7), strict=True)
    for network, player, paying in games:
        weights, past = list(network.parameters()), []
        for _ in range(3):
            now = torch.cat([weight.flatten() for weight in weights])
            past.append(now.detach())
            distance = (now - torch.stack(past).mean(0)).square().sum()
            both = paying.loss(*batch()), player.loss(*batch()) + 0.7 * distance
            torch.testing.assert_close(*both)
            torch.testing.assert_close(*(torch.autograd.grad(loss, weights) for loss in both))
            with torch.no_grad():
                for weight in weights:
                    weight += torch.randn_like(weight)


def test_with_history_all_else_about_a_player_stays():
    player = Player(
        [nn.Linear(2, 1), nn.Linear(1, 1)], lambda real: real.sum(), 0.5, (0.1, 0.2),
        torch.optim.NAdam, 3, lambda progress: 1 - progress, 4.0, 0.6, "the name",
    )  # fmt: skip
    (paying,) = with_history([player])
    assert paying.modules[:2] == player.modules
    assert isinstance(paying.modules[2], HistoricalAverage)
    assert len(paying.modules[2].mean) == 5  # a player of several networks remembers them all
    for field in dataclasses.fields(Player):
        if field.name not in ("modules", "loss"):
            assert getattr(paying, field.name) == getattr(player, field.name), field.name


def test_a_heavy_history_holds_the_players_back():
    moved = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        D, G = mlp(2, 16, 1), mlp(2, 16, 2)
        players = with_history(non_saturating(D, G, lr=1e-2), weight)
        before = G[0].weight.detach().clone()
        play(players, minibatches(5 + batch()[0], size=32, noise=2), rounds=100)
        moved.append((G[0].weight - before).norm().item())
    assert moved[1] < moved[0] / 2


def test_virtual_batch_norm_does_not_see_the_other_rows():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(2, 8), VirtualBatchNorm(8, 32), nn.ReLU(), nn.Linear(8, 1))
    network = WithReference(inner, torch.randn(32, 2))
    x = torch.randn(10, 2)
    assert torch.allclose(network(x)[:3], network(x[:3]), atol=1e-6)
    assert network(x).shape == (10, 1)


def test_virtual_batch_norm_normalises_as_the_joint_batch_would():
    """Each row joins a batch of its own; gain and shift come after."""
    layer, reference, x = VirtualBatchNorm(3, 20), torch.randn(20, 3), 3 + torch.randn(4, 3)
    nn.init.constant_(layer.gain, 2.0)
    nn.init.constant_(layer.shift, -1.0)
    found = layer(torch.cat([reference, x]))[20:]
    for row, normalised in zip(x, found, strict=True):
        joint = torch.cat([reference, row[None]])
        expected = (row - joint.mean(0)) / (joint.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(normalised, 2 * expected - 1, atol=1e-4, rtol=1e-4)
    layer.reset_parameters()
    assert layer.gain.tolist() == [1] * 3 and layer.shift.tolist() == [0] * 3


def test_a_network_with_a_reference_sees_it_first_and_does_not_return_it():
    seen = []

    class Remembers(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x + 1

    reference, x = torch.randn(3, 2), torch.randn(4, 2)
    assert torch.equal(WithReference(Remembers(), reference)(x), x + 1)
    assert torch.equal(seen[0], torch.cat([reference, x]))


REFERENCE = torch.randn(8, 2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: VirtualBatchNorm(2, 8)(torch.randn(7, 2)), r"batch is of shape \(7, 2\).*8 rows"),
        (lambda: VirtualBatchNorm(2, 8)(torch.randn(9, 1)), r"batch is of shape \(9, 1\)"),
        (lambda: VirtualBatchNorm(2, 1), "reference is 1"),
        (lambda: VirtualBatchNorm(0, 8), "features is 0"),
        (
            lambda: WithReference(VirtualBatchNorm(2, 9), REFERENCE),
            "reference is of 8 rows.*9 rows",
        ),
        (
            lambda: WithReference(nn.Linear(2, 1), REFERENCE)(torch.randn(4, 3)),
            r"\(4, 3\).*\(8, 2\)",
        ),
        (lambda: MinibatchDiscrimination(0), "features is 0"),
        (lambda: MinibatchDiscrimination(2, kernels=1.5), "kernels is 1.5"),
        (lambda: with_history([], -1), "weight is -1"),
        (lambda: with_history([], "1"), "weight is '1'"),
    ],
)
def test_what_does_not_fit_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_numbers_of_numpy_are_numbers():
    layer = MinibatchDiscrimination(np.int64(3), np.int64(2), np.int32(4))
    assert layer(torch.randn(5, 3)).shape == (5, 5)
    D, G = mlp(2, 8, 1), mlp(2, 8, 2)
    for plain, exotic in zip(smoothed(D, G, 0.5), smoothed(D, G, np.float32(0.5)), strict=True):
        assert torch.equal(plain.loss(*batch()), exotic.loss(*batch()))


def test_statistics_that_are_held_go_by_the_batch_and_do_not_move():
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(2), 5 + torch.randn(16, 2)
    with statistics_held():
        held = norm(x)
        norm.eval()
        assert torch.allclose(norm(x), x, atol=1e-3)  # in evaluation, by the running statistics
        norm.train()
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()
    assert torch.equal(held, norm(x)) and norm.num_batches_tracked == 1
    untracked = nn.BatchNorm1d(2, track_running_stats=False)
    broken = nn.Sequential(norm, untracked, nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="expected 4D"), statistics_held():
        broken(x)
    assert norm.track_running_stats and not untracked.track_running_stats
    norm(x)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("kind", ["smoothed", "matching", "minibatch", "history", "virtual"])
def test_copies_play_as_one_alone_does(kind):
    data, _ = batch(256)

    def players():
        torch.manual_seed(3)
        body, head, G = mlp(2, 16, 16), nn.Linear(16, 1), mlp(2, 16, 2)
        D = nn.Sequential(body, head)
        if kind == "smoothed":
            return smoothed(D, G)
        if kind == "matching":
            return feature_matching(body, head, G)
        if kind == "minibatch":
            layers = nn.Sequential(body, MinibatchDiscrimination(16, 4, 3), nn.Linear(20, 1))
            return non_saturating(layers, G)
        if kind == "history":
            return with_history(non_saturating(D, G))
        inner = nn.Sequential(nn.Linear(2, 16), VirtualBatchNorm(16, 8), nn.ReLU(), mlp(16, 2))
        return non_saturating(D, WithReference(inner, torch.randn(8, 2)))

    options = {"rounds": 20, "seed": 0}
    draw = minibatches(data, size=32, noise=2)
    many = play(players(), draw, copies=2, **options)
    alone = play(players(), draw, copies=1, **options)
    for name, loss in many.losses.items():
        assert torch.allclose(loss[:, 0], alone.losses[name][:, 0], rtol=1e-3, atol=1e-5), name
        assert not torch.allclose(loss[:, 1], alone.losses[name][:, 0])
