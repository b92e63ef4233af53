"""The print-and-photograph channel, expectation over it, drawn signs and stickers."""

import math

import pytest
import torch
from torch import nn

from minimax import recorded
from minimax.attacks import pgd, photographs
from minimax.attacks.physical import (
    PRINTABLE,
    PrintAndPhotograph,
    Sticker,
    Through,
    as_printed,
    basic_iterative,
    non_printability,
)
from minimax.data import load
from minimax.data.signs import CLASSES, fronts, photograph
from minimax.evaluation import predict_proba


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


def test_the_gradient_passes_the_codec_as_if_it_were_not_there():
    still = camera(perspective=0, blur=0, exposure=0, noise=0, quality=(30, 30))
    x = (torch.rand(2, 3, 16, 16) / 2 + 0.25).requires_grad_()
    weights = torch.randn(2, 3, 16, 16)
    seen = still(x)
    (gradient,) = torch.autograd.grad((seen * weights).sum(), x)
    assert torch.allclose(gradient, weights, atol=1e-3)
    assert (seen - x).abs().max() > 0.05  # what is returned has been through it


def test_exposure_contrast_and_noise_are_as_large_as_said():
    torch.manual_seed(0)
    still = {"perspective": 0, "blur": 0, "exposure": 0, "noise": 0, "quality": (100, 100)}
    grey = torch.full((1, 1, 32, 32), 0.5)
    halves = torch.cat([grey - 0.2, grey + 0.2], 3)
    exposed = camera(**still | {"exposure": 0.2})
    bright = torch.tensor([exposed(grey).mean().item() for _ in range(60)])
    assert 0.39 < bright.min() < 0.42 and 0.58 < bright.max() < 0.61
    seen = [exposed(halves) for _ in range(60)]
    apart = torch.stack([(s[..., 40:].mean() - s[..., :24].mean()) / s.mean() for s in seen])
    assert 0.62 < apart.min() < 0.68 and 0.92 < apart.max() < 0.98  # 0.8 ± 20 %
    noisy = camera(**still | {"noise": 0.05})(grey.expand(4, 1, 32, 32))
    assert noisy.std().item() == pytest.approx(0.05, rel=0.1)


def test_the_camera_takes_grey_and_coloured_pictures_of_either_precision():
    for shape in ((2, 1, 9, 5), (1, 3, 3, 3)):
        for kind in (torch.float32, torch.float64):
            seen = camera()(torch.rand(shape, dtype=kind))
            assert seen.shape == shape and seen.dtype == kind
            assert seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 4, 32, 32), r"x is of shape \(2, 4, 32, 32\); .* \(N, 1 or 3, H, W\)"),
        (torch.rand(2, 2, 32, 32), r"x is of shape \(2, 2, 32, 32\)"),
        (torch.rand(3, 32, 32), r"x is of shape \(3, 32, 32\)"),
        (torch.rand(2, 3, 2, 2), "H and W at least 3"),
        (torch.rand(2, 3, 8, 8) * 255, "x is between"),
        (torch.rand(2, 3, 8, 8) * 2 - 1, "x is between -"),
        (torch.rand(2, 3, 8, 8) / 0, "x is between inf"),
        ((torch.rand(2, 3, 8, 8) * 255).byte(), "torch.uint8"),
        (torch.rand(0, 3, 8, 8), "a non-empty batch"),
    ],
)
def test_what_cannot_be_printed_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        camera()(x)


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
        return torch.stack(
            [predict_proba(network, shaken(images)).argmax(1) != y for _ in range(20)]
        )

    assert wrong(robust).float().mean() >= wrong(plain).float().mean()


@pytest.mark.parametrize(("levels", "steps"), [(8, 10), (16, 20), (2, 2), (0, 1)])
def test_the_basic_iterative_method_takes_kurakins_steps(network, digits, levels, steps):
    x, y = digits[0][:20], digits[1][:20]
    for targeted in (False, True):
        found = basic_iterative(network, x, (y + 1) % 10, levels, targeted=targeted, batch_size=7)
        expected = pgd(network, x, (y + 1) % 10, levels / 255, steps=steps, step_size=1 / 255,
                       random_start=False, targeted=targeted)  # fmt: skip
        assert torch.equal(found, expected)
    assert (found - x).abs().max() <= levels / 255 + 1e-6


