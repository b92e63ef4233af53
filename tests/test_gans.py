"""The objectives: values and gradients against closed forms."""

import math

import pytest
import torch
from torch import nn

from minimax.gans import minimax, non_saturating
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
