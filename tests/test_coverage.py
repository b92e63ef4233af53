"""Scores of samples against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

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
from minimax.evaluation import predict_proba
from minimax.likelihood import log_mean_exp


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


def test_the_splits_are_as_even_as_can_be():
    sure = torch.eye(10).repeat(11, 1)
    assert inception_score(sure[:11])[0] == pytest.approx(1.1)  # two rows, and nine times one
    mean, sd = inception_score(sure[:101])  # 11 rows, and nine times all ten classes
    assert 9.9 < mean < 10 and sd < 0.1


def test_the_inception_score_is_that_of_each_split_and_so_the_order_counts():
    in_order = torch.eye(5).repeat_interleave(20, dim=0)
    assert inception_score(in_order, splits=1)[0] == pytest.approx(5)
    assert inception_score(in_order, splits=5) == pytest.approx((1, 0))
    half = torch.cat([torch.eye(4), torch.eye(4)[:1].repeat(4, 1)])
    assert inception_score(half, splits=2) == pytest.approx((2.5, 1.5))  # of 4 and 1


def test_precision_and_recall_by_hand():
    real = torch.tensor([0.0, 1, 3, 7])[:, None]  # the nearest others are 1, 1, 2 and 4 away
    fake = torch.tensor([-1.5, -1.0, 3.5, 5.0, 11.0, 11.5])[:, None]  # 0.5, 1.5 and 0.5 away
    assert precision_recall(real, fake, k=1) == pytest.approx((4 / 6, 1 / 4))


def test_precision_and_recall_are_the_same_far_from_the_origin_and_in_either_precision():
    torch.manual_seed(0)
    near = [torch.randn(200, 64, dtype=torch.float64) * 0.1 for _ in range(2)]
    far = [(part + 100).float() for part in near]
    scores = precision_recall(*far)
    assert scores == precision_recall(*(part.double() for part in far))
    assert scores == precision_recall(*(part.double() - 100 for part in far))
    assert scores == pytest.approx(precision_recall(*near), abs=0.01)


def test_frechet_distance_of_one_feature():
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    expected = (2 * x.double().std() - x.double().std()) ** 2 + (x.double().mean() + 1) ** 2
    assert frechet_distance(x, 2 * x + 1) == pytest.approx(expected.item(), rel=1e-5)


NAN = torch.tensor([[math.nan, 0.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inception_score(torch.ones(3, 1), 10), "splits is 10; it has to be at most 3"),
        (lambda: inception_score(torch.randn(100, 10) * 5), "probabilities is from -"),
        (lambda: inception_score(torch.full((9, 2), 0.7), 3), "each row summing to 1"),
        (lambda: inception_score(NAN, 1), "probabilities is with NaN"),
        (lambda: inception_score(torch.ones(0, 5), 1), r"of shape \(0, 5\)"),
        (lambda: inception_score(torch.ones(5), 1), r"of shape \(5,\)"),
        (lambda: frechet_distance(torch.ones(3, 2), torch.ones(3, 4)), "of shapes"),
        (lambda: frechet_distance(torch.ones(1, 2), torch.ones(3, 2)), "at least 2 points"),
        (lambda: frechet_distance(torch.ones(3, 2), NAN.repeat(3, 1)), "with NaN or infinity"),
        (lambda: frechet_distance(torch.ones(3, 0), torch.ones(3, 0)), "of shapes"),
        (lambda: precision_recall(torch.ones(3, 2), torch.ones(9, 2)), "at least 4 points"),
        (lambda: precision_recall(torch.ones(4, 2) / 0, torch.ones(4, 2)), "with NaN or infinity"),
        (lambda: reverse_kl(torch.tensor([3, -1])), "counts is with a negative one"),
        (lambda: reverse_kl(torch.tensor([3, math.nan])), "counts is with a negative one, NaN"),
        (lambda: reverse_kl(torch.ones(2, 2)), r"counts is \(2, 2\)"),
        (lambda: reverse_kl(torch.ones(0)), r"counts is \(0,\)"),
        (lambda: mode_scores(torch.ones(0, 2), torch.ones(1, 2), 1.0), r"samples is of shape \(0"),
        (lambda: mode_scores(torch.ones(3, 2), torch.ones(0, 2), 1.0), r"centres is of shape \(0"),
        (lambda: mode_scores(torch.ones(3, 2), NAN, 1.0), "centres is with NaN"),
        (lambda: mode_scores(torch.ones(3, 2), torch.ones(1, 2), 0.0), "sd is 0"),
        (lambda: mode_scores(torch.ones(3, 2), torch.ones(1, 2), 1.0, -3.0), "within is -3"),
        (lambda: embedded_mode_scores(torch.ones(3, 2), torch.ones(1, 3)), r"\(samples, centres\)"),
        (
            lambda: embedded_mode_scores(torch.ones(0, 2), torch.ones(1, 2), 1),
            "samples is of shape",
        ),
        (lambda: embedded_mode_scores(torch.ones(3, 2), torch.ones(2, 2), 1), "that coincide"),
        (lambda: embedded_mode_scores(torch.ones(3), torch.ones(2, 2), 1), "samples is of shape"),
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


def test_modes_far_from_the_origin_are_told_apart_in_either_precision():
    centres = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)) * 0.1 + 1000
    samples = centres.repeat(20, 1)
    for kind in (torch.float32, torch.float64):
        assert mode_scores(samples.to(kind), centres.to(kind), 0.01) == (36, 1.0, 0.0)
    close = (centres.double() - 1000) * 1e-3 + 1e5
    assert mode_scores(close.repeat(20, 1), close, 1e-5) == (36, 1.0, 0.0)
    high = torch.zeros(2, 40)
    high[1] = 0.1
    noise = torch.tensor([1.0, -1.0]).repeat(10)
    noise = torch.cat([noise, torch.zeros(20)])
    found = embedded_mode_scores((high + 1000 + noise).repeat(20, 1), high + 1000, active=20)
    assert found.modes == 2 and found.reverse_kl == 0


@pytest.mark.parametrize(("size", "good"), [(2.999, True), (3.0, False)])
def test_a_sample_is_good_below_three_deviations_and_not_at_them(size, good):
    centre = torch.zeros(1, 2)
    for sample in (torch.tensor([[size, 0.0]]), torch.tensor([[0.0, -size]])):
        assert mode_scores(sample, centre, 1.0).quality == good
        assert mode_scores(sample, centre, 1.0, box=True).quality == good
        assert mode_scores(sample / 2, centre, 0.25, within=6.0).quality == good


def test_samples_that_are_no_numbers_are_bad_ones():
    samples = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [0.0, 0.0], [0.0, -math.inf]])
    for centres in (torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [9.0, 9.0]])):
        scores = mode_scores(samples, centres, 1.0)
        assert (scores.modes, scores.quality) == (1, 0.25)
        assert mode_scores(samples[:2], centres, 1.0) == (0, 0.0, math.log(len(centres)))


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


def test_no_step_of_lbfgs_raises_a_value():
    def loss(x):  # its gradient points uphill
        return (2 * x.detach().square() - x.square()).sum(1)

    start = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    x, value = batched_lbfgs(loss, start, steps=5)
    assert (value <= loss(start)).all()
    assert torch.equal(value, loss(x))


def test_lbfgs_stays_out_of_where_a_function_is_not_defined():
    def loss(x):
        return (x - x.log()).sum(1)  # NaN below 0, and least at 1

    x, value = batched_lbfgs(loss, torch.tensor([[0.01], [40.0]]), steps=60)
    assert x.flatten().tolist() == pytest.approx([1, 1], abs=1e-2)
    assert value.tolist() == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "start", "words"),
    [
        (lambda x: x.sum(1, keepdim=True), torch.ones(3, 2), r"loss is returning shape \(3, 1\)"),
        (lambda x: x.sum(), torch.ones(3, 2), r"one value per row, of shape \(3,\)"),
        (lambda x: x.log().sum(1), -torch.ones(3, 2), "loss is NaN or infinite"),
        (lambda x: x.sqrt().sum(1), torch.zeros(3, 2), "as its gradient has to be"),
        (lambda x: x.sum(1), torch.ones(3), r"start is \(3,\)"),
        (lambda x: x.sum(1), torch.ones(3, 2).long(), "torch.int64"),
    ],
)
def test_what_lbfgs_cannot_minimise_is_refused(loss, start, words):
    with pytest.raises(ValueError, match=words):
        batched_lbfgs(loss, start, steps=3)


def test_the_best_of_the_restarts_is_kept():
    def G(z):  # many valleys
        return torch.stack([(3 * z[:, 0]).sin() + z[:, 0] / 4, (2 * z[:, 0]).cos()], 1)

    images = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    alone = [nearest_codes(G, images, 1, restarts=1, steps=10) for _ in range(3)]
    torch.manual_seed(0)
    codes, errors = nearest_codes(G, images, 1, restarts=3, steps=10)
    each = torch.stack([error for _, error in alone])
    assert torch.equal(errors, each.amin(0))
    assert (each[0] > errors + 0.01).any() and (each[-1] > errors + 0.01).any()
    assert torch.allclose((G(codes) - images).square().mean(1), errors)


def test_nearest_codes_want_images_of_the_shape_that_the_generator_makes():
    net = torch.nn.Linear(2, 16)

    def G(z):
        return net(z).view(-1, 1, 4, 4)

    images = G(torch.randn(3, 2)).detach()
    for wrong in (images[:, 0], images.flatten(1), images.expand(-1, 3, -1, -1), images[..., :1]):
        with pytest.raises(ValueError, match=r"images is of shape .*\(3, 1, 4, 4\), as G makes"):
            nearest_codes(G, wrong, 2, steps=1)
    for wrong in (images[:0], images / 0, images[0, 0, 0]):
        with pytest.raises(ValueError, match="one image or more, without NaN"):
            nearest_codes(G, wrong, 2, steps=1)


def test_nearest_codes_take_images_and_generators_of_either_precision():
    for kind in (torch.float32, torch.float64):
        G = torch.nn.Linear(2, 5).to(kind)
        images = G(torch.randn(4, 2, dtype=kind)).detach()
        for given in (images.float(), images.double()):
            codes, errors = nearest_codes(G, given, 2, restarts=1, steps=20)
            assert codes.dtype == errors.dtype == kind
            assert errors.max() < 1e-5


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


@pytest.mark.parametrize(
    ("noise", "rest", "good"),
    [
        (1.0, 0.0, True),
        (1.19, 0.0, True),
        (1.21, 0.0, False),
        (0.81, 0.0, True),
        (0.79, 0.0, False),
        (1.0, 0.19, True),
        (1.0, 0.21, False),
    ],
)
def test_a_point_is_good_within_twenty_percent_of_its_noise(noise, rest, good):
    signs = torch.tensor([1.0, -1.0]).repeat(6)  # a mean of the noise would be 0
    offset = signs * torch.cat([torch.full((8,), noise), torch.full((4,), rest)])
    centres = torch.stack([torch.zeros(12), torch.full((12,), 50.0)])
    scores = embedded_mode_scores(centres + offset, centres, active=8)
    assert scores == ((2, 1.0, 0.0) if good else (0, 0.0, math.log(2)))


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


@pytest.mark.parametrize(
    ("classify", "words"),
    [
        (lambda channel: channel[:, 0, 0, 0], r"classify is returning \(5,\) torch.float32"),
        (lambda channel: channel[:, 0, :1, 0].long(), r"returning \(5, 1\) torch.int64"),
        (lambda channel: channel[:1, 0, 0, 0].long(), r"whole-numbered classes of shape \(5,\)"),
        (lambda channel: channel[:, 0, 0, 0].long() + 10, "returning classes from 10 to 10"),
        (lambda channel: channel[:, 0, 0, 0].long() - 1, "digits, from 0 to 9"),
        (lambda channel: None, "classify is returning NoneType"),
    ],
)
def test_a_reader_of_stacked_digits_has_to_answer_with_one_digit_each(classify, words):
    with pytest.raises(ValueError, match=words):
        stacked_mode_scores(torch.zeros(5, 3, 2, 2), classify)
    with pytest.raises(ValueError, match="N > 0"):
        stacked_mode_scores(torch.zeros(0, 3, 2, 2), classify)


def test_small_whole_numbers_of_a_reader_do_not_overflow():
    def classify(channel):
        return torch.full((len(channel),), 9, dtype=torch.uint8)

    modes, divergence = stacked_mode_scores(torch.zeros(5, 3, 2, 2), classify)
    assert modes == 1 and divergence == pytest.approx(math.log(1000))


def test_one_number_has_the_greatest_divergence():
    images = torch.zeros(100, 3, 2, 2)
    modes, divergence = stacked_mode_scores(images, lambda channel: channel[:, 0, 0, 0].long())
    assert modes == 1 and divergence == pytest.approx(math.log(1000))


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (inception_score, "probabilities"),
        (lambda rows: frechet_distance(torch.rand(4, 2), rows), "the second sample"),
        (lambda rows: precision_recall(rows, torch.rand(4, 2)), "the first sample"),
        (lambda rows: mode_scores(rows, torch.eye(2), 0.1), "samples"),
        (lambda rows: mode_scores(torch.rand(4, 2), rows, 0.1), "centres"),
        (reverse_kl, "counts"),
        (lambda rows: nearest_codes(nn.Linear(1, 2), rows, 1), "images"),
        (lambda rows: stacked_mode_scores(rows, lambda x: x), "images"),
        (lambda rows: predict_proba(nn.Linear(2, 2), rows), "x"),
        (log_mean_exp, "values"),
    ],
)
def test_an_array_that_is_no_tensor_is_named(score, name):
    with pytest.raises(ValueError, match=rf"{name} is ndarray; it has to be a tensor"):
        score(np.full((4, 2), 0.5))
    with pytest.raises(ValueError, match=rf"{name} is list; it has to be a tensor"):
        score([[0.5, 0.5], [0.5, 0.5]])
