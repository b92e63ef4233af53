"""The print-and-photograph channel, expectation over it, drawn signs and stickers."""

import math

import pytest
import torch
from torch import nn

from minimax.attacks import pgd
from minimax.attacks.physical import (
    PRINTABLE,
    PrintAndPhotograph,
    Sticker,
    Through,
    destruction_rate,
    non_printability,
)
from minimax.data import load
from minimax.data.signs import CLASSES, fronts, photograph
from minimax.networks import predict


def camera(**settings):
    return PrintAndPhotograph(**settings)


def test_the_camera_changes_the_picture_and_stays_in_range():
    x = load("photographs").x
    torch.manual_seed(0)
    seen = camera()(x)
    assert seen.shape == x.shape
    assert seen.min() >= 0 and seen.max() <= 1
    assert 0.01 < (seen - x).abs().mean() < 0.3
    torch.manual_seed(0)
    assert torch.equal(camera()(x), seen)
    assert not torch.equal(camera()(x), seen)


def test_the_perfect_camera_changes_next_to_nothing():
    x = load("photographs").x
    seen = camera(perspective=0, blur=0, exposure=0, noise=0, quality=(100, 100))(x)
    assert (seen - x).abs().mean() < 0.02  # what is left is the codec's rounding


def test_the_camera_is_differentiable():
    x = torch.rand(2, 3, 32, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(camera(exposure=0.1)(x).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.5


def test_through_averages_log_probabilities():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    shifts = iter([0.0, 0.5])
    x = torch.rand(4, 3, 2, 2)
    seen = Through(model, lambda z: z + next(shifts), views=2)(x)
    expected = (model(x).log_softmax(1) + model(x + 0.5).log_softmax(1)) / 2
    assert torch.allclose(seen, expected, atol=1e-6)


def test_expectation_over_transformation_survives_a_transformation_better(network, digits):
    x, y = digits[0][:100], digits[1][:100]

    def shaken(z):
        return (z + 0.25 * torch.randn_like(z)).clamp(0, 1)

    torch.manual_seed(0)
    plain = pgd(network, x, y, 0.15, steps=10)
    robust = pgd(Through(network, shaken, views=10), x, y, 0.15, steps=10)

    def wrong(images):
        return torch.stack([predict(network, shaken(images)).argmax(1) != y for _ in range(20)])

    assert wrong(robust).float().mean() >= wrong(plain).float().mean()


def test_the_destruction_rate_counts_what_was_adversarial():
    clean = torch.tensor([True, True, True, False, True])
    attacked = torch.tensor([False, False, True, False, False])
    photographed = torch.tensor([True, False, True, True, False])
    assert destruction_rate(clean, attacked, photographed) == pytest.approx(1 / 3)
    assert math.isnan(destruction_rate(clean, clean, clean))
    with pytest.raises(ValueError, match="of one shape"):
        destruction_rate(clean, attacked[:2], photographed)


def test_the_drawn_signs():
    train, test = load("signs", count=160), load("signs", split="test", count=80, size=32)
    assert train.x.shape == (160, 3, 48, 48)
    assert test.x.shape == (80, 3, 32, 32)
    assert train.classes == CLASSES
    assert train.y.bincount().tolist() == [20] * 8
    assert train.x.min() >= 0 and train.x.max() <= 1
    assert torch.equal(load("signs", count=160).x, train.x)
    signs = fronts(64)
    assert signs.shape == (8, 4, 64, 64)
    means = (signs[:, :3] * signs[:, 3:]).flatten(1)
    assert torch.cdist(means, means).fill_diagonal_(9).min() > 1  # no two look alike


def test_a_photograph_is_differentiable_and_differs_from_place_to_place():
    sign = fronts(64)[:1].clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    seen = photograph(sign.expand(6, -1, -1, -1), generator)
    (gradient,) = torch.autograd.grad(seen.sum(), sign)
    assert gradient.abs().sum() > 0
    assert all((seen[0] - other).abs().mean() > 0.02 for other in seen[1:])
    with pytest.raises(ValueError, match="signs is"):
        photograph(torch.zeros(1, 3, 8, 8), generator)


def test_a_sticker_covers_its_mask_only():
    mask = torch.zeros(16, 16)
    mask[4:8, 3:12] = 1
    sticker = Sticker(mask)
    sticker.reset_parameters()
    signs = torch.rand(2, 4, 16, 16)
    covered = sticker(signs)
    outside = (mask == 0).expand(2, 4, -1, -1)
    assert torch.equal(covered[outside], signs[outside])
    assert torch.equal(covered[:, 3], signs[:, 3])
    assert torch.equal(covered[0, :3, 4:8, 3:12], sticker.colours()[:, 4:8, 3:12])
    with pytest.raises(ValueError, match="mask is"):
        Sticker(torch.zeros(16, 16))


def test_non_printability_is_zero_for_what_can_be_printed():
    mask = torch.ones(2, 2)
    printable = PRINTABLE[5].view(3, 1, 1).expand(3, 2, 2)
    neon = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert non_printability(printable, mask) < 0.6 * non_printability(neon, mask)
    by_hand = (neon[:, 0, 0] - PRINTABLE).norm(dim=1).log().mean().exp()
    assert torch.allclose(non_printability(neon, mask), by_hand)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: camera(noise=-1), "noise is -1"),
        (lambda: camera(quality=(90, 50)), r"quality is \(90, 50\)"),
        (lambda: Through(nn.Identity(), nn.Identity(), views=0), "views is 0"),
        (lambda: fronts(2), "size is 2"),
        (lambda: load("signs", count=0), "count is 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
