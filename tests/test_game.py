"""The training kernel: whose weights move, copies, averages, precision, history, bad input."""

import math
import threading
import warnings
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import mse_loss, softplus
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.data import DataLoader, Dataset, TensorDataset

from minimax.game import (
    NonFiniteLoss,
    Player,
    capture,
    engine,
    minibatches,
    play,
    products,
    reinitialise,
    seed_of,
)
from minimax.gans import Packed, minimax, non_saturating, relativistic, wasserstein
from minimax.networks import DCGANGenerator, mlp

DATA = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) + 2
BATCHES = minibatches(DATA, size=32, noise=3)


def networks(normalised=True, seed=0):
    """A discriminator and a generator with batch normalisation."""
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(8)] if normalised else []
    # A bias before the normalisation has the gradient 0, and Adam would blow its rounding up.
    G = nn.Sequential(nn.Linear(3, 8, bias=not normalised), *norm, nn.ReLU(), nn.Linear(8, 2))
    return mlp(2, 8, 1, activation=nn.LeakyReLU), G


def state(*modules):
    return [value.detach().clone() for module in modules for value in module.state_dict().values()]


def apart(one, other):
    return max(
        (a.double() - b.double()).abs().max().item() for a, b in zip(one, other, strict=True)
    )


def by_hand(D, G, rounds, seed):
    """The two players' steps written out, on the batches that play draws for ``seed``."""
    drawn = []

    def recording(generator):
        drawn.append(BATCHES(generator))
        return drawn[-1]

    line = nn.Linear(1, 1)
    play([Player(line, lambda *_: line.weight.sum())], recording, rounds=rounds, seed=seed)
    d, g = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (D, G))
    for real, noise in drawn:
        d.zero_grad()
        (softplus(-D(real)).mean() + softplus(D(G(noise).detach())).mean()).backward()
        d.step()
        g.zero_grad()
        softplus(-D(G(noise))).mean().backward()
        g.step()


def test_play_is_the_loop_that_one_would_write():
    D, G = networks()
    by_hand(D, G, rounds=50, seed=5)
    expected = state(D, G)
    D, G = networks()
    play(non_saturating(D, G, lr=1e-3, betas=(0.5, 0.999)), BATCHES, rounds=50, seed=5)
    assert apart(state(D, G), expected) < 1e-5


def test_copies_are_the_separate_games_from_the_same_seeds():
    def players(D, G):
        return non_saturating(D, G, lr=1e-3, betas=(0.5, 0.999), clip=0.5, average=0.9)

    stacked = networks()
    together = play(players(*stacked), BATCHES, rounds=50, copies=4, seed=20)
    assert together.losses["discriminator"].shape == (50, 4)
    for copy in range(4):
        D, G = networks(seed=99)
        own = seed_of(20, copy)
        torch.manual_seed(own)
        for network in (D, G):
            reinitialise(network)
        alone = play(players(D, G), BATCHES, rounds=50, seed=own)
        for averaged in (False, True):
            alone.load(averaged=averaged)
            expected = state(D, G)
            together.load(copy, averaged=averaged)
            assert apart(state(*stacked), expected) < 1e-5
        for name, losses in alone.losses.items():
            assert (together.losses[name][:, copy] - losses).abs().max() < 1e-5


def test_fifty_copies_under_fifty_seeds_are_2500_games():
    line, starts, batches = nn.Linear(1, 1), [], []

    def the_batch(noise):
        return noise.sum() + 0 * line.weight.sum()

    for seed in range(50):
        draw = minibatches(size=1, noise=1)
        game = play([Player(line, the_batch, lr=0.0)], draw, rounds=1, copies=50, seed=seed)
        starts += game.each(lambda: line.weight.sum()).tolist()
        batches += game.losses["the_batch"][0].tolist()
    assert len(set(starts)) == len(set(batches)) == 2500


def test_copies_differ_from_each_other_and_the_networks_end_with_the_first():
    D, G = networks()
    history = play(non_saturating(D, G), BATCHES, rounds=5, copies=3, seed=1)
    weights = history.each(lambda: G[0].weight)
    assert weights.shape == (3, 8, 3)
    assert torch.equal(G[0].weight, weights[0])
    assert not torch.allclose(weights[0], weights[1])
    history.load(2)
    assert torch.equal(G[0].weight, weights[2])


def test_a_gradient_reaches_only_what_its_player_moves():
    D, G = networks(normalised=False)
    G[0].bias.requires_grad_(False)
    before = state(G)

    mine = torch.zeros(1, requires_grad=True)  # of somebody who does not play

    def loss(real, noise):  # no detach
        return softplus(-D(real)).mean() + softplus(D(G(noise))).mean() + mine.sum()

    play([Player(D, loss)], BATCHES, rounds=3)
    assert apart(state(G), before) == 0 and mine.grad is None
    play(minimax(D, G), BATCHES, rounds=3)
    assert torch.equal(G[0].bias, before[1])
    assert not torch.equal(G[0].weight, before[0])
    assert not G[0].bias.requires_grad
    assert all(weight.requires_grad for weight in D.parameters())
    assert all(weight.grad is None for weight in [*D.parameters(), *G.parameters()])


