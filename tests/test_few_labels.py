"""The recipe of the long run with a hundred labels, on small numbers."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from minimax import few_labels, recorded
from minimax.game import play


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two hundred images of ten classes, and a game of six rounds."""
    torch.manual_seed(0)
    x, y = torch.rand(200, 1, 4, 4), torch.arange(200) % 10
    data = type("Data", (), {"x": x, "y": y, "__len__": lambda self: 200})()
    monkeypatch.setattr(few_labels, "load", lambda name, split="train": data)
    changed = {"labels": 20, "sizes": [16, 12, 10], "unlabelled": 8, "rounds": 6}
    monkeypatch.setattr(few_labels, "SETTINGS", few_labels.SETTINGS | changed)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    return data


@pytest.fixture
def game(small, monkeypatch):
    """The player and the batches of seed 0, and the network."""
    seen = {}

    def watching(players, batches, **options):
        seen.update(player=players[0], batches=batches)
        return play(players, batches, **options)

    monkeypatch.setattr(few_labels, "play", watching)
    torch.manual_seed(0)
    seen["network"] = few_labels.normalised_mlp([16, 12, 10])
    seen["found"] = few_labels.train_few_labels(seen["network"], 0, 6)
    return seen


def test_every_class_has_as_many_labels_and_another_seed_other_ones(small, game):
    x, y, unlabelled = game["batches"](torch.Generator())
    assert sorted(y.tolist()) == sorted(list(range(10)) * 2) and len(unlabelled) == 8
    few_labels.train_few_labels(game["network"], 1, 6)
    assert not torch.equal(game["batches"](torch.Generator())[0], x)
    assert all((small.x == one).flatten(1).all(1).any() for one in x)


def test_the_rate_falls_to_nothing(game):
    assert game["player"].lr == 2e-3
    assert [game["player"].schedule(over) for over in (0.0, 0.25, 1.0)] == [1, 0.75, 0]


def test_the_loss_is_that_of_the_labels_and_lds_of_the_unlabelled(game):
    x, y, unlabelled = game["batches"](torch.Generator())
    network = game["network"].train()
    torch.manual_seed(1)
    loss = game["player"].loss(x, y, unlabelled)
    torch.manual_seed(1)
    d = torch.randn_like(unlabelled)
    flat = lambda r: r / r.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # noqa: E731
    r = (1e-2 * flat(d)).requires_grad_()
    before = network(unlabelled).log_softmax(1).detach()

    def change(r):
        after = network(unlabelled + r).log_softmax(1)
        return kl_div(after, before, log_target=True, reduction="sum")

    (gradient,) = torch.autograd.grad(change(r), r)
    wanted = cross_entropy(network(x), y) + change(1.0 * flat(gradient)) / len(unlabelled)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_statistics_are_those_of_the_images_that_are_given():
    torch.manual_seed(0)
    network, x = few_labels.normalised_mlp([16, 12, 10]), torch.rand(30, 1, 4, 4)
    network(torch.ones(5, 1, 4, 4))
    few_labels.renew_statistics(network, x, 10)
    first = network[1](x.flatten(1))
    assert torch.allclose(network[2].running_mean, first.mean(0), atol=1e-6)
    spread = torch.stack([part.var(0) for part in first.split(10)]).mean(0)
    assert torch.allclose(network[2].running_var, spread, atol=1e-6)


def test_each_seed_is_a_row_with_its_errors(small):
    few_labels.record_few_labels([0, 3])
    rows = recorded.run(few_labels.RECORD)
    assert list(rows) == ["seed 0", "seed 3"]
    assert rows["seed 0"]["measured"]["error"] != rows["seed 3"]["measured"]["error"]
    assert rows["seed 3"]["seeds"] == [3] and rows["seed 3"]["settings"]["rounds"] == 6
    assert rows["seed 0"]["measured"]["rounds"][-1] == 6
