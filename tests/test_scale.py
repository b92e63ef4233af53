import random

import numpy as np
import pytest
import torch

from minimax import at_scale, seed


def test_quick_is_the_default(monkeypatch):
    monkeypatch.delenv("MINIMAX_SCALE", raising=False)
    assert at_scale(quick=1, paper=2) == 1


def test_paper(monkeypatch):
    monkeypatch.setenv("MINIMAX_SCALE", "paper")
    assert at_scale(quick=1, paper=2) == 2


@pytest.mark.parametrize("value", ["", "Paper", "full"])
def test_any_other_scale_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv("MINIMAX_SCALE", value)
    with pytest.raises(ValueError, match=f"MINIMAX_SCALE is '{value}'.*'quick', 'paper'"):
        at_scale(quick=1, paper=2)


def test_seed_seeds_everything(monkeypatch):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    monkeypatch.setenv("MINIMAX_SEED", "3")
    assert seed() == 3
    first = draw()
    seed()
    assert draw() == first
    monkeypatch.setenv("MINIMAX_SEED", "4")
    seed()
    assert draw() != first


@pytest.mark.parametrize("value", ["-1", "one", "1.5", "4294967296", "²"])
def test_a_bad_seed_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv("MINIMAX_SEED", value)
    with pytest.raises(ValueError, match="MINIMAX_SEED is"):
        seed()


def test_what_takes_seconds_is_loaded_once_it_is_used(python):
    """torchvision loads torch's compiler; the first cell of a chapter waits for it."""
    heavy = [
        "torchvision",
        "sklearn",
        "scipy.optimize",
        "scipy.stats",
        "nbclient",
        "fastapi",
        "lmdb",
    ]
    code = f"""
import sys
from minimax import attacks, claim, collapse, dcgan, defenses, figures, game, gans, recorded
from minimax.data import load
print([name for name in {heavy} if name in sys.modules])
load("ring"), load("digits")
print("sklearn" in sys.modules)
"""
    done = python(code)
    assert done.stdout.splitlines() == ["[]", "True"], done.stderr