def test_three_players_and_shared_networks():
    trunk, head, other = nn.Linear(2, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def fit(head):
        return lambda real, noise: mse_loss(head(trunk(real)), real.sum(1, keepdim=True))

    players = [
        Player([trunk, head], fit(head), lr=1e-2),
        Player([trunk, other], fit(other), lr=1e-2),
        Player(other, fit(other), lr=1e-2, name="third"),
    ]
    history = play(players, BATCHES, rounds=300)
    assert list(history.losses) == ["player 1", "player 2", "third"]
    assert all(losses[-1] < 0.1 * losses[0] for losses in history.losses.values())
    stacked = play(players, BATCHES, rounds=300, copies=2)
    assert all((losses[-1] < 0.1 * losses[0]).all() for losses in stacked.losses.values())


def nested_game(outer, **options):
    """One player moves a network, another a part of it."""
    torch.manual_seed(4)
    body, head = mlp(2, 16, 8), nn.Linear(8, 1)
    D = outer(body, head)

    def part_loss(real, noise):
        return body(real).square().mean()

    def whole_loss(real, noise):
        return softplus(-D(real)).mean()

    players = [
        Player(body, part_loss, lr=1e-2, average=0.9),
        Player(D, whole_loss, lr=1e-2, average=0.9),
    ]
    return D, play(players, BATCHES, rounds=20, **options)


@pytest.mark.parametrize("outer", [nn.Sequential, lambda *parts: Packed(nn.Sequential(*parts), 1)])
def test_a_network_and_a_part_of_it_play_together(outer):
    D, history = nested_game(outer, seed=0)
    before = state(D)
    history.each(lambda: D(DATA).mean(), averaged=True)
    assert apart(state(D), before) == 0  # looking changes nothing
    drawn = []

    def initialise(network):
        drawn.append(network)
        reinitialise(network)

    D, together = nested_game(outer, seed=0, copies=2, initialise=initialise)
    assert drawn == [D, D]  # its part is not drawn a second time
    assert torch.isfinite(D(DATA)).all()  # the user's network can still be used
    assert all(losses.shape == (20, 2) for losses in together.losses.values())


def shared_game(kind, **options):
    """Networks with a part in common, or with one that is used twice."""
    torch.manual_seed(6)
    body, twice = mlp(2, 8, 2), nn.Linear(2, 2)
    A = nn.Sequential(body, nn.Linear(2, 1))
    B = nn.Sequential(twice, nn.ReLU(), twice) if kind == "twice" else nn.Sequential(body, twice)
    players = [
        Player(A, lambda real, noise: softplus(-A(real)).mean(), lr=1e-2, average=0.9, name="a"),
        Player(B, lambda real, noise: B(real).square().mean(), lr=1e-2, average=0.9, name="b"),
    ]
    return (A, B), players, play(players, BATCHES, rounds=20, seed=0, **options)


@pytest.mark.parametrize("kind", ["shared", "twice"])
@pytest.mark.parametrize("copies", [None, 2])
def test_looking_at_shared_parts_changes_nothing_and_they_play_on(kind, copies):
    (A, B), players, history = shared_game(kind, copies=copies)
    before = state(A, B)
    for averaged in (False, True):
        history.each(lambda: A(DATA).mean() + B(DATA).mean(), averaged=averaged)
        assert apart(state(A, B), before) == 0
        assert all(weight.requires_grad for net in (A, B) for weight in net.parameters())
    play(players, BATCHES, rounds=5, seed=1)
    assert (A[0][0].weight - before[0]).abs().max() > 1e-3
    if copies:  # as one game plays it
        own = seed_of(0, 1)
        (A, B), players, _ = shared_game(kind)
        torch.manual_seed(own)
        for network in (A, B):
            reinitialise(network)
        alone = play(players, BATCHES, rounds=20, seed=own)
        for name, losses in alone.losses.items():
            assert (history.losses[name][:, 1] - losses).abs().max() < 1e-5


def test_turns_take_a_batch_each_and_players_share_them():
    seen = {"a": [], "b": []}
    a, b = nn.Linear(2, 1), nn.Linear(2, 1)

    def player(name, module, turns):
        def loss(real, noise):
            seen[name].append(real)
            return module(real).square().mean()

        return Player(module, loss, turns=turns, name=name)

    history = play([player("a", a, 3), player("b", b, 1)], BATCHES, rounds=2)
    assert len(seen["a"]) == 6
    assert len(seen["b"]) == 2
    assert torch.equal(seen["a"][0], seen["b"][0])
    assert torch.equal(seen["a"][3], seen["b"][1])
    assert not torch.equal(seen["a"][0], seen["a"][1])
    assert history.losses["a"].shape == (2,)


def test_the_schedule_scales_the_rate():
    line = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(line.weight)

    def slope(real, noise):  # the gradient is 1 for both weights
        return line.weight.sum() + 0 * real.sum()

    halves = Player(
        line, slope, lr=0.1, optimiser=torch.optim.SGD, schedule=lambda t: 1.0 if t < 0.5 else 0.0
    )
    play([halves], BATCHES, rounds=10)
    assert torch.allclose(line.weight, torch.full((1, 2), -0.5))


def test_clipping_bounds_the_norm_of_each_copy():
    line = nn.Linear(2, 1, bias=False)
    factor = torch.tensor([[3.0, 4.0]])

    def slope(size):
        return (line.weight * factor * size).sum()

    lengths = {engine._another(seed_of(0, c)): 10.0 ** (c % 3 - 1) for c in range(6)}

    def sizes(generator):  # a copy's gradient is 0.5, 5 or 50 long
        return (torch.tensor(lengths[generator.initial_seed()]),)

    start = play([Player(line, slope, lr=0.0)], sizes, rounds=1, copies=6, seed=0)
    before = start.each(lambda: line.weight)
    player = Player(line, slope, lr=1.0, optimiser=torch.optim.SGD, clip=1.0)
    after = play([player], sizes, rounds=1, copies=6, seed=0).each(lambda: line.weight)
    steps = (after - before).flatten(1).norm(dim=1)
    assert steps.mul(100).round().int().tolist() == [50, 100, 100] * 2  # what is short stays so
    assert steps.max() <= 1 + 1e-5


def test_the_average_is_the_exponential_moving_average():
    line = nn.Linear(2, 1)
    player = Player(line, lambda real, noise: line(real).square().mean(), average=0.8)
    seen = play([player], BATCHES, rounds=6, watch={"w": lambda: line.weight}, every=1)
    average = seen.watched["w"][0]
    for now in seen.watched["w"][1:]:
        average = 0.8 * average + 0.2 * now
    assert torch.allclose(seen.each(lambda: line.weight, averaged=True), average, atol=1e-6)
    assert torch.equal(seen.each(lambda: line.weight), seen.watched["w"][-1])
    seen.load(averaged=True)
    assert torch.allclose(line.weight, average, atol=1e-6)


def test_a_history_is_a_snapshot():
    D, G = networks()
    history = play(non_saturating(D, G, average=0.5), BATCHES, rounds=5, seed=1)
    raw = state(D, G)
    history.load(averaged=True)
    averaged = state(D, G)
    assert apart(raw, averaged) > 0
    history.load()
    assert apart(state(D, G), raw) == 0
    seen = history.each(lambda: G[0].weight), history.each(lambda: G[0].weight, averaged=True)
    play(non_saturating(D, G, average=0.5), BATCHES, rounds=5, seed=2)
    assert torch.equal(history.each(lambda: G[0].weight), seen[0])
    assert torch.equal(history.each(lambda: G[0].weight, averaged=True), seen[1])
    history.load()
    assert apart(state(D, G), raw) == 0


def test_statistics_are_averaged_like_weights():
    _, G = networks()
    player = Player(G, lambda real, noise: G(noise).square().mean(), average=0.8)
    means = {"mean": lambda: G[1].running_mean}
    seen = play([player], BATCHES, rounds=6, watch=means, every=1)
    average = seen.watched["mean"][0]
    for now in seen.watched["mean"][1:]:
        average = 0.8 * average + 0.2 * now
    assert average.abs().max() > 1e-3
    assert torch.allclose(seen.each(means["mean"], averaged=True), average, atol=1e-6)


def test_the_history_has_the_mean_over_a_players_turns():
    line = nn.Linear(2, 1)
    player = Player(line, lambda real, noise: 3 + 0 * line.weight.sum(), turns=4)
    assert play([player], BATCHES, rounds=2).losses["player 1"].tolist() == [3, 3]


@pytest.mark.parametrize(
    "optimiser",
    [
        torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), torch.optim.RMSprop,
        torch.optim.AdamW, torch.optim.Adagrad, torch.optim.NAdam,
        partial(torch.optim.Adam, foreach=True),
    ],
)  # fmt: skip
def test_any_optimiser_of_torch(optimiser, tmp_path):
    def game(rounds, **options):
        D, G = networks()
        players = non_saturating(D, G, optimiser=optimiser, lr=1e-2)
        play(players, BATCHES, rounds=rounds, seed=3, **options)
        return state(D, G)

    whole = game(6)
    assert apart(whole, state(*networks())) > 1e-4
    game(4, checkpoint=tmp_path)
    assert apart(game(6, checkpoint=tmp_path), whole) == 0