def test_the_camera_record_has_every_attack_once_for_each_seed(monkeypatch, tmp_path):
    torch.manual_seed(0)
    data = load("signs", split="test", count=16, size=32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    names = {
        "squeezenet": lambda: (model, [], "of this test"),
        "load": lambda name: data,
        "SHOT_SEEDS": range(2),
        "LEVELS": (4,),
        "SHOTS": 2,
    }
    for name, value in names.items():
        monkeypatch.setattr(photographs, name, value)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    least, shown = predict_proba(model, data.x).argmin(1), []
    moved, print_one = photographs.basic_iterative, photographs.PrintAndPhotograph()

    def watched(network, x, y, levels, targeted=False, **options):
        assert torch.equal(y, least if targeted else data.y)
        return moved(network, x, y, levels, targeted=targeted, **options)

    def camera(pictures):
        shown.append(pictures)
        return print_one(pictures)

    monkeypatch.setattr(photographs, "basic_iterative", watched)
    monkeypatch.setattr(photographs, "PrintAndPhotograph", lambda: camera)
    photographs.record_camera()
    rows = recorded.run(photographs.CAMERA)
    attacks = "none fast basic|iterative least|likely noise basic|iterative,|expected"
    assert list(rows) == ["seed 0", "seed 1"]
    for row in rows.values():
        kept = row["photographs"]
        assert list(kept) == [f"{attack.replace('|', ' ')}, 4" for attack in attacks.split()]
        assert kept["none, 4"][0] == (predict_proba(model, data.x).argmax(1) == data.y).tolist()
        for right, seen in kept.values():
            assert len(right) == len(seen) == 16 and set(seen) <= {0.0, 0.5, 1.0}
        assert any(right != seen for right, seen in kept.values())  # the camera does something
    printed = [pictures for pictures in shown if len(pictures) == 16][::2]  # two shots of each
    none, fast, noisy = printed[0], printed[1], printed[4]
    inside = (data.x > 0.02) & (data.x < 0.98)
    assert torch.equal(none, data.x) and not torch.equal(noisy, fast)
    assert torch.allclose((noisy - none)[inside].abs(), torch.tensor(4 / 255), atol=1e-5)
    first, second = (row["photographs"] for row in rows.values())
    assert first["fast, 4"][0] == second["fast, 4"][0] and first != second
    monkeypatch.setattr(photographs, "origin", None)
    photographs.record_camera()  # the seeds are there


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
    for wrong in (mask * 255, mask - 1, mask / 0):
        with pytest.raises(ValueError, match=r"mask is between .* between 0 and 1"):
            Sticker(wrong)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 2, 16, 16), (3, 16, 16), (2, 3, 16, 1)])
def test_a_sticker_wants_signs_in_colour_and_of_its_size(shape):
    sticker = Sticker(torch.ones(16, 16))
    with pytest.raises(ValueError, match=r"signs is of shape .*\(N, 3 or more, 16, 16\)"):
        sticker(torch.rand(shape))


def test_non_printability_is_the_distance_to_the_nearest_printable_colour():
    mask = torch.ones(2, 2)
    printable = PRINTABLE[5].view(3, 1, 1).expand(3, 2, 2)
    neon = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert non_printability(printable, mask) == 0
    assert non_printability(neon, mask).item() == pytest.approx(0.03**0.5)  # (.9, .1, .9)
    two = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    grey = torch.full((3, 2, 2), 0.25)
    assert non_printability(grey, mask, two).item() == pytest.approx(0.25 * 3**0.5)


def test_what_is_printed_has_the_nearest_colour_in_each_pixel():
    colours = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    printed = as_printed(colours)
    for row in range(4):
        for column in range(5):
            apart = (PRINTABLE - colours[:, row, column]).norm(dim=1)
            assert torch.equal(printed[:, row, column], PRINTABLE[apart.argmin()])
    assert torch.equal(as_printed(printed), printed)
    assert non_printability(printed, torch.ones(4, 5)) == 0


def test_non_printability_counts_the_pixels_under_the_mask_only():
    colours, mask = torch.rand(3, 4, 5), torch.zeros(4, 5)
    mask[1, 2] = mask[3, 0] = 1
    both = [non_printability(colours[:, r, c].view(3, 1, 1), torch.ones(1, 1)) for r, c in
            ((1, 2), (3, 0))]  # fmt: skip
    assert non_printability(colours, mask).item() == pytest.approx(sum(both).item() / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: non_printability(torch.rand(3, 2, 2), torch.zeros(2, 2)), r"mask is \(2, 2\)"),
        (lambda: non_printability(torch.rand(3, 2, 2), torch.ones(2, 3)), r"mask is \(2, 3\)"),
        (lambda: non_printability(torch.rand(1, 2, 2), torch.ones(2, 2)), "colours is of shape"),
        (
            lambda: non_printability(torch.rand(3, 2, 2), torch.ones(2, 2), torch.rand(0, 3)),
            "printable is of shape",
        ),
        (lambda: as_printed(torch.rand(1, 2, 2)), "colours is of shape"),
        (lambda: as_printed(torch.rand(3, 2, 2), torch.rand(4, 2)), "printable is of shape"),
        (
            lambda: basic_iterative(nn.Flatten(), torch.rand(1, 2), torch.zeros(1).long(), -1),
            "levels is -1",
        ),
        (lambda: camera(noise=-1), "noise is -1"),
        (lambda: camera(blur=math.nan), "blur is nan"),
        (lambda: camera(quality=(90, 50)), r"quality is \(90, 50\)"),
        (lambda: camera(quality=(50.5, 90)), r"quality is \(50\.5, 90\)"),
        (lambda: camera(quality=75), "quality is 75; it has to be two whole numbers"),
        (lambda: camera(quality=(0, 101)), r"quality is \(0, 101\)"),
        (lambda: Through(nn.Identity(), nn.Identity(), views=0), "views is 0"),
        (lambda: fronts(2), "size is 2"),
        (lambda: load("signs", count=0), "count is 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
