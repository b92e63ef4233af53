"""Mixtures, the Boltzmann machine and the bound, against sums and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from minimax.game import minibatches, play
from minimax.likelihood import (
    RBM,
    BernoulliMixture,
    annealed_importance_sampling,
    contrastive_divergence,
    importance_weighted_bound,
    log_mean_exp,
    log_partition_exact,
    temperatures,
)
from minimax.networks import VAE


@pytest.fixture
def every_image():
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))


@pytest.fixture
def mixture():
    torch.manual_seed(0)
    return BernoulliMixture(torch.tensor([0.2, 0.5, 0.3]), torch.rand(3, 6) * 0.9 + 0.05)


@pytest.fixture
def machine():
    torch.manual_seed(0)
    rbm = RBM(6, 4)
    nn.init.normal_(rbm.W)
    nn.init.normal_(rbm.a)
    nn.init.normal_(rbm.b)
    return rbm


def test_a_mixture_sums_to_one(mixture, every_image):
    assert mixture.log_prob(every_image).exp().sum() == pytest.approx(1, abs=1e-5)


def test_its_posterior_is_bayes_rule(mixture, every_image):
    x = every_image[[11]]
    by_part = torch.distributions.Bernoulli(mixture.means).log_prob(x).sum(1).exp()
    expected = mixture.weights * by_part
    assert torch.allclose(mixture.posterior(x)[0], expected / expected.sum(), atol=1e-6)


def test_its_samples_have_its_mean(mixture):
    drawn = mixture.sample_means(50_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), mixture.weights @ mixture.means, atol=0.01)


def test_em_without_prior_climbs_and_finds_the_parts(mixture):
    generator = torch.Generator().manual_seed(1)
    sharp = BernoulliMixture(torch.tensor([0.3, 0.7]), torch.tensor([[0.95] * 6, [0.05] * 6]))
    x = torch.bernoulli(sharp.sample_means(4000, generator), generator=generator)
    model = BernoulliMixture.start(x, 2, generator)
    likelihoods = []
    for _ in range(50):
        model = model.improved(x, pseudocount=0.0)
        likelihoods.append(model.log_prob(x).mean().item())
    assert min(b - a for a, b in itertools.pairwise(likelihoods)) > -1e-5
    order = model.weights.argsort()
    assert torch.allclose(model.weights[order], torch.tensor([0.3, 0.7]), atol=0.03)
    assert torch.allclose(model.means[order], sharp.means, atol=0.03)


def test_one_step_of_em_counts_images_and_the_prior(mixture, every_image):
    x = every_image[[3, 11, 60, 62, 7]]
    share = mixture.posterior(x)
    for prior in (0.0, 1.0, 6.0):
        after = mixture.improved(x, pseudocount=prior)
        for k in range(3):
            mass = share[:, k].sum() + prior
            on = (share[:, k, None] * x).sum(0) + prior / 2  # half on and half off
            assert torch.allclose(after.means[k], (on / mass).clamp(1e-6, 1 - 1e-6), atol=1e-6)
            assert after.weights[k].item() == pytest.approx(mass.item() / (5 + 3 * prior), rel=1e-5)


def test_em_adds_one_image_to_each_component_unless_told_otherwise(mixture, every_image):
    default, one = mixture.improved(every_image[:9]), mixture.improved(every_image[:9], 1)
    assert torch.equal(default.means, one.means) and torch.equal(default.weights, one.weights)


def test_a_component_that_explains_nothing_keeps_its_means():
    means = torch.tensor([[0.999] * 100, [0.001] * 100])
    model = BernoulliMixture(torch.tensor([0.5, 0.5]), means)
    after = model.improved(torch.ones(7, 100), pseudocount=0.0)
    assert after.weights.tolist() == [1, 0]
    assert torch.equal(after.means[1], means[1])
    assert after.log_prob(torch.ones(7, 100)).isfinite().all()


def test_a_mixture_computes_in_the_precision_of_its_means(mixture, every_image):
    double = BernoulliMixture(mixture.weights, mixture.means.double())
    for x in (every_image, every_image.double()):
        for model, kind in ((mixture, torch.float32), (double, torch.float64)):
            assert model.log_prob(x).dtype == model.posterior(x).dtype == kind
            assert model.improved(x).means.dtype == model.improved(x).weights.dtype == kind
            assert torch.allclose(model.log_prob(x).float(), mixture.log_prob(every_image))
    assert BernoulliMixture.start(every_image.double(), 3).log_prob(every_image).isfinite().all()


@pytest.mark.parametrize("use", ["log_joint", "log_prob", "posterior", "improved", "start"])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor([[0.0, 255, 0, 0, 0, 0]]), "x is between 0 and 255; .* between 0 and 1"),
        (torch.tensor([[0.0, -1, 1, 0, 0, 0]]), "x is between -1 and 1"),
        (torch.tensor([[0.0, math.nan, 1, 0, 0, 0]]), "x is between nan and nan"),
        (torch.zeros(0, 6), r"x is \(0, 6\)"),
        (torch.zeros(6), r"x is \(6,\)"),
        (
            torch.zeros(2, 6).long(),
            "torch.int64; it has to be a non-empty batch of images, a float",
        ),
    ],
)
def test_a_mixture_wants_images_in_the_unit_interval(mixture, use, x, words):
    with pytest.raises(ValueError, match=words):
        mixture.start(x, 1) if use == "start" else getattr(mixture, use)(x)


def test_a_mixture_wants_images_of_its_own_width(mixture):
    for wrong in (torch.zeros(2, 5), torch.zeros(2, 1, 6), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match=r"x is of shape .*\(N, 6\), as the means are"):
            mixture.log_prob(wrong)


@pytest.mark.parametrize(
    ("weights", "means", "name"),
    [
        (torch.tensor([1.5, -0.5]), torch.full((2, 4), 0.5), "weights is of sum 1, the least"),
        (torch.tensor([0.5, math.nan]), torch.full((2, 4), 0.5), "weights is of sum nan"),
        (torch.ones(2).double() / 3, torch.full((2, 4), 0.5), "weights is of sum 0.6667"),
        (torch.ones(2) / 2, torch.full((2, 4), math.nan), "means is with a value outside"),
        (torch.ones(2) / 2, torch.full((3, 4), 0.5), "(weights, means)"),
        (torch.ones(2) / 2, torch.zeros(2, 4), "means"),
        (torch.ones(2), torch.full((2, 4), 0.5), "weights"),
    ],
)
def test_no_mixture_of_nonsense(weights, means, name):
    with pytest.raises(ValueError, match="^" + name.replace("(", r"\(").replace(")", r"\)")):
        BernoulliMixture(weights, means)


def test_more_parts_than_images_are_refused():
    with pytest.raises(ValueError, match="components is 5; it has to be at most 4"):
        BernoulliMixture.start(torch.ones(4, 3), 5)


def test_free_energy_sums_out_the_hidden_units(machine, every_image):
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    v = every_image[:5]
    energy = (v @ machine.W) @ h.T + (v @ machine.a)[:, None] + h @ machine.b
    assert torch.allclose(-machine.free_energy(v), energy.logsumexp(1), atol=1e-5)


def test_exact_partition_by_either_layer(machine, every_image):
    expected = (-machine.free_energy(every_image)).logsumexp(0).item()
    assert log_partition_exact(machine) == pytest.approx(expected, abs=1e-4)
    turned = RBM(4, 6)
    turned.W.data, turned.a.data, turned.b.data = machine.W.data.T, machine.b.data, machine.a.data
    assert log_partition_exact(turned) == pytest.approx(expected, abs=1e-4)


def test_gibbs_sampling_reaches_the_distribution(machine, every_image):
    torch.manual_seed(0)
    v, mean = machine.gibbs(torch.zeros(20_000, 6), 30)
    p = (-machine.free_energy(every_image)).softmax(0)
    assert torch.allclose(v.mean(0), p @ every_image, atol=0.02)
    assert torch.allclose(mean.mean(0), p @ every_image, atol=0.02)


def test_annealing_agrees_with_the_sum_from_either_start(machine):
    torch.manual_seed(0)
    exact = log_partition_exact(machine)
    for base in (None, torch.linspace(-1, 1, 6)):
        weights = annealed_importance_sampling(machine, temperatures((500, 1.0)), 500, base)
        assert log_mean_exp(weights).item() == pytest.approx(exact, abs=0.05)


def test_annealing_a_machine_without_weights_is_exact():
    rbm = RBM(5, 3)
    nn.init.zeros_(rbm.W)
    weights = annealed_importance_sampling(rbm, temperatures((3, 1.0)), 4)
    assert torch.allclose(weights, torch.full((4,), 8 * math.log(2)))


def test_temperatures_of_the_paper():
    betas = temperatures()
    assert len(betas) == 14_501 and betas[0] == 0 and betas[-1] == 1
    assert betas[500] == pytest.approx(0.5) and betas[4_500] == pytest.approx(0.9)
    assert bool((betas.diff() > 0).all())


@pytest.mark.parametrize(
    "betas", [[0.0, 0.8, 0.5, 1.0], [], [0.0, 0.5], [0.1, 1.0], [0, math.nan, 1]]
)
def test_temperatures_that_do_not_rise_are_refused(machine, betas):
    for given in (betas, torch.tensor(betas)):
        with pytest.raises(ValueError, match=r"betas is .*; it has to be a vector that ris"):
            annealed_importance_sampling(machine, given)
    with pytest.raises(ValueError, match=r"the end of steps is 0\.2; .* at least 0\.5"):
        temperatures((5, 0.5), (5, 0.2))


def test_temperatures_may_be_a_list_and_machines_of_double_precision():
    rbm = RBM(5, 3)
    nn.init.zeros_(rbm.W)
    for kind in (torch.float32, torch.float64):
        weights = annealed_importance_sampling(rbm.to(kind), [0, 0.5, 1], np.int64(4))
        assert weights.dtype == kind
        assert torch.allclose(weights, torch.full((4,), 8 * math.log(2), dtype=kind))


def test_an_annealing_from_log_odds_that_fit_no_machine_is_refused(machine):
    for base in (torch.zeros(5), torch.zeros(1), torch.full((6,), math.inf)):
        with pytest.raises(ValueError, match=r"base is .* finite log-odds of shape \(6,\)"):
            annealed_importance_sampling(machine, [0, 1], 4, base)


def test_a_machine_that_is_not_finite_has_no_partition(machine):
    machine.W.data[2, 1] = math.nan
    for use in (log_partition_exact, lambda rbm: annealed_importance_sampling(rbm, [0, 1])):
        with pytest.raises(ValueError, match="rbm is with NaN or infinite weights"):
            use(machine)


def test_annealing_by_one_step_weighs_by_the_ratio_of_the_two_ends(machine):
    base = torch.linspace(-1, 1, 6)
    torch.manual_seed(0)
    found = annealed_importance_sampling(machine, [0, 1], 50, base)
    torch.manual_seed(0)
    v = torch.bernoulli(base.sigmoid().expand(50, -1))
    log_base = v @ base - nn.functional.softplus(base).sum()
    assert torch.allclose(found, -machine.free_energy(v) - log_base, atol=1e-5)


def test_annealing_on_the_way_draws_both_layers_at_the_temperature_that_is_reached(machine):
    base = torch.linspace(-1, 1, 6)
    torch.manual_seed(0)
    found = annealed_importance_sampling(machine, [0, 0.4, 1], 50, base)
    torch.manual_seed(0)
    W, a, b = machine.W.data, machine.a.data, machine.b.data

    def log_p(v, beta):  # with the hidden units summed out
        hidden = nn.functional.softplus(beta * (v @ W + b)).sum(1)
        return v @ ((1 - beta) * base + beta * a) + hidden

    first = torch.bernoulli(base.sigmoid().expand(50, -1))
    h = torch.bernoulli((0.4 * (first @ W + b)).sigmoid())
    second = torch.bernoulli((0.6 * base + 0.4 * (a + h @ W.T)).sigmoid())
    start = nn.functional.softplus(base).sum() + 4 * math.log(2)
    steps = log_p(first, 0.4) - log_p(first, 0.0) + log_p(second, 1.0) - log_p(second, 0.4)
    assert torch.allclose(found, start + steps, atol=1e-4)


def test_the_mean_in_the_exponent_is_that_of_at_least_one_value():
    values = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]])
    assert log_mean_exp(values, 1).tolist() == pytest.approx([math.log(2), 1])
    expected = 500 + math.log((3 + math.e) / 2)
    assert log_mean_exp(values[:, 1] + 500).item() == pytest.approx(expected)
    for nothing in (torch.zeros(0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="at least one value to average"):
            log_mean_exp(nothing)


def test_a_large_machine_is_not_summed():
    with pytest.raises(ValueError, match="smaller layer of 21 units"):
        log_partition_exact(RBM(30, 21))


def test_the_loss_of_cd_k_is_the_difference_of_free_energies_after_k_steps(machine, every_image):
    for k in (1, 4):
        loss = contrastive_divergence(machine, k).loss
        torch.manual_seed(k)
        found = loss(every_image)
        torch.manual_seed(k)
        v = every_image
        for _ in range(k):
            h = torch.bernoulli((v @ machine.W + machine.b).sigmoid())
            v = torch.bernoulli((h @ machine.W.T + machine.a).sigmoid())
        expected = machine.free_energy(every_image).mean() - machine.free_energy(v).mean()
        assert torch.allclose(found, expected)
        gradients = [torch.autograd.grad(value, machine.W)[0] for value in (found, expected)]
        assert torch.allclose(*gradients)


def test_contrastive_divergence_learns_likelihood(every_image):
    torch.manual_seed(0)
    x = every_image[[0, 63]].repeat(500, 1)  # all off or all on, and one unit in ten flipped
    x = torch.where(torch.rand_like(x) < 0.1, 1 - x, x)
    share = torch.unique(x, dim=0, return_counts=True)[1] / len(x)
    best = (share * share.log()).sum().item()
    rbm = RBM(6, 4)

    def likelihood():
        return (-rbm.free_energy(x).mean() - log_partition_exact(rbm)).item()

    before = likelihood()
    play([contrastive_divergence(rbm, 2, lr=0.01)], minibatches(x, size=100), rounds=1000)
    assert before == pytest.approx(-6 * math.log(2), abs=0.1)
    assert best - 0.15 < likelihood() <= best


def test_copies_of_a_machine_train_together():
    rbm = RBM(6, 4)
    x = torch.bernoulli(torch.full((40, 6), 0.3))
    history = play([contrastive_divergence(rbm)], minibatches(x, size=20), rounds=5, copies=3)
    assert history.each(lambda: rbm.W).shape == (3, 6, 4)


class Linear(VAE):
    """p(x | z) does not depend on z, and q is the prior: every bound is exact."""

    def encode(self, x):
        return torch.zeros(len(x), 2), torch.zeros(len(x), 2)

    def decode(self, z):
        return torch.full((len(z), 5), 0.7)


def test_the_bound_is_exact_where_the_code_says_nothing():
    vae, x = Linear((5,), 2, 4), torch.bernoulli(torch.full((7, 5), 0.5))
    expected = torch.distributions.Bernoulli(logits=torch.tensor(0.7)).log_prob(x).sum(1)
    bounds = importance_weighted_bound(vae, x, [1, 10], at_once=30)
    assert bounds.shape == (2, 7)
    assert torch.allclose(bounds, expected.expand(2, -1), atol=1e-4)
    assert torch.allclose(importance_weighted_bound(vae, x, 3), expected, atol=1e-4)


def test_the_bound_with_k_codes_averages_the_first_k():
    class Watched(VAE):
        def decode(self, z):
            self.z = z
            return super().decode(z)

    torch.manual_seed(0)
    vae, x = Watched((6,), 3, 8), torch.bernoulli(torch.full((4, 6), 0.5))
    counts = [1, 3, 20]
    bounds = importance_weighted_bound(vae, x, counts)
    with torch.no_grad():
        z = vae.z.view(20, 4, 3)
        mean, log_variance = vae.encode(x)
        logits = vae.decode(z.flatten(0, 1)).view(20, 4, 6)
        q = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(2)
        prior = torch.distributions.Normal(0, 1).log_prob(z).sum(2)
        pixels = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(2)
        ratio = prior + pixels - q
    for bound, count in zip(bounds, counts, strict=True):
        assert torch.allclose(bound, ratio[:count].exp().mean(0).log(), atol=1e-4)
    assert (bounds[0] - bounds[2]).abs().max() > 0.01


def test_the_number_of_codes_may_be_one_of_numpy():
    vae, x = Linear((5,), 2, 4), torch.bernoulli(torch.full((7, 5), 0.5))
    assert importance_weighted_bound(vae, x, np.int64(5)).shape == (7,)
    assert importance_weighted_bound(vae, x, np.array([5, 2])).shape == (2, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.rand(2, 1, 8, 8) * 2 - 1}, r"x is between -\S+ and \S+; .* between 0 and 1"),
        ({"x": (torch.rand(2, 1, 8, 8) * 255).round()}, "x is between . and 2.."),
        ({"x": torch.rand(2, 1, 8, 8) / 0}, "x is between inf and inf"),
        ({"x": torch.rand(0, 1, 8, 8)}, r"x is \(0, 1, 8, 8\)"),
        ({"x": torch.rand(2, 64)}, r"x is of shape \(2, 64\); .* of shape \(N, 1, 8, 8\)"),
        ({"x": torch.rand(2, 1, 8, 8).double()}, "x is torch.float64; .* torch.float32, as the w"),
        ({"samples": []}, r"samples is \[\]"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": [5, 2.5]}, "samples is 2.5"),
        ({"at_once": 0}, "at_once is 0"),
    ],
)
def test_a_bound_on_nonsense_is_refused(change, words):
    arguments = {"x": torch.rand(2, 1, 8, 8), "samples": 2} | change
    with pytest.raises(ValueError, match=words):
        importance_weighted_bound(VAE((1, 8, 8), 4, 16), **arguments)


def test_a_bound_of_a_broken_network_is_refused():
    vae = VAE((6,), 2, 4)
    vae.mean.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="vae is giving NaN"):
        importance_weighted_bound(vae, torch.rand(3, 6), 2)


def test_the_bound_with_one_code_is_the_elbo():
    torch.manual_seed(0)
    vae, x = VAE((6,), 3, 8), torch.bernoulli(torch.full((4, 6), 0.5))
    many = torch.stack([importance_weighted_bound(vae, x, 1) for _ in range(2000)]).mean(0)
    with torch.no_grad():
        elbo = -torch.stack([vae.negative_elbo(x) for _ in range(2000)]).mean(0)
    assert torch.allclose(many, elbo, atol=0.03)


def test_the_bound_is_that_of_an_integral():
    """A code of two values' worth of integral, done on a grid."""
    torch.manual_seed(0)
    vae, x = VAE((6,), 1, 8), torch.bernoulli(torch.full((4, 6), 0.5))
    z = torch.linspace(-6, 6, 2001)[:, None]
    with torch.no_grad():
        p = torch.distributions.Bernoulli(logits=vae.decode(z)[:, None])
        log_joint = p.log_prob(x).sum(2) - z**2 / 2 - math.log(2 * math.pi) / 2
    exact = log_joint.logsumexp(0) + math.log(12 / 2000)
    assert torch.allclose(importance_weighted_bound(vae, x, 20_000), exact, atol=0.03)