def image_game(**options):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
    )
    net(torch.zeros(1, 3, 8, 8))
    data = torch.rand(50, 3, 8, 8)
    batches = minibatches(data, data.mean((1, 2, 3)), size=16)
    player = Player(net, lambda x, y: mse_loss(net(x)[:, 0], y), lr=1e-2, optimiser=torch.optim.SGD)
    return play([player], batches, rounds=20, seed=1, **options).losses["player 1"]


def test_channels_last_changes_nothing_and_bf16_little(monkeypatch):
    monkeypatch.setattr(engine, "bf16_pays", lambda device: True)
    plain = image_game()
    assert (image_game(channels_last=True) - plain).abs().max() < 1e-5
    half = (image_game(bf16=True) - plain).abs().max()
    assert 0 < half < 0.05


def game_of(name):
    """Players and batches: between them, all that an operation can do to a loss."""
    if name == "images":  # batch normalisation and dropout, in training
        # whatever only shifts what is normalised afterwards would be blown up: see networks
        pixels, norm = nn.Unflatten(1, (1, 16, 16)), nn.BatchNorm2d(1, affine=False)
        G = nn.Sequential(nn.Linear(3, 256), pixels, norm)
        kernels = nn.Conv2d(1, 4, 4, 4, bias=False)
        D = nn.Sequential(kernels, nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
        D.append(nn.Linear(64, 1))
        data = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        return non_saturating(D, G, lr=1e-2), minibatches(data, size=8, noise=3)
    D, G = networks()
    if name == "strides":  # with copies, the slopes of Softplus lie otherwise than in the trace
        first, second = (nn.Linear(inputs, 8, bias=False) for inputs in (3, 8))
        bent = [nn.BatchNorm1d(8), nn.Softplus()]
        G = nn.Sequential(first, *bent, second, nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 2))
        return non_saturating(D, G, lr=1e-2), BATCHES
    rules = {"plain": non_saturating, "slopes": relativistic, "shares drawn": wasserstein}
    options = {"lr": 1e-2, "clip": 0.5, "average": 0.9, "d": {"turns": 2}}
    return rules[name](D, G, **options), BATCHES


@pytest.fixture(params=[products.LARGE, 0], ids=["", "all products large"])
def faster(request, monkeypatch):
    """The products that oneDNN computes: none in networks so small, or all."""
    found, use = [], products.use_faster

    def watched(program):
        use(program)
        found.extend(n for n in program.graph.nodes if n.target is products.ops.product.default)

    monkeypatch.setattr(products, "LARGE", request.param)
    monkeypatch.setattr(capture, "use_faster", watched)
    yield found
    assert bool(found) == (request.param == 0)


@pytest.mark.parametrize(
    ("multiply", "faster"),
    [
        (lambda x, w: x @ w, True),
        (lambda x, w: x.T @ w, False),  # MKL takes a transposed one as it lies
        (lambda x, w: x.double() @ w.double(), False),
        (lambda x, w: torch.addmm(w[0], x, w), True),
        (lambda x, w: torch.addmm(w[0], x, w, beta=0.5), False),
        (lambda x, w: torch.addmm(w, x, w), False),
    ],
    ids=["plain", "transposed", "64 bits", "bias", "a share of it", "a matrix as bias"],
)
def test_other_products_stay_as_they_are(multiply, faster, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 0)
    torch.manual_seed(0)
    x, w = torch.randn(4, 4), torch.randn(4, 4)
    program = make_fx(multiply, tracing_mode="fake")(x, w)
    products.use_faster(program)
    program.recompile()
    used = [node for node in program.graph.nodes if node.target is products.ops.product.default]
    assert bool(used) == faster
    assert torch.allclose(program(x, w), multiply(x, w), atol=1e-5)


@pytest.mark.parametrize("copies", [None, 3])
@pytest.mark.parametrize("name", ["plain", "slopes", "shares drawn", "images", "strides"])
def test_a_traced_game_is_the_same_game(name, copies, faster):
    found = []
    for graph in (False, True):
        torch.manual_seed(0)
        players, batches = game_of(name)
        history = play(players, batches, rounds=8, seed=3, copies=copies, graph=graph)
        weights = [value for player in players for value in player.modules[0].state_dict().values()]
        kept = name not in ("images", "strides")
        averages = [history.each(lambda: 0.0, averaged=True)] if kept else []
        found.append([*history.losses.values(), *weights, *averages])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))
    assert len(found[0][0].unique()) >= 8


@pytest.mark.parametrize(
    ("name", "copies"), [("plain", 3), ("shares drawn", None), ("images", None)]
)
def test_a_compiled_game_is_the_same_game(name, copies, faster):
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        history = play(*game_of(name), rounds=4, seed=3, copies=copies, compile=compile)
        found.append(torch.stack(list(history.losses.values())))
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_a_trace_is_made_once_for_each_shape(monkeypatch):
    calls = []
    D, _ = networks()

    def loss(real, noise):
        calls.append(len(real))
        return softplus(-D(real)).mean()

    sizes = iter([8, 8, 4, 8, 4, 8])
    draw = {size: minibatches(DATA, size=size, noise=3) for size in (4, 8)}
    play(Player(D, loss), lambda g: draw[next(sizes)](g), rounds=6, graph=True, seed=0)
    assert calls == [8, 4]


def test_a_loss_that_looks_at_numbers_is_not_traced():
    def game(graph):
        D, _ = networks()

        def loss(real, noise):
            value = softplus(-D(real)).mean()
            return value if value.item() > 0 else -value

        return play(Player(D, loss), BATCHES, rounds=3, seed=0, graph=graph).losses["loss"]

    with pytest.warns(UserWarning, match="The loss of player 'loss' can't be traced and runs as"):
        traced = game(graph=True)
    assert torch.equal(traced, game(graph=False))


