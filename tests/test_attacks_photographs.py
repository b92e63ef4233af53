"""What the network says of a photograph, of the perturbation alone, and of noise of its size."""

import pytest
import torch
from torch import nn

from minimax import recorded
from minimax.attacks import input_gradient, photographs
from minimax.attacks.photographs import (
    EPSILONS,
    OSTRICH,
    attack_photograph,
    colour_network,
    record_colour_network,
    recorded_colour_network,
    turn_into_ostriches,
)
from minimax.data import Data, Pretrained
from minimax.evaluation import predict_proba


def tiny(classes=12):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    return Pretrained(network, [f"label {k}" for k in range(classes)], "drawn")


def test_the_sign_has_its_own_label():
    pretrained, photograph = tiny(), torch.rand(3, 8, 8)
    found = attack_photograph(pretrained, photograph)
    x = photograph[None]
    sign = input_gradient(pretrained.network, x, predict_proba(pretrained.network, x).argmax(1))
    answer = predict_proba(pretrained.network, (sign.sign() + 1) / 2)[0]
    label, sure = found["sign_says"]
    assert label == f"label {answer.argmax()}"
    assert abs(sure - answer.max()) < 1e-6
    assert [row["epsilon"] for row in found["rows"]] == list(EPSILONS)
    assert torch.equal(found["sign"], sign.sign()[0])


def test_the_noise_beside_a_step_is_as_large_and_not_the_step():
    pretrained, photograph, asked = tiny(), torch.rand(3, 8, 8) / 2 + 0.25, []

    class Watched(nn.Module):
        def forward(self, x):
            asked.append(x.detach())
            return pretrained.network(x)

    found = attack_photograph(Pretrained(Watched(), *pretrained[1:]), photograph)
    stepped, noisy = [batch for batch in asked if len(batch) == len(EPSILONS)][-2:]
    for epsilon, step, noise in zip(EPSILONS, stepped, noisy, strict=True):
        assert torch.allclose((step - photograph).abs(), torch.tensor(epsilon), atol=1e-6)
        assert torch.allclose((noise - photograph).abs(), torch.tensor(epsilon), atol=1e-6)
        assert epsilon == 0 or 0.2 < (noise != step).float().mean() < 0.8
    answers = predict_proba(pretrained.network, noisy)
    assert [row["noise"][0] for row in found["rows"]] == [f"label {k}" for k in answers.argmax(1)]


def test_noise_has_the_size_of_each_perturbation_and_is_asked_about():
    pretrained, asked = tiny(), []
    pretrained.network[1].bias.data[OSTRICH] -= 1.0  # so that there is a way to go
    picture = torch.rand(1, 3, 8, 8) / 2 + 0.25
    r = turn_into_ostriches(pretrained, picture, steps=20)["r"]
    pictures = torch.cat([picture, picture + 0.7 * r])  # the second has not so far to go
    network = pretrained.network

    class Watched(nn.Module):
        def forward(self, x):
            asked.append(x.detach())
            return network(x)

    found = turn_into_ostriches(Pretrained(Watched(), *pretrained[1:]), pictures, steps=20)
    before, after, noisy = asked[-3:]
    assert torch.equal(before, pictures) and torch.allclose(after, pictures + found["r"])
    sizes = [(image - pictures).flatten(1).norm(dim=1) for image in (after, noisy)]
    assert torch.allclose(*sizes, rtol=0.15) and 0 < sizes[0][1] < 0.5 * sizes[0][0]
    assert [label for label, _ in found["after"]] == [f"label {OSTRICH}"] * 2
    answers = predict_proba(network, noisy).max(1)
    assert found["noise"] == [
        (f"label {k}", pytest.approx(p.item()))
        for k, p in zip(answers.indices, answers.values, strict=True)
    ]


def test_a_network_of_colours_is_trained_measured_and_read_again(monkeypatch, tmp_path):
    torch.manual_seed(0)
    y = torch.arange(200) % 2
    x = (y.float().view(-1, 1, 1, 1) * 0.6 + 0.4 * torch.rand(200, 3, 32, 32)).clamp(0, 1)
    monkeypatch.setattr(photographs, "load", lambda name, split: Data(x, y))
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    (tmp_path / "adversarial_examples").mkdir()
    monkeypatch.setattr(photographs, "SEEDS", (3, 4))
    record_colour_network(rounds=25)
    kept = recorded.run(photographs.COLOUR)
    (right,) = kept["measured"].values()
    assert kept["seeds"] == [3, 4] and kept["settings"]["rounds"] == 25
    assert len(right) == 2 and right[0] > 0.9  # dark or bright is easily learned
    network = recorded_colour_network()
    assert not network.training
    weights = [weight.clone() for weight in network.parameters()]
    monkeypatch.setattr(photographs, "SEEDS", (3,))
    record_colour_network(rounds=25)
    again = recorded_colour_network().parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert (network(x).argmax(1) == y).float().mean() == pytest.approx(right[0])
    assert colour_network(4)(x[:2]).shape == (2, 4)
