"""Scores of samples against closed forms."""

import math

import pytest
import torch

from minimax.coverage import (
    PERFECT_QUALITY,
    batched_lbfgs,
    embedded_mode_scores,
    frechet_distance,
    inception_score,
    mode_scores,
    nearest_codes,
    precision_recall,
    reverse_kl,
    reverse_kl_floor,
    stacked_mode_scores,
)
from minimax.data import load


def test_sure_and_even_predictions_score_the_number_of_classes():
    p = torch.eye(5).repeat(20, 1)
    mean, sd = inception_score(p, splits=1)
    assert mean == pytest.approx(5) and sd == pytest.approx(0)


def test_one_class_scores_one():
    mean, _ = inception_score(torch.eye(5)[:1].repeat(100, 1))
    assert mean == pytest.approx(1)


def test_predictions_that_say_nothing_score_one():
    mean, _ = inception_score(torch.full((100, 5), 0.2))
    assert mean == pytest.approx(1)


def test_frechet_distance_of_the_same_sample_is_zero():
    x = torch.randn(200, 7)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_shifted_and_scaled_samples():
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5])
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-4)
    # Covariances C and 9C: tr(C + 9C − 6C) = 4 tr C, and the means differ by twice the mean.
    expected = 4 * x.double().T.cov().trace() + (2 * x.double().mean(0)).square().sum()
    assert frechet_distance(x, 3 * x) == pytest.approx(expected.item(), rel=1e-4)


def test_frechet_distance_of_correlated_gaussians():
    """In two dimensions the root of a product has a formula: tr = √(tr + 2 √det)."""
    torch.manual_seed(1)
    x, y = torch.randn(300, 2), torch.randn(300, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    one, two = x.double().T.cov(), y.double().T.cov()
    product = one @ two
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    apart = (x.double().mean(0) - y.double().mean(0)).square().sum()
    expected = apart + one.trace() + two.trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-6)


def test_a_sample_covers_itself():
    x = torch.randn(50, 3)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_a_collapsed_sample_is_precise_and_covers_little():
    torch.manual_seed(0)
    real = torch.cat([torch.randn(100, 2), torch.randn(100, 2) + 50])
    fake = torch.randn(200, 2)
    precision, recall = precision_recall(real, fake)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.06)
    assert precision_recall(fake, real)[1] == precision  # the two change places


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inception_score(torch.ones(3, 2), 10), "splits is 10; it has to be at most 3"),
        (lambda: frechet_distance(torch.ones(3, 2), torch.ones(3, 4)), "of shapes"),
        (lambda: frechet_distance(torch.ones(1, 2), torch.ones(3, 2)), "at least 2 points"),
        (lambda: precision_recall(torch.ones(3, 2), torch.ones(9, 2)), "at least 4 points"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25)])
def test_perfect_samples_have_the_quality_of_the_closed_form_and_the_floor_of_kl(name, modes):
    data = load(name, count=50_000)
    centres, sd = data.extras["centres"], data.extras["sd"][0, 0].item()
    scores = mode_scores(data.x, centres, sd)
    assert scores.modes == modes == len(centres)
    assert scores.quality == pytest.approx(PERFECT_QUALITY, abs=0.002)
    assert pytest.approx(0.98889, abs=1e-5) == PERFECT_QUALITY
    floor = reverse_kl_floor(modes, 50_000)
    assert scores.reverse_kl < 4 * floor
    box = mode_scores(data.x, centres, sd, box=True)
    assert box.quality == pytest.approx(math.erf(3 / math.sqrt(2)) ** 2, abs=0.002)


def test_the_ring_has_exactly_eight_modes_and_the_public_one_seven():
    ring = load("ring", count=100).extras["centres"]
    assert len(torch.unique(ring.round(decimals=4), dim=0)) == 8
    angles = torch.linspace(0, 2 * math.pi, 8)  # the end is the start again
    theirs = torch.stack([angles.cos(), angles.sin()], 1)
    assert len(torch.unique(theirs.round(decimals=4), dim=0)) == 7
    with pytest.raises(ValueError, match="two that coincide"):
        mode_scores(theirs, theirs, 0.01)


def test_modes_quality_and_divergence_by_hand():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    samples = torch.tensor([[0.0, 0], [2, 0], [10, 2.9], [5, 5], [0, 13.1], [10, 0]])
    scores = mode_scores(samples, centres, sd=1.0)
    assert scores.modes == 2  # 3 sd is too far, and (0, 13.1) is farther
    assert scores.quality == pytest.approx(4 / 6)
    assert scores.reverse_kl == pytest.approx(math.log(4) - math.log(2))
    nothing = mode_scores(samples + 100, centres, sd=1.0)
    assert nothing == (0, 0.0, math.log(4))
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(4, 3\)"):
        mode_scores(samples, torch.zeros(4, 3), 1.0)