def test_without_a_compiler_a_game_is_played_all_the_same(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no such compiler"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    histories = []
    for compile in (True, False):
        D, G = networks()
        with pytest.warns(UserWarning, match="can't be compiled") if compile else nullcontext():
            histories.append(play(non_saturating(D, G), BATCHES, rounds=3, seed=0, compile=compile))
    ends = [torch.stack(list(history.losses.values())) for history in histories]
    assert torch.allclose(*ends, atol=1e-6)


def test_watching_records_and_does_not_disturb():
    def game(watch):
        D, G = networks()
        players = non_saturating(D, G)
        history = play(players, BATCHES, rounds=25, seed=2, every=10, watch=watch and watch(G))
        return history, state(D, G)

    def samples(G):
        return {"samples": lambda: G(torch.randn(7, 3)), "training": lambda: float(G.training)}

    history, seen = game(samples)
    _, unseen = game(None)
    assert apart(seen, unseen) == 0
    assert history.rounds == [0, 10, 20, 25]
    assert history.watched["samples"].shape == (4, 7, 2)
    assert history.watched["training"].tolist() == [0.0] * 4


def test_what_is_watched_has_a_row_for_each_copy():
    D, G = networks()
    noise = torch.randn(7, 3)
    watch = {"samples": lambda: G(noise)}
    history = play(non_saturating(D, G), BATCHES, rounds=4, copies=3, watch=watch, every=2)
    assert history.watched["samples"].shape == (3, 3, 7, 2)
    assert torch.equal(history.watched["samples"][-1], history.each(lambda: G(noise)))


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    def game(seed):
        D, G = networks()
        G.append(nn.Dropout(0.5))  # draws its own random numbers
        play(non_saturating(D, G), BATCHES, rounds=3, seed=seed)
        return state(D, G)

    torch.manual_seed(1)
    one = game(4)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    D, G = networks(seed=2)
    after_networks = torch.get_rng_state()
    play(non_saturating(D, G), BATCHES, rounds=3, seed=4)
    assert torch.equal(torch.get_rng_state(), after_networks)
    assert apart(game(4), one) == 0
    assert apart(game(5), one) > 0
    torch.manual_seed(2)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_the_global_generator_decides():
    def game():
        D, G = networks(seed=3)
        play(non_saturating(D, G), BATCHES, rounds=2)
        first = state(D, G)
        play(non_saturating(D, G), BATCHES, rounds=2)
        return first, state(D, G)

    once, again = game(), game()
    assert apart(once[0], again[0]) == 0
    assert apart(once[1], again[1]) == 0


def test_a_loss_that_is_not_finite_stops_the_game(tmp_path):
    line = nn.Linear(2, 1)
    other = nn.Linear(2, 1)

    def loss(real, noise):
        bad = torch.where(loss.round >= 6, torch.nan, 0.0)
        loss.round += 1
        return line(real).square().mean() + bad

    loss.round = torch.tensor(0)
    players = [
        Player(other, lambda real, noise: other(real).square().mean(), name="calm"),
        Player(line, loss, name="wild"),
    ]
    with pytest.raises(NonFiniteLoss) as caught:
        play(players, BATCHES, rounds=20, checkpoint=tmp_path, checkpoint_every=3)
    text = str(caught.value)
    assert "'wild'" in text
    assert "nan in round 7" in text
    assert "of round 6, are calm" in text
    assert "checkpoint of round 6" in text
    assert caught.value.history.losses["wild"].shape == (6,)
    assert torch.isfinite(caught.value.history.losses["wild"]).all()
    assert (tmp_path / "round-00000006.json").exists()


def test_the_copy_that_is_not_finite_is_named():
    line = nn.Linear(1, 1)

    def batches(generator):
        return (torch.tensor([torch.inf if draws[0] > 4 and len(draws) % 3 == 2 else 1.0]),)

    draws = [0]

    def counting(generator):
        draws.append(draws[-1] + 1)
        draws[0] = len(draws) // 3
        return batches(generator)

    with pytest.raises(NonFiniteLoss, match=r"player 'player 1' of copy \d is (inf|nan) in round"):
        play([Player(line, lambda x: line(x).square().mean())], counting, rounds=20, copies=3)


class PretendGraph:
    """What a CUDA graph does, on a CPU: a capture moves nothing, and a replay plays the round."""

    game: engine.Game
    captured: capture.Captured

    def replay(self):
        self.captured.losses.copy_(self.game.round(self.captured.inputs))


@contextmanager
def capturing(graph, capture_error_mode):
    assert capture_error_mode == "thread_local"  # another thread reads ahead
    game, kept = graph.game, deepcopy(graph.game.saved())
    yield
    for name, value in game.state.items():
        value.data.copy_(kept[f"state/{name}"])
    for side in game.sides:
        for name, value in side.averaged.items():
            value.copy_(kept[f"average/{side.player.name}/{name}"])
        for index, slots in side.optimiser.state_dict()["state"].items():
            for slot, value in slots.items():
                value.copy_(kept[f"optimiser/{side.player.name}/{index}/{slot}"])


@pytest.fixture
def captured(monkeypatch):
    """Play ``rounds`` rounds as a GPU would with ``graph=True``; return losses and weights."""

    def played(players, rounds, copies, graph, batches=lambda round: BATCHES):
        game = engine.Game(players, copies, 0, reinitialise, False, False)
        for side in game.sides:
            side.optimiser.defaults["capturable"] = True
        rounder = capture.Captured(game.round, game.sides)
        PretendGraph.game, PretendGraph.captured = game, rounder
        advance = rounder.round if graph else game.round
        with game.playing():
            losses = [
                advance([game.draw(batches(round)) for _ in range(game.turns)]).clone()
                for round in range(rounds)
            ]
        return torch.stack(losses), [value.clone() for value in game.state.values()], rounder

    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    streams = ["its own"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    return played


@pytest.mark.parametrize("copies", [None, 3])
def test_a_captured_round_is_the_round_that_was_played_before(captured, copies):
    found = []
    for graph in (False, True):
        D, G = networks()
        options = {"d": {"turns": 2}, "average": 0.9, "lr": 1e-2}
        losses, weights, rounder = captured(non_saturating(D, G, **options), 12, copies, graph)
        assert (rounder.graph is not None) == graph
        found.append([losses, *weights])
    assert len(found[0][0].unique()) > 12
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_schedule_writes_into_the_rate_that_a_graph_has_captured():
    players = non_saturating(*networks(), lr=1e-2, schedule=lambda over: 1 - over)
    game = engine.Game(players, None, 0, reinitialise, False, False)
    groups = [group for side in game.sides for group in side.optimiser.param_groups]
    captured = [torch.tensor(group["lr"]) for group in groups]
    for group, rate in zip(groups, captured, strict=True):
        group["lr"] = rate
    game.set_rates(0.25)
    assert [rate.item() for rate in captured] == pytest.approx([0.0075] * len(groups))


def test_an_optimiser_that_can_not_be_captured_is_named(captured):
    players = non_saturating(*networks(), optimiser=torch.optim.SGD, lr=1e-2)
    game = engine.Game(players, None, 0, reinitialise, False, False)
    with pytest.warns(UserWarning, match="SGD and SGD can't be captured"):
        rounder = capture.Captured(game.round, game.sides)
    with game.playing():
        for _ in range(6):
            rounder.round([game.draw(BATCHES) for _ in range(game.turns)])
    assert rounder.graph is None


def test_a_batch_of_another_dtype_is_not_rounded_into_the_captured_one(captured):
    def fractions(generator):
        return tuple(part / 3 for part in BATCHES(generator))

    def whole(generator):
        return tuple((9 * part).long() for part in BATCHES(generator))

    found = []
    for graph in (False, True):
        D, _ = networks(normalised=False)
        asked = []

        def loss(real, noise, asked=asked, D=D):
            asked.append(real.dtype)
            return softplus(-D(real.float())).mean()

        losses, weights, rounder = captured(
            [Player(D, loss)], 12, None, graph,
            batches=lambda round: whole if round < 8 else fractions,
        )  # fmt: skip
        found.append([losses, *weights])
        assert torch.float32 in asked
    assert rounder.graph is not None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_batch_of_another_shape_is_played_as_it_is(captured):
    """One of a single row would fill the captured one, if it were copied there."""
    one_row, found = minibatches(DATA, size=1, noise=3), []
    for graph in (False, True):
        players = non_saturating(*networks(normalised=False), lr=1e-2)
        options = {"batches": lambda round: one_row if round in (6, 9) else BATCHES}
        losses, weights, rounder = captured(players, 12, None, graph, **options)
        found.append([losses, *weights])
    assert rounder.graph is not None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_after_a_capture_that_fails_at_its_end_rounds_go_on_as_before(captured, monkeypatch):
    @contextmanager
    def failing(graph, capture_error_mode):
        with capturing(graph, capture_error_mode):
            torch.cuda.set_stream("the capture's")
            yield
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    eager = captured(non_saturating(*networks()), 8, None, graph=False)
    with pytest.warns(UserWarning, match="rounds run one by one: CUDA error: operation failed"):
        *found, rounder = captured(non_saturating(*networks()), 8, None, graph=True)
    assert rounder.graph is None and torch.cuda.current_stream() == "its own"
    assert torch.equal(found[0], eager[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1], eager[1], strict=True))


def test_a_loss_that_waits_for_the_gpu_is_not_captured(captured, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    D, G = networks()
    d, g = non_saturating(D, G)
    loss = d.loss

    def waiting(real, noise):
        if modes and modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return loss(real, noise)

    with pytest.warns(UserWarning, match="rounds run one by one: a loss waits for the GPU"):
        *_, rounder = captured([replace(d, loss=waiting), g], 6, None, graph=True)
    assert rounder.graph is None and modes == ["warn", 0]


def test_progress_goes_to_stderr_and_is_off_in_ci(python):
    code = (
        "import tqdm, minimax.game.kernel as kernel\n"
        "from minimax.game import *; from torch import nn; import time\n"
        "kernel.tqdm = lambda **k: tqdm.tqdm(**(k | {'delay': 0, 'mininterval': 0}))\n"
        "line = nn.Linear(1, 1)\n"
        "loss = lambda z: line(z).square().mean()\n"
        "play([Player(line, loss)], minibatches(size=2, noise=1), rounds=3)\n"
    )
    shown = python(code, CI="", TQDM_DISABLE="")
    assert shown.returncode == 0, shown.stderr
    assert "3/3" in shown.stderr
    assert shown.stdout == ""
    assert python(code, CI="true", TQDM_DISABLE="").stderr == ""


def test_minibatches_draw_the_same_rows_of_all():
    x = torch.arange(100.0)[:, None]
    rows, doubled, noise = minibatches(x, 2 * x, size=8, noise=5)(torch.Generator().manual_seed(0))
    assert torch.equal(2 * rows, doubled)
    assert rows.shape == (8, 1)
    assert noise.shape == (8, 5)
    assert len(minibatches(size=4, noise=2)(torch.Generator())) == 1


class Watched(Dataset):
    """Rows that say when they are read."""

    def __init__(self, rows):
        self.rows, self.seen, self.read = rows, [], threading.Semaphore(0)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.seen.append(row)
        self.read.release()
        return self.rows[row]


def test_data_sets_are_read_ahead_and_the_batches_stay_the_same():
    data = Watched(DATA)
    ahead, plain = minibatches(data, size=4, noise=3), minibatches(DATA, size=4, noise=3)
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    # the third time somebody else drew: what was read ahead is not used, and no more is
    for foreign, rows_read in ((0, 8), (0, 4), (1, 4), (0, 4)):
        for g in (one, other):
            torch.rand(foreign, generator=g)
        for a, b in zip(ahead(one), plain(other), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.get_state(), other.get_state())
        for _ in range(rows_read):  # the batch, where need be, and the next, for which nobody asked
            assert data.read.acquire(timeout=9)
    assert not data.read.acquire(timeout=0.1)


def broken(**changes):
    D, _ = networks()
    options = {"modules": D, "loss": lambda real, noise: D(real).mean()} | changes
    return lambda: Player(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken(modules=[]), "modules is "),
        (broken(modules="D"), "modules is "),
        (broken(loss=3), "loss is 3"),
        (broken(lr=-1), "lr is -1"),
        (broken(lr="fast"), "lr is 'fast'"),
        (broken(lr="0.1"), "lr is '0.1'"),
        (broken(betas=0.5), "betas is 0.5; it has to be two numbers"),
        (broken(betas=("a", 0.5)), "betas is 'a'"),
        (broken(average="x"), "average is 'x'"),
        (broken(schedule=0.1), "schedule is 0.1"),
        (broken(optimiser=torch.optim.SGD([nn.Parameter(torch.ones(1))])), "an instance of SGD"),
        (broken(turns=0), "turns is 0"),
        (broken(betas=(0.5, 1.0)), r"betas is \(0.5, 1.0\)"),
        (broken(clip=0), "clip is 0"),
        (broken(average=1.0), "average is 1.0"),
        (lambda: minibatches(size=3), "data is missing"),
        (lambda: minibatches(DATA, DATA[:3], size=3), r"data is of lengths \[500, 3\]"),
        (lambda: minibatches(DATA, size=0), "size is 0"),
        (lambda: mlp(3), r"sizes is \(3,\)"),
        (lambda: mlp(3, 0, 1), "sizes is 0"),
    ],
)
def test_bad_players_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert str(caught.value).count("\n") == 0


