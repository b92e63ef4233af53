"""Whatever draws at random takes a generator, and draws from nothing else."""

import copy
import re

import pytest
import torch
from torch import nn

from minimax.attacks import black_box, ensemble, pgd
from minimax.coverage import nearest_codes
from minimax.data.signs import fronts, photograph
from minimax.defenses import certify
from minimax.likelihood import (
    RBM,
    BernoulliMixture,
    annealed_importance_sampling,
    importance_weighted_bound,
)
from minimax.networks import VAE
from test_house import table

with torch.random.fork_rng():
    torch.manual_seed(0)
    MODEL, MACHINE, CODER = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), RBM(4, 3), VAE((16,), 2)
    X, MADE = torch.rand(3, 1, 4, 4), torch.rand(2, 5)
Y = MODEL(X).argmax(1)
DARK, LIGHT = torch.full((2, 1, 1, 4, 4), 0.4), torch.full((1, 1, 4, 4), 0.6)


METHODS = {"BernoulliMixture", "RBM", "photograph"}  # their functions are not in the table
MIXTURE = BernoulliMixture(torch.ones(5) / 5, torch.rand(5, 4))


def bright(x):
    return (x.flatten(1).sum(1) > 8).long()


DRAWS = {
    "pgd": lambda g: pgd(MODEL, X, Y, 0.1, steps=1, step_size=0.01, generator=g),
    "pgd, L2": lambda g: pgd(MODEL, X, Y, 9.0, norm="l2", steps=1, step_size=0.01, generator=g),
    "apgd": lambda g: ensemble.apgd(MODEL, X, Y, 0.5, steps=1, generator=g),
    "auto_attack": lambda g: (
        ensemble.auto_attack(MODEL, X, Y, 0.01, steps=1, queries=9, generator=g).images
    ),
    "apgd on DLR": lambda g: ensemble.apgd(
        MODEL, X, Y, 0.5, loss="dlr", target=(Y + 1) % 5, steps=1, generator=g
    ),
    "square": lambda g: black_box.square(MODEL, X, Y, 0.01, queries=9, generator=g).images,
    "hop_skip_jump": lambda g: (
        black_box.hop_skip_jump(bright, DARK[0], bright(DARK[0]), LIGHT, generator=g).images
    ),
    "train_substitute": lambda g: (
        black_box.train_substitute(
            bright, copy.deepcopy(MODEL), X, augmentations=2, reservoir=(0, 2), generator=g
        ).images
    ),
    "certify": lambda g: certify(MODEL, X, 0.5, first=10, samples=50, alpha=0.4, generator=g).radii,
    "annealed_importance_sampling": lambda g: annealed_importance_sampling(
        MACHINE, [0, 0.5, 1], 5, generator=g
    ),
    "importance_weighted_bound": lambda g: importance_weighted_bound(
        CODER, X.flatten(1), 3, generator=g
    ),
    "BernoulliMixture.start": lambda g: BernoulliMixture.start(X.flatten(1), 2, generator=g).means,
    "BernoulliMixture.sample_means": lambda g: MIXTURE.sample_means(20, generator=g),
    "RBM.gibbs": lambda g: MACHINE.gibbs(torch.zeros(9, 4), 2, generator=g)[0],
    "photograph": lambda g: photograph(fronts(24)[:3], g, 24),
    "nearest_codes": lambda g: nearest_codes(MODEL[1], MADE, 16, 1, 1, generator=g)[0],
}


def test_every_function_with_a_generator_is_tried_here():
    assert set(table()["generator"][1]) == {re.match(r"\w+", name)[0] for name in DRAWS} - METHODS


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_come_from_the_generator_that_is_given(name):
    def drawn(own, of_torch):
        torch.manual_seed(of_torch)
        return DRAWS[name](torch.Generator().manual_seed(own))

    assert torch.equal(drawn(0, 1), drawn(0, 2)), "something comes from torch's own generator"
    assert not torch.equal(drawn(0, 1), drawn(3, 1))