@pytest.mark.parametrize(("modes", "samples"), [(8, 2_500), (25, 2_500), (1000, 26_000)])
def test_the_floor_of_reverse_kl_is_what_exact_draws_give(modes, samples):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(modes, (100, samples), generator=generator)
    mean = sum(reverse_kl(row.bincount(minlength=modes)) for row in draws) / len(draws)
    assert mean == pytest.approx(reverse_kl_floor(modes, samples), rel=0.15)


def test_reverse_kl_of_one_mode_is_log_k_and_of_none_an_error():
    assert reverse_kl(torch.tensor([0, 7, 0])) == pytest.approx(math.log(3))
    assert reverse_kl(torch.tensor([2, 2])) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="counts"):
        reverse_kl(torch.zeros(3))


def test_batched_lbfgs_solves_each_row_by_itself():
    scales = torch.tensor([[1.0, 100.0], [3.0, 0.01], [1.0, 1.0]])
    goals = torch.tensor([[1.0, -2.0], [5.0, 30.0], [0.0, 0.0]])

    def loss(x):
        return (scales * (x - goals).square()).sum(1)

    x, value = batched_lbfgs(loss, torch.zeros(3, 2), steps=40)
    assert torch.allclose(x, goals, atol=1e-2)
    assert torch.allclose(value, loss(x), atol=1e-6)
    alone, _ = batched_lbfgs(lambda x: loss(x.expand(3, 2))[:1], torch.zeros(1, 2), steps=40)
    assert torch.allclose(alone[0], x[0], atol=1e-4)


def test_batched_lbfgs_on_rosenbrock_is_as_good_as_scipy():
    from scipy.optimize import minimize, rosen, rosen_der

    starts = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()

    def loss(x):
        return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)

    _, ours = batched_lbfgs(loss, starts, steps=100)
    options = {"maxiter": 100}
    theirs = [
        minimize(rosen, start.numpy(), jac=rosen_der, method="L-BFGS-B", options=options).fun
        for start in starts
    ]
    solved = [sum(value < 1e-4 for value in values) for values in (ours, theirs)]
    assert solved[0] >= solved[1] - 2
    assert (ours <= loss(starts)).all()


def test_nearest_codes_find_the_codes_of_generated_images():
    torch.manual_seed(0)
    G = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 20))
    images = G(torch.randn(6, 3)).detach()
    codes, errors = nearest_codes(G, images, codes=3, restarts=3, steps=100)
    assert errors.max() < 1e-4
    assert torch.allclose((G(codes) - images).square().mean(1), errors, atol=1e-7)
    _, one = nearest_codes(G, images + 1, codes=3, restarts=1, steps=5)
    assert one.min() > 0.1


def test_real_points_in_1200_dimensions_are_good_by_our_rule_and_none_by_the_literal_one():
    data = load("high_dimensional", count=2000)
    centres = data.extras["centres"]
    ours = embedded_mode_scores(data.x, centres)
    literal = mode_scores(data.x, centres, sd=1.0, within=10.0)
    assert ours.modes == 10 and ours.quality == 1.0 and ours.reverse_kl < 0.02
    assert literal.quality == 0 and literal.modes == 0


def test_points_without_noise_or_with_noise_everywhere_are_not_good():
    centres = load("high_dimensional", count=10).extras["centres"]
    still = centres.repeat(5, 1)
    everywhere = still + torch.randn(50, 1200)
    for samples in (still, everywhere):
        assert embedded_mode_scores(samples, centres).quality == 0
    with pytest.raises(ValueError, match="active"):
        embedded_mode_scores(still, centres, active=1200)


def test_the_divergence_of_uniform_stacked_numbers_is_the_floor():
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(10, (26_000, 3), generator=generator)
    images = digits.float()[:, :, None, None]
    modes, divergence = stacked_mode_scores(images, lambda channel: channel[:, 0, 0, 0].long())
    assert modes == 1000
    assert divergence == pytest.approx(0.0194, abs=0.003)  # 200 draws gave 0.0194 ± 0.0009
    assert divergence == pytest.approx(reverse_kl_floor(1000, 26_000), rel=0.15)
    with pytest.raises(ValueError, match="images"):
        stacked_mode_scores(images[:, :2], lambda channel: channel[:, 0, 0, 0].long())


def test_one_number_has_the_greatest_divergence():
    images = torch.zeros(100, 3, 2, 2)
    modes, divergence = stacked_mode_scores(images, lambda channel: channel[:, 0, 0, 0].long())
    assert modes == 1 and divergence == pytest.approx(math.log(1000))