def constant(real, noise):
    return torch.zeros(())


def outside(real, noise, other=nn.Linear(2, 1)):  # noqa: B008
    return other(real).mean()


def game_with(loss=None, batches=BATCHES, twice=False, player=None, **options):
    D, _ = networks()
    loss = loss or (lambda real, noise: D(real).mean())
    players = [Player(D, loss, name="one", **(player or {}))] * (2 if twice else 1)
    return play(players, batches, **({"rounds": 1} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"copies": 0}, "copies is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"every": 0}, "every is 0"),
        ({"checkpoint_every": 1.5}, "checkpoint_every is 1.5"),
        ({"copies": 2, "channels_last": True}, "channels_last is True"),
        ({"twice": True}, r"players is named \['one', 'one'\]"),
        ({"loss": constant}, "loss of player 'one' is constant in its weights"),
        ({"loss": outside}, "loss of player 'one' is constant in its weights"),
        ({"loss": outside, "copies": 2}, "loss of player 'one' is constant in its weights"),
        ({"loss": lambda real, noise: real}, r"loss of player 'one' is of shape \(32, 2\)"),
        ({"loss": lambda real, noise: 1.0}, "loss of player 'one' is 1.0"),
        ({"batches": lambda generator: DATA}, "batches is giving Tensor"),
        ({"batches": lambda generator: ("a", "b")}, "batches is giving tuple"),
        ({"batches": DataLoader(TensorDataset(DATA))}, "batches is of type DataLoader"),
        ({"player": {"optimiser": torch.optim.LBFGS}}, "optimiser is LBFGS"),
        ({"player": {"optimiser": torch.optim.SparseAdam}}, "optimiser is SparseAdam"),
        ({"player": {"optimiser": torch.optim.SGD, "betas": (0.5, 0.9)}}, "betas is .*SGD takes"),
        ({"player": {"optimiser": torch.optim.Adafactor}, "copies": 2}, "with copies, one of ASGD"),
        ({"player": {"schedule": lambda share: math.nan}}, "schedule is nan"),
        ({"watch": {"text": lambda: "hello"}}, r"watch\['text'\] is giving 'hello'"),
        ({"watch": {"nothing": lambda: None}}, r"watch\['nothing'\] is giving None"),
    ],
)
def test_bad_games_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        game_with(**options)
    assert str(caught.value).count("\n") == 0


