"""Whatever is measured, the scores keep their bounds, or one sentence says what is wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimax.coverage import (
    embedded_mode_scores,
    frechet_distance,
    inception_score,
    mode_scores,
    precision_recall,
    reverse_kl,
    reverse_kl_floor,
    stacked_mode_scores,
)
from minimax.likelihood import (
    RBM,
    BernoulliMixture,
    annealed_importance_sampling,
    importance_weighted_bound,
    log_mean_exp,
    log_partition_exact,
    temperatures,
)
from minimax.networks import VAE

PRECISIONS = st.sampled_from([torch.float32, torch.float64])
ODD = st.sampled_from([None, None, None, math.nan, math.inf, -math.inf])
few = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@st.composite
def points(draw: st.DrawFn, rows: tuple[int, int] = (1, 12), width: int | None = None) -> Tensor:
    """Rows of any number and width: spread out, all alike, near or far, with or without NaN."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shape = draw(st.integers(*rows)), width or draw(st.integers(1, 5))
    spread = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
    away = draw(st.sampled_from([0.0, 1000.0]))
    x = torch.randn(shape, generator=generator) * spread + away
    if (odd := draw(ODD)) is not None:
        x[-1, -1] = odd
    return x.to(draw(PRECISIONS))


@st.composite
def images(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A batch in [0, 1]: black and white, grey or constant; now and then out of range."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    grey = torch.rand(draw(st.integers(1, 6)), *shape, generator=generator)
    kind = draw(st.sampled_from(["binary", "binary", "grey", "black", "white", "tanh", "bytes"]))
    made = {
        "binary": (grey > 0.5).float(), "grey": grey, "black": grey * 0, "white": grey * 0 + 1,
        "tanh": grey * 2 - 1, "bytes": (grey * 255).round(),
    }[kind]  # fmt: skip
    if (odd := draw(ODD)) is not None:
        made.view(-1)[0] = odd
    return made


def finite(*tensors: Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def inside(x: Tensor) -> bool:
    return bool(((x >= 0) & (x <= 1)).all())


@few
@given(points(), points(width=3), st.floats(1e-3, 1e3), st.booleans(), st.booleans())
def test_mode_scores_keep_their_bounds(samples, centres, sd, box, same_width):
    if same_width:
        samples = samples[:, :1].expand(-1, 3)
    fits = samples.shape[1] == 3 and finite(centres)
    try:
        modes, quality, divergence = mode_scores(samples, centres, sd, box=box)
    except ValueError:
        assert not fits or (len(centres) > 1 and torch.pdist(centres.double()).min() < sd / 100)
        return
    assert fits
    assert 0 <= modes <= min(len(centres), len(samples))
    assert 0 <= quality <= finite_rows(samples) + 1e-6
    assert 0 <= divergence <= math.log(len(centres)) + 1e-12
    assert (modes == 0) == (quality == 0)


def finite_rows(x: Tensor) -> float:
    return x.isfinite().all(1).float().mean().item()


@few
@given(points(width=4), points(rows=(1, 4), width=4), st.integers(0, 5))
def test_embedded_mode_scores_keep_their_bounds(samples, centres, active):
    alike = len(centres) > 1 and torch.pdist(centres.double()).min() < 0.01
    try:
        modes, quality, divergence = embedded_mode_scores(samples, centres, active)
    except ValueError:
        assert not 1 <= active < 4 or not finite(centres) or alike
        return
    assert 0 <= modes <= len(centres) and 0 <= quality <= finite_rows(samples) + 1e-6
    assert 0 <= divergence <= math.log(len(centres)) + 1e-12


@few
@given(points(), points(), st.integers(0, 3))
def test_precision_recall_and_frechet_distance_keep_their_bounds(one, two, k):
    if two.shape[1] >= one.shape[1]:
        two = two[:, : one.shape[1]]
    fits = one.shape[1] == two.shape[1] and finite(one, two)
    try:
        scores = precision_recall(one, two, k)
        assert fits and k >= 1 and min(len(one), len(two)) > k
        assert all(0 <= score <= 1 for score in scores)
        assert precision_recall(one, one, k) == (1, 1)
        assert precision_recall(two, one, k) == scores[::-1]
    except ValueError:
        assert not fits or k < 1 or min(len(one), len(two)) <= k
    try:
        distance = frechet_distance(one, two)
        assert fits and min(len(one), len(two)) > 1
        assert 0 <= distance < math.inf
        size = max(one.double().square().sum().item(), 1.0)
        assert frechet_distance(one, one) <= 1e-6 * size
        assert frechet_distance(two, one) == pytest.approx(distance, rel=1e-4, abs=1e-6 * size)
    except ValueError:
        assert not fits or min(len(one), len(two)) < 2


@few
@given(points(rows=(1, 30)), st.integers(0, 12), st.sampled_from([0.0, 1.0, 30.0, None]))
def test_the_inception_score_is_from_one_to_the_number_of_classes(logits, splits, sharpness):
    raw = sharpness is None
    p = logits if raw else ((logits - 1000 * (logits > 500)) * sharpness).softmax(1)
    proper = inside(p) and bool(((p.double().sum(1) - 1).abs() < 1e-4).all())
    try:
        mean, sd = inception_score(p, splits)
    except ValueError:
        assert not proper or not 1 <= splits <= len(p)
        return
    assert inside(p)
    assert 1 - 1e-3 <= mean <= p.shape[1] + 1e-3
    assert 0 <= sd <= p.shape[1]


@few
@given(st.lists(st.integers(-1, 50), max_size=9), st.booleans())
def test_reverse_kl_is_from_zero_to_log_k(counts, as_float):
    tensor = torch.tensor(counts, dtype=torch.float64 if as_float else torch.int64)
    try:
        divergence = reverse_kl(tensor)
    except ValueError:
        assert not counts or min(counts) < 0 or sum(counts) == 0
        return
    assert 0 <= divergence <= math.log(len(counts)) + 1e-12
    assert (divergence < 1e-12) == (len(set(counts)) == 1)
    assert reverse_kl_floor(len(counts), sum(counts)) >= 0


@few
@given(st.integers(0, 6), st.integers(-1, 10), st.sampled_from([torch.uint8, torch.int64]))
def test_stacked_scores_keep_their_bounds(count, digit, kind):
    def classify(channel):
        return torch.full((len(channel),), digit).to(kind)

    try:
        modes, divergence = stacked_mode_scores(torch.rand(count, 3, 2, 2), classify)
    except ValueError:
        assert count == 0 or not 0 <= digit <= 9
        return
    assert modes == 1 and divergence == pytest.approx(math.log(1000))


@few
@given(images((5,)), st.integers(1, 7), PRECISIONS, st.sampled_from([0.0, 0.5, 1.0, 100.0]))
def test_a_mixture_gives_binary_images_at_most_likelihood_one(x, components, kind, prior):
    x = x.to(kind)
    try:
        model = BernoulliMixture.start(x, components)
    except ValueError:
        assert not inside(x) or components > len(x)
        return
    assert inside(x) and components <= len(x)
    for _ in range(3):
        share, log_p = model.posterior(x), model.log_prob(x)
        assert finite(share, log_p) and inside(share)
        assert torch.allclose(share.sum(1), torch.ones_like(log_p), atol=1e-5)
        assert (log_p <= 1e-5).all()
        model = model.improved(x, prior)
        assert inside(model.means) and inside(model.weights)
        assert model.weights.sum().item() == pytest.approx(1, abs=1e-5)


@few
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 3), PRECISIONS, ODD)
def test_a_machine_gives_binary_images_at_most_likelihood_one(visible, hidden, scale, kind, odd):
    rbm = RBM(visible, hidden).to(kind)
    with torch.no_grad():
        rbm.W.copy_(torch.linspace(-scale, scale, visible * hidden).view(visible, hidden))
        if odd is not None:
            rbm.b[0] = odd
    try:
        log_z = log_partition_exact(rbm)
        estimate = annealed_importance_sampling(rbm, temperatures((20, 1.0)), 10)
    except ValueError:
        assert odd is not None
        return
    assert odd is None
    v = torch.bernoulli(torch.full((8, visible), 0.5, dtype=kind))
    with torch.no_grad():
        log_p = -rbm.free_energy(v) - log_z
    assert math.isfinite(log_z) and finite(estimate, log_p)
    assert (log_p <= 1e-4).all()
    assert estimate.min() - 10 <= log_mean_exp(estimate) <= estimate.max() + 1e-5


@few
@given(images((1, 2, 3)), st.integers(1, 4), PRECISIONS)
def test_bounds_rise_with_the_number_of_codes_and_stay_below_likelihood_one(x, codes, kind):
    torch.manual_seed(codes)
    vae, x = VAE((1, 2, 3), codes, 8).to(kind), x.to(kind)
    try:
        bounds = importance_weighted_bound(vae, x, [1, 5, 200])
    except ValueError:
        assert not inside(x)
        return
    assert inside(x)
    assert bounds.shape == (3, len(x)) and finite(bounds)
    assert (bounds[2] <= 1e-4).all()
    many = importance_weighted_bound(vae, x[:1].expand(300, -1, -1, -1), [1, 5, 50]).mean(1)
    assert many[0] <= many[1] + 0.1 and many[1] <= many[2] + 0.1  # on average


@few
@given(st.lists(st.floats(-1, 2), max_size=5))
def test_temperatures_rise_or_are_refused(ends):
    try:
        betas = temperatures(*((3, end) for end in ends))
    except ValueError:
        assert sorted(ends) != ends or ends[0] < 0
        return
    assert betas[0] == 0 and (betas.diff() >= 0).all()
    assert len(betas) == 1 + 3 * len(ends) or not ends
