"""Scores of samples against closed forms."""

import pytest
import torch

from minimax.coverage import frechet_distance, inception_score, precision_recall


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