def test_a_sparse_gradient_is_named():
    rows = nn.Embedding(4, 2, sparse=True)
    player = Player(rows, lambda real, noise: rows(torch.tensor([1, 2])).sum())
    with pytest.raises(ValueError, match="loss of player 'player 1' is with a sparse gradient"):
        play([player], BATCHES, rounds=1)


def test_what_is_watched_keeps_its_shape():
    shapes = iter(range(1, 9))
    with pytest.raises(ValueError, match=r"watch is 'odd'.* it gave \(1,\) and \(2,\)"):
        game_with(watch={"odd": lambda: torch.zeros(next(shapes))})


def test_numbers_of_numpy_are_numbers():
    D, G = networks()
    players = non_saturating(D, G, lr=np.float32(1e-3), turns=np.int64(2), clip=np.float64(1.0))
    draw = minibatches(DATA, size=np.int64(8), noise=np.int64(3))
    history = play(
        players, draw, rounds=np.int64(3), copies=np.int64(2), every=np.int32(2), seed=np.int64(1)
    )
    assert history.losses["generator"].shape == (3, 2)


def test_refusals_of_play_and_history():
    with pytest.raises(ValueError, match=r"players is \[\]"):
        play([], BATCHES, rounds=1)
    D, G = networks()
    history = play(non_saturating(D, G), BATCHES, rounds=1, copies=2)
    with pytest.raises(ValueError, match="copy is 2; it has to be a whole number from 0 to 1"):
        history.load(2)
    with pytest.raises(ValueError, match="averaged is True"):
        history.load(averaged=True)
    D.requires_grad_(False)
    with pytest.raises(ValueError, match="modules is without weights to move"):
        play(non_saturating(D, G), BATCHES, rounds=1)


@pytest.mark.parametrize("parametrise", [weight_norm, orthogonal])
def test_copies_of_parametrised_layers_start_apart(parametrise):
    net = nn.Sequential(parametrise(nn.Linear(4, 4)), nn.ReLU(), parametrise(nn.Linear(4, 1)))
    player = Player(net, lambda x: net(x).square().mean(), lr=0.0)
    history = play([player], minibatches(torch.randn(9, 4), size=3), rounds=1, seed=0, copies=3)
    starts = history.each(lambda: net[0].weight)
    assert all((starts[a] - starts[b]).abs().max() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))
    if parametrise is weight_norm:  # drawn as the layer itself draws
        plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        torch.manual_seed(seed_of(0, 2))
        reinitialise(plain)
        assert torch.allclose(starts[2], plain[0].weight, atol=1e-6)


def test_copies_of_spectral_norm_are_refused_and_one_game_is_played():
    net = spectral_norm(nn.Linear(2, 1))
    player = Player(net, lambda real, noise: net(real).square().mean())
    with pytest.raises(ValueError, match="copies is 2; it has to be None with spectral_norm"):
        play([player], BATCHES, rounds=1, copies=2)
    before = net.weight.detach().clone()
    play([player], BATCHES, rounds=2)
    reinitialise(net)
    assert net.weight.isfinite().all() and not torch.equal(net.weight, before)


def test_a_frozen_pretrained_part_is_the_same_in_all_copies():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    trunk(DATA)
    trunk.requires_grad_(False).eval()
    head = nn.Linear(4, 1)
    net = nn.Sequential(trunk, head)
    before = state(trunk)
    player = Player(net, lambda real, noise: net(real).square().mean())
    history = play([player], BATCHES, rounds=3, copies=3, seed=0)
    assert apart(state(trunk)[:2], before[:2]) == 0
    frozen = history.each(lambda: torch.cat([trunk[0].weight.flatten(), trunk[0].bias]))
    assert torch.equal(frozen[0], frozen[1]) and torch.equal(frozen[0], frozen[2])
    assert not torch.equal(*history.each(lambda: head.weight)[:2])
    reinitialise(net)
    assert torch.equal(trunk[1].running_mean, state(trunk)[4])
    assert torch.equal(trunk[0].weight, before[0])


@pytest.mark.parametrize(
    "part",
    [
        lambda: nn.BatchNorm1d(4, affine=False),
        lambda: nn.Sequential(nn.BatchNorm1d(4, affine=False)),
        lambda: orthogonal(nn.Linear(4, 4)),
    ],
)
def test_what_lies_in_a_frozen_part_is_frozen_with_it(part):
    trunk = nn.Sequential(nn.Linear(2, 4), part())
    trunk(DATA)
    trunk.requires_grad_(False)
    net = nn.Sequential(trunk, nn.Linear(4, 1))
    before = state(trunk)
    reinitialise(net)
    assert apart(state(trunk), before) == 0


