import itertools

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import BernoulliNB
from sklearn.svm import SVC

from minimax.attacks.evasion import SVM, AwareFilter, cheapest_camouflage, evade, log_odds
from minimax.data import load


@pytest.fixture(scope="module")
def spam_filter():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    words = rng.random((300, 9)) < np.where(y[:, None] == 1, np.linspace(0.1, 0.9, 9), 0.4)
    return BernoulliNB().fit(words, y), words, y


def test_log_odds_are_those_of_scikit_learn(spam_filter):
    model, words, _ = spam_filter
    w, b = log_odds(model)
    ham, spam = model.predict_log_proba(words).T
    assert words @ w + b == pytest.approx(spam - ham)


def test_log_odds_want_two_classes(spam_filter):
    model = BernoulliNB().fit(np.eye(3), [0, 1, 2])
    with pytest.raises(ValueError, match="spam_filter is of 3 classes"):
        log_odds(model)


def test_the_knapsack_equals_brute_force(spam_filter):
    model, words, _ = spam_filter
    w, b = log_odds(model)
    rng = np.random.default_rng(1)
    tried = 0
    for message in words[:60]:
        costs = rng.integers(1, 8, size=9).astype(float)
        costs[rng.random(9) < 0.2] = np.inf
        best = np.inf
        for flips in itertools.product([False, True], repeat=9):
            changed = message ^ np.array(flips)
            if w @ changed + b < 0:
                best = min(best, costs[list(flips)].sum())
        found = cheapest_camouflage(w, b, message, costs)
        assert found.cost == best
        if np.isfinite(best):
            assert w @ found.words + b < 0
            assert costs[found.words != message].sum() == best
            tried += best > 0
        else:
            assert np.array_equal(found.words, message)
    assert tried > 10


def test_bad_costs_are_refused():
    w, words = np.array([-1.0, 2.0]), np.array([False, True])
    with pytest.raises(ValueError, match=r"words is \(1,\)"):
        cheapest_camouflage(w, 0.0, words[:1], np.ones(2))
    with pytest.raises(ValueError, match=r"costs is \[0\.5, 1\.0\]"):
        cheapest_camouflage(w, 0.0, words, np.array([0.5, 1.0]))


def test_the_aware_filter_knows_camouflage_when_it_sees_it(spam_filter):
    model, words, y = spam_filter
    w, b = log_odds(model)
    hidden = np.array([cheapest_camouflage(w, b, m, np.ones(9)).words for m in words[y == 1]])
    aware = AwareFilter(words, y, hidden)
    assert model.predict(hidden).mean() < 0.05
    assert aware.predict(hidden).mean() > 0.5


@pytest.fixture(scope="module")
def sevens_and_threes():
    data = load("digits")
    chosen = (data.y == 3) | (data.y == 7)
    return data.x[chosen].flatten(1), (data.y[chosen] == 3).long()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svm_equals_scikit_learn_and_has_its_gradient(sevens_and_threes, kernel):
    x, y = sevens_and_threes
    svc = SVC(kernel=kernel).fit(x, y)
    g = SVM(svc)
    assert g(x).numpy() == pytest.approx(svc.decision_function(x), abs=1e-4)
    point = x[:4].double().requires_grad_()
    (gradient,) = torch.autograd.grad(g.double()(point).sum(), point)
    alpha, support = torch.tensor(svc.dual_coef_[0]), torch.tensor(svc.support_vectors_)
    difference = point.detach()[:, None] - support.float()
    if kernel == "linear":
        by_hand = (alpha @ support).expand(4, -1)
    else:
        k = (-svc._gamma * (difference**2).sum(2)).exp()
        by_hand = -2 * svc._gamma * ((alpha * k)[..., None] * difference).sum(1)
    assert torch.allclose(gradient, by_hand, atol=1e-4)


def test_svm_refuses_what_it_cannot_be(sevens_and_threes):
    x, y = sevens_and_threes
    with pytest.raises(ValueError, match=r"svc\.kernel is 'poly'"):
        SVM(SVC(kernel="poly").fit(x, y))
    with pytest.raises(ValueError, match="svc is of 3 classes"):
        SVM(SVC(kernel="linear").fit(np.eye(3), [0, 1, 2]))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_evasion_stays_in_the_ball_and_the_box_and_gets_through(sevens_and_threes, norm):
    x, y = sevens_and_threes
    g = SVM(SVC(kernel="linear").fit(x, y))
    threes, sevens = x[y == 1][:20], x[y == 0]
    distances = [0.0, 0.5, 20.0]
    moved = evade(g, threes, sevens, distances, norm=norm)
    assert torch.equal(moved[0], threes)
    for points, distance in zip(moved, distances, strict=True):
        size = (points - threes).norm(p=int(norm[1]), dim=1)
        assert size.max() <= distance + 1e-4
        assert points.min() >= 0 and points.max() <= 1
    assert (g(moved[1]) < g(threes)).all()
    assert (g(moved[2]) < 0).all()


def test_the_density_term_leads_to_the_benign(sevens_and_threes):
    x, y = sevens_and_threes
    g = SVM(SVC(kernel="rbf").fit(x, y))
    threes, sevens = x[y == 1][:20], x[y == 0]

    def distance(density):
        moved = evade(g, threes, sevens, 20.0, density=density, bandwidth=5.0)
        return torch.cdist(moved, sevens, p=1).amin(1).mean()

    assert distance(10.0) < distance(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l3"}, "norm is 'l3'"),
        ({"distance": -1.0}, "distance is -1"),
        ({"bandwidth": 0.0}, "bandwidth is 0"),
        ({"density": -1.0}, "density is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"benign": torch.zeros(3, 5)}, r"benign is \(3, 5\)"),
    ],
)
def test_bad_input_gets_one_clear_sentence(change, message):
    arguments = {"x": torch.rand(2, 4), "benign": torch.rand(3, 4), "distance": 1.0} | change
    with pytest.raises(ValueError, match=message):
        evade(lambda x: x.sum(1), **arguments)
