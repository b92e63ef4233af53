"""What holds for attacks on any images: any shape, precision and ε, one image, grey, black, NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minimax.attacks import carlini_wagner, deepfool, fgsm, jsma, lbfgs, pgd
from minimax.attacks.black_box import hop_skip_jump, square
from minimax.attacks.ensemble import apgd, auto_attack, fab
from minimax.evaluation import predict_proba

FEW = settings(max_examples=30, deadline=None, derandomize=True)
KINDS = ("random", "grey", "black", "white", "black and white")


@st.composite
def cases(draw, least=1, most=6):
    """A linear classifier, images, and the labels that it gives them."""
    count, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (count, channels, draw(st.integers(least, most)), draw(st.integers(least, most)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(KINDS))
    x = {
        "random": torch.rand(shape),
        "grey": torch.full(shape, 0.5),
        "black": torch.zeros(shape),
        "white": torch.ones(shape),
        "black and white": (torch.rand(shape) > 0.5).float(),
    }[kind].to(dtype)
    pixels = x[0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, draw(st.integers(2, 6)))).to(dtype)
    return model, x, predict_proba(model, x).argmax(1)


RADII = st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), st.floats(0.01, 1.0), st.floats(1.0, 300.0))


def within(moved, x, radius, norm="linf"):
    """Assert that ``moved`` are images of the kind of ``x`` in the ball around them."""
    assert moved.shape == x.shape and moved.dtype == x.dtype
    assert moved.isfinite().all() and moved.min() >= 0 and moved.max() <= 1
    delta = (moved - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert size.max() <= radius * (1 + 1e-5) + 1e-6


@FEW
@given(cases(), RADII, st.booleans())
def test_fgsm_stays_in_ball_and_box(case, epsilon, targeted):
    model, x, y = case
    within(fgsm(model, x, y, epsilon, targeted=targeted), x, epsilon)


@FEW
@given(cases(), RADII, st.sampled_from(["linf", "l2"]), st.booleans(), st.booleans(), st.booleans())
def test_pgd_stays_in_ball_and_box(case, epsilon, norm, targeted, until_fooled, random_start):
    model, x, y = case
    moved = pgd(
        model, x, y, epsilon, norm=norm, steps=3, targeted=targeted, until_fooled=until_fooled,
        random_start=random_start, restarts=2, momentum=0.5,
    )  # fmt: skip
    within(moved, x, epsilon, norm)


@FEW
@given(cases(), RADII)
def test_apgd_and_square_stay_in_ball_and_box(case, epsilon):
    model, x, y = case
    within(apgd(model, x, y, epsilon, steps=4), x, epsilon)
    found = square(lambda images: predict_proba(model, images), x, y, epsilon, queries=5)
    within(found.images, x, epsilon)
    assert (found.queries >= 1).all() and (found.queries <= 5).all()


@settings(FEW, max_examples=15)
@given(cases(), RADII)
def test_the_ensembles_accuracies_fall(case, epsilon):
    model, x, y = case
    found = auto_attack(model, x, y, epsilon, steps=3, targets=2, queries=4)
    within(found.images, x, epsilon)
    values = list(found.after.values())
    assert values == sorted(values, reverse=True) and 0 <= values[-1] <= values[0] <= 1


@settings(FEW, max_examples=15)
@given(cases(least=2, most=4), st.integers(0, 3))
def test_smallest_perturbations_stay_in_the_box_and_succeed_or_change_nothing(case, shift):
    model, x, y = case
    wanted = (y + shift) % model[1].out_features
    for moved, label, hit in (
        (carlini_wagner(model, x, y, steps=12, search_steps=2, c=1.0), y, False),
        (fab(model, x, y, (y + 1) % model[1].out_features, steps=8), y, False),
        (lbfgs(model, x, wanted, search_steps=1, steps=5), wanted, True),
        (deepfool(model, x, y, steps=3), y, False),
        (deepfool(model, x, y, steps=3, norm="linf"), y, False),
        (jsma(model, x, wanted, pixels=6), wanted, True),
    ):
        within(moved, x, float("inf"))
        changed = (moved != x).flatten(1).any(1)
        assert (((predict_proba(model, moved).argmax(1) == label) == hit) | ~changed).all()


@settings(FEW, max_examples=15)
@given(cases(least=2, most=4))
def test_hop_skip_jump_stays_wrong_and_comes_no_farther_than_its_start(case):
    model, x, y = case
    start = torch.rand_like(x)
    wrong = predict_proba(model, start).argmax(1) != y
    if not wrong.any():
        return
    x, y, start = x[wrong], y[wrong], start[wrong]
    found = hop_skip_jump(
        lambda images: predict_proba(model, images).argmax(1), x, y, start, queries=60
    )
    assert (predict_proba(model, found.images).argmax(1) != y).all()
    within(found.images, x, (start - x).flatten(1).norm(dim=1).max().item(), "l2")


@settings(FEW, max_examples=15)
@given(cases(), st.sampled_from([float("nan"), float("inf"), -0.01, 1.01, 255.0]))
def test_a_pixel_that_is_none_is_refused_in_one_sentence(case, value):
    model, x, y = case
    x[-1, -1, -1, -1] = value

    def scores(images):
        return predict_proba(model, images)

    for attack in (
        lambda: fgsm(model, x, y, 0.1),
        lambda: pgd(model, x, y, 0.1, steps=1),
        lambda: apgd(model, x, y, 0.1, steps=1),
        lambda: auto_attack(model, x, y, 0.1, steps=1),
        lambda: fab(model, x, y, (y + 1) % model[1].out_features, steps=1),
        lambda: carlini_wagner(model, x, y, steps=1),
        lambda: lbfgs(model, x, y),
        lambda: deepfool(model, x, y, steps=1),
        lambda: jsma(model, x, y, pixels=2),
        lambda: square(scores, x, y, 0.1, queries=1),
        lambda: hop_skip_jump(lambda z: scores(z).argmax(1), x, y, x, queries=1),
    ):
        with pytest.raises(ValueError, match=r"^x is between") as caught:
            attack()
        assert "\n" not in str(caught.value)