def test_a_frozen_part_stays_under_a_rule_of_the_whole_and_so_does_a_frozen_bias():
    G = DCGANGenerator(16, 1, 4, 5)
    G.layers[1].requires_grad_(False)
    line = nn.Linear(3, 2)
    line.bias.requires_grad_(False)
    before = state(G.layers[1]), state(G.layers[-2]), state(line)
    reinitialise(G)
    reinitialise(line)
    assert apart(state(G.layers[1]), before[0]) == 0
    assert apart(state(G.layers[-2]), before[1]) > 0
    assert torch.equal(line.bias, before[2][1]) and not torch.equal(line.weight, before[2][0])


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (lambda: parametrise_plainly(nn.Linear(2, 2)), "under a parametrisation with an inverse"),
        (lambda: weight_norm(Bare(), "scale"), "a method reset_parameters, which draws it anew"),
    ],
)
def test_a_network_that_can_not_be_drawn_anew_stays_as_it_was(layer, named):
    net = nn.Sequential(nn.Linear(2, 2), layer())
    before = state(net)
    with pytest.raises(ValueError, match=named):
        reinitialise(net)
    assert apart(state(net), before) == 0


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 3))


def parametrise_plainly(layer):
    class Symmetric(nn.Module):
        def forward(self, x):
            return x + x.T

    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def test_an_initialise_that_does_not_reach_the_weights_is_refused():
    net = weight_norm(nn.Linear(2, 1))

    def initialise(network):
        nn.init.normal_(network.weight)

    player = Player(net, lambda real, noise: net(real).square().mean())
    with pytest.raises(ValueError, match=r"initialise is leaving .* alike in all copies"):
        play([player], BATCHES, rounds=1, copies=2, initialise=initialise)


def test_a_scalar_weight_can_be_clipped_in_copies():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def reset_parameters(self):
            nn.init.ones_(self.scale)

    own = Scaled()
    player = Player(
        own, lambda real, noise: 50 * own.scale, lr=1.0, clip=0.5, optimiser=torch.optim.SGD
    )
    history = play([player], BATCHES, rounds=1, copies=3)
    assert torch.allclose(history.each(lambda: own.scale), torch.full((3,), 0.5), atol=1e-5)


@pytest.mark.parametrize("copies", [None, 3])
def test_an_interrupted_game_leaves_the_first_copy_as_it_is(copies):
    def game(rounds, stop):
        calls = [0]

        def batches(generator):
            calls[0] += 1
            if calls[0] > stop * (copies or 1):
                raise KeyboardInterrupt
            return BATCHES(generator)

        D, G = networks()
        try:
            play(non_saturating(D, G), batches, rounds=rounds, seed=3, copies=copies)
        except KeyboardInterrupt:
            assert rounds > stop
        return state(D, G)

    interrupted = game(rounds=20, stop=7)
    assert apart(interrupted, game(rounds=7, stop=7)) == 0
    assert apart(interrupted, state(*networks())) > 1e-3  # not what it was before the game


def test_a_refused_game_leaves_the_networks_alone():
    D, G = networks()
    before = state(D, G)
    with pytest.raises(ValueError, match="optimiser is Adafactor"):
        play(non_saturating(D, G, optimiser=torch.optim.Adafactor), BATCHES, rounds=1, copies=2)
    assert apart(state(D, G), before) == 0


@pytest.mark.parametrize("stop", ["drawing", "refused"])
def test_copies_that_never_began_leave_the_networks_alone(stop, tmp_path):
    D, G = networks()
    before, drawn = state(D, G), []

    def initialise(network):
        drawn.append(network)
        if stop == "drawing" and len(drawn) == 3:
            raise KeyboardInterrupt
        reinitialise(network)

    (tmp_path / "file").write_text("x", "utf-8")
    folder = tmp_path / "file" if stop == "refused" else None
    with pytest.raises((KeyboardInterrupt, ValueError)):
        play(non_saturating(D, G), BATCHES, rounds=1, copies=2, initialise=initialise,
             checkpoint=folder)  # fmt: skip
    assert apart(state(D, G), before) == 0


def root_of_nothing(real, noise, line):
    return (line(real) - line(real).detach()).abs().sqrt().mean()


@pytest.mark.parametrize("copies", [None, 2])
def test_a_step_with_a_gradient_that_is_not_finite_is_not_taken(copies, tmp_path):
    line, rounds = nn.Linear(2, 1), [0]

    def the_loss(real, noise):
        rounds[0] += 1
        return root_of_nothing(real, noise, line) if rounds[0] > 4 else line(real).square().mean()

    with pytest.raises(NonFiniteLoss) as caught:
        play([Player(line, the_loss)], BATCHES, rounds=5, copies=copies, checkpoint=tmp_path)
    which = "" if copies is None else " of copy 0"
    assert f"The gradient of player 'the'{which} is NaN or infinite in round 5" in str(caught.value)
    assert all(weight.isfinite().all() for weight in line.parameters())
    assert line.weight.grad is None
    assert caught.value.history.each(lambda: line.weight).isfinite().all()
    assert not list(tmp_path.glob("round-*"))


def test_the_copy_whose_gradient_is_not_finite_is_named():
    line = nn.Linear(1, 1)

    def batches(generator):
        return (torch.full((1, 1), float(generator.initial_seed() == wanted)),)

    wanted = engine._another(seed_of(0, 2))

    def the_loss(x):  # finite, with an infinite slope at 0
        return (x * line.weight).abs().sum() + ((1 - x) * 1e-9 + 0 * line.weight).abs().sqrt().sum()

    with pytest.raises(NonFiniteLoss, match="gradient of player 'the' of copy 2 is NaN"):
        play([Player(line, the_loss)], batches, rounds=2, copies=4, seed=0)


def test_of_several_bad_copies_and_players_the_first_is_named():
    line, other = nn.Linear(1, 1), nn.Linear(1, 1)
    bad = {engine._another(seed_of(0, copy)) for copy in (1, 3)}

    def batches(generator):
        return (torch.tensor([[torch.inf if generator.initial_seed() in bad else 1.0]]),)

    players = [
        Player(net, lambda x, net=net: net(x).square().mean(), name=name)
        for net, name in ((line, "first"), (other, "second"))
    ]
    with pytest.raises(NonFiniteLoss, match="The loss of player 'first' of copy 1 is inf"):
        play(players, batches, rounds=2, copies=4, seed=0)


def test_after_an_infinite_loss_the_networks_hold_the_last_finite_weights():
    line = mlp(2, 8, 2)
    before = state(line)

    def boom(real, noise):
        return line(real).square().mean() * 1e38 * 1e38

    with pytest.raises(NonFiniteLoss, match="is inf in round 1"):
        play([Player(line, boom, lr=1.0)], BATCHES, rounds=9)
    assert apart(state(line), before) == 0


