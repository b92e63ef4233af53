"""Mixtures, the Boltzmann machine and the bound, against sums and closed forms."""

import itertools
import math

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
    drawn = mixture.sample(50_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), mixture.weights @ mixture.means, atol=0.01)


def test_em_without_prior_climbs_and_finds_the_parts(mixture):
    generator = torch.Generator().manual_seed(1)
    sharp = BernoulliMixture(torch.tensor([0.3, 0.7]), torch.tensor([[0.95] * 6, [0.05] * 6]))
    x = torch.bernoulli(sharp.sample(4000, generator), generator=generator)
    model = BernoulliMixture.start(x, 2, generator)
    likelihoods = []
    for _ in range(50):
        model = model.improved(x, pseudocount=0.0)
        likelihoods.append(model.log_prob(x).mean().item())
    assert min(b - a for a, b in itertools.pairwise(likelihoods)) > -1e-5
    order = model.weights.argsort()
    assert torch.allclose(model.weights[order], torch.tensor([0.3, 0.7]), atol=0.03)
    assert torch.allclose(model.means[order], sharp.means, atol=0.03)


@pytest.mark.parametrize(
    ("weights", "means", "name"),
    [
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


def test_temperatures_that_do_not_rise_are_refused(machine):
    with pytest.raises(ValueError, match="betas is otherwise; it has to be a vector that rises"):
        annealed_importance_sampling(machine, torch.tensor([0.0, 0.8, 0.5, 1.0]))


def test_a_large_machine_is_not_summed():
    with pytest.raises(ValueError, match="smaller layer of 21 units"):
        log_partition_exact(RBM(30, 21))


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