@pytest.mark.parametrize("copies", [None, 2])
def test_a_bad_batch_leaves_no_trace_in_the_statistics(copies):
    _, G = networks()
    draw, drawn = minibatches(DATA, size=32, noise=3), [0]

    def batches(generator):
        drawn[0] += 1
        real, noise = draw(generator)
        return real, noise * (torch.inf if drawn[0] > 4 * (copies or 1) else 1.0)

    with pytest.raises(NonFiniteLoss) as caught:
        play([Player(G, lambda r, noise: G(noise).square().mean())], batches, rounds=9,
             copies=copies)  # fmt: skip
    assert all(value.isfinite().all() for value in state(G))
    assert caught.value.history.each(lambda: G[1].running_mean).isfinite().all()
    assert repr(caught.value.history).startswith("<History of 4 rounds")


def test_a_step_that_overflows_is_not_taken(tmp_path):
    line = nn.Linear(2, 1)
    before = state(line)
    player = Player(
        line, lambda real, noise: 1e20 * line(real).sum(), lr=1e30, optimiser=torch.optim.SGD
    )
    with pytest.raises(NonFiniteLoss, match="The step of player 'player 1' is NaN or infinite"):
        play([player], BATCHES, rounds=1, checkpoint=tmp_path)
    assert apart(state(line), before) == 0
    assert not list(tmp_path.glob("round-*"))


def test_a_loss_that_is_bad_in_the_first_round_leaves_a_history_of_none():
    line = nn.Linear(2, 1)
    with pytest.raises(NonFiniteLoss) as caught:
        play([Player(line, lambda real, noise: line(real).sum() * torch.nan)], BATCHES, rounds=2)
    assert repr(caught.value.history) == "<History of 0 rounds>"


def test_clipping_bounds_even_a_gradient_whose_square_overflows():
    line = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(line.weight)
    player = Player(
        line, lambda real, noise: 1e25 * line.weight.sum(), lr=1.0, clip=1.0,
        optimiser=torch.optim.SGD,
    )  # fmt: skip
    play([player], BATCHES, rounds=1)
    assert torch.allclose(line.weight, torch.full((1, 2), -(0.5**0.5)))


def test_a_large_finite_gradient_is_no_fault():
    line = nn.Linear(2, 1)
    player = Player(
        line, lambda real, noise: 1e30 * line(real).sum(), lr=1e-30, optimiser=torch.optim.SGD
    )
    play([player], BATCHES, rounds=3)
    assert all(weight.isfinite().all() for weight in line.parameters())


def test_without_instructions_for_bf16_a_warning_says_so_and_32_bits_play(monkeypatch):
    monkeypatch.setattr(engine, "bf16_pays", lambda device: False)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"):
        half = image_game(bf16=True)
    assert torch.equal(half, image_game())


@pytest.mark.filterwarnings("error")
def test_whether_bf16_pays_is_asked_of_the_device_and_not_of_the_checkpoint(tmp_path, monkeypatch):
    """Where nobody has chosen, a game moves from one processor to another."""
    ends = {}
    for able, rounds in ((True, 2), (False, 4)):
        monkeypatch.setattr(engine, "bf16_pays", lambda device, able=able: able)
        torch.manual_seed(0)
        line = nn.Linear(2, 1)
        player = Player(line, lambda x, line=line: line(x).square().mean(), name="line")
        options = {"seed": 0, "bf16": None, "checkpoint": tmp_path}
        ends[able] = play(
            [player], minibatches(torch.randn(8, 2), size=4), rounds=rounds, **options
        )
    assert torch.equal(ends[False].losses["line"][:2], ends[True].losses["line"])


def test_arrays_and_lists_are_drawn_from_as_tensors_are():
    rows, draws = torch.randn(8, 2), []
    for data in (rows, rows.numpy(), rows.tolist()):
        generator = torch.Generator().manual_seed(0)
        draws.append(minibatches(data, size=4)(generator)[0])
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_bf16_keeps_no_casts_that_were_made_without_gradients(monkeypatch):
    monkeypatch.setattr(engine, "bf16_pays", lambda device: True)
    line, cached = nn.Linear(2, 4), []

    def the_loss(real, noise):
        cached.append(torch.is_autocast_cache_enabled())
        with torch.no_grad():
            line(real)
        return line(real).float().square().mean()

    before = state(line)
    play([Player(line, the_loss)], BATCHES, rounds=2, bf16=True)
    assert cached == [False, False]
    assert apart(state(line), before) > 0


def test_weights_that_nothing_can_draw_anew_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    own = Own()
    with pytest.raises(ValueError, match="weight is scale of Own"):
        play([Player(own, lambda real, noise: own.scale * 1.0)], BATCHES, rounds=1, copies=2)
    assert own.scale == 1
    play([Player(own, lambda real, noise: own.scale * 1.0)], BATCHES, rounds=1)


def test_weights_under_the_old_weight_norm_are_refused():
    from torch.nn.utils import weight_norm as old

    with pytest.warns(FutureWarning):
        net = old(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"the weight is weight_[gv] of Linear"):
        reinitialise(net)


def test_a_gradient_whose_square_overflows_is_no_step_of_adam():
    """Adam would keep infinity as the mean square, and these weights would never move again."""
    net, rounds = mlp(2, 8, 2), []

    def loss(x, y):
        rounds.append(1)
        return mse_loss(net(x), y) * (1e22 if len(rounds) == 3 else 1)

    x, y = torch.randn(64, 2), torch.randn(64, 2)
    with pytest.raises(NonFiniteLoss, match="The step of player 'player 1' is NaN or infinite"):
        play([Player(net, loss, name="player 1")], minibatches(x, y, size=32), rounds=9, seed=0)
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_one_player_needs_no_list():
    ends = []
    for listed in (False, True):
        torch.manual_seed(0)
        net = mlp(2, 4, 1)
        player = Player(net, lambda x, net=net: net(x).square().mean())
        batches = minibatches(torch.arange(8.0).view(4, 2), size=2)
        play([player] if listed else player, batches, rounds=2, seed=0)
        ends.append(state(net))
    assert apart(*ends) == 0


def test_a_scheduled_rate_that_overflows_leaves_the_weights_finite():
    net = mlp(2, 8, 2)
    player = Player(
        net, lambda x: net(x).square().mean(), name="q", optimiser=torch.optim.SGD, lr=1.0,
        schedule=lambda share: 1e39 if share > 0.5 else 1e-3,
    )  # fmt: skip
    with pytest.raises(NonFiniteLoss, match="The step of player 'q' is NaN or infinite in round"):
        play([player], minibatches(torch.randn(64, 2), size=8), rounds=20, seed=0)
    assert all(weight.isfinite().all() for weight in net.parameters())
