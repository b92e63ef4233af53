import itertools

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.naive_bayes import BernoulliNB
from sklearn.svm import SVC

from minimax.attacks.evasion import (
    SVM,
    AwareFilter,
    _project_l1,
    cheapest_camouflage,
    evade,
    log_odds,
)
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


def test_log_odds_want_a_filter_that_is_fitted_and_certain_of_no_word(spam_filter):
    words, y = np.eye(4)[[0, 1, 2, 3]], [0, 0, 1, 1]
    with np.errstate(divide="ignore"):
        certain = BernoulliNB(alpha=0.0, force_alpha=True).fit(words, y)
    with pytest.raises(ValueError, match="spam_filter is certain of a word"):
        log_odds(certain)
    with pytest.raises(ValueError, match="not fitted yet"):
        log_odds(BernoulliNB())


def test_a_message_on_the_border_is_still_spam():
    w, costs = np.array([2.0, 1.0, 1.0]), np.array([3.0, 1.0, 1.0])
    words = np.array([True, True, True])
    assert cheapest_camouflage(w, -4.0, words, costs).cost == 1  # w·x + b = 0: not yet past
    assert cheapest_camouflage(w, -4.5, words, costs).cost == 0
    assert cheapest_camouflage(w, -2.0, words, costs).cost == 4  # a gain of 2 only gets to 0
    assert cheapest_camouflage(w, 0.0, words, costs).cost == np.inf  # all of it gets to 0


def test_what_the_rounding_of_a_sum_reaches_is_not_reached():
    w = np.array([0.1, 0.2, 0.3])
    for order in itertools.permutations(range(3)):
        found = cheapest_camouflage(w[list(order)], 0.0, np.ones(3), np.array([1.0, 1.0, 1.0]))
        assert found.cost in (3, np.inf)
        found = cheapest_camouflage(w[list(order)], -0.6, np.ones(3), np.ones(3))
        assert found.cost in (0, 1)


def test_costs_too_large_for_the_table_are_refused_in_a_sentence():
    w, words = np.array([-1.0, 2.0]), np.array([False, True])
    with pytest.raises(ValueError, match=r"costs is up to 1e\+10, .*coarser unit"):
        cheapest_camouflage(w, 0.5, words, np.array([1e10, 1e10]))
    found = cheapest_camouflage(w, -0.5, words, np.array([1e25, 2.0]))
    assert found.cost == 2 and found.words.tolist() == [False, False]


def test_lists_of_words_and_costs_will_do():
    found = cheapest_camouflage([-1.0, 2.0], -0.5, [0, 1], [1, 2])
    assert found.cost == 2 and found.words.tolist() == [False, False]


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
    with pytest.raises(ValueError, match=r"costs is \[0\.0\]"):
        cheapest_camouflage(w, 0.0, words, np.array([np.inf, 0.0]))
    with pytest.raises(ValueError, match="costs is with NaN"):
        cheapest_camouflage(w, 0.0, words, np.array([np.nan, 1.0]))
    for odds in ((np.array([np.nan, 1.0]), 0.0), (np.array([np.inf, 1.0]), 0.0), (w, np.nan)):
        with pytest.raises(ValueError, match=r"\(w, b\) is with NaN or infinity"):
            cheapest_camouflage(*odds, words, np.ones(2))


def test_the_aware_filter_knows_camouflage_when_it_sees_it(spam_filter):
    model, words, y = spam_filter
    w, b = log_odds(model)
    hidden = np.array([cheapest_camouflage(w, b, m, np.ones(9)).words for m in words[y == 1]])
    aware = AwareFilter(words, y, hidden)
    assert model.predict(hidden).mean() < 0.05
    assert aware.predict(hidden).mean() > 0.5


def test_the_aware_filter_wants_each_spam_in_camouflage(spam_filter):
    _, words, y = spam_filter
    with pytest.raises(ValueError, match=r"camouflaged is \(1, 9\); .* shape of the spam"):
        AwareFilter(words, y, words[:1])


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


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svm_of_sparse_data_is_that_of_dense_data(sevens_and_threes, kernel):
    x, y = sevens_and_threes
    dense, sparse = (SVM(SVC(kernel=kernel).fit(data, y)) for data in (x, csr_matrix(x)))
    assert torch.allclose(dense(x), sparse(x), atol=1e-4)
    assert torch.equal(dense(x.double()), dense(x))  # images of either precision


def test_svm_refuses_what_it_cannot_be(sevens_and_threes):
    x, y = sevens_and_threes
    with pytest.raises(ValueError, match=r"svc\.kernel is 'poly'"):
        SVM(SVC(kernel="poly").fit(x, y))
    with pytest.raises(ValueError, match="svc is of 3 classes"):
        SVM(SVC(kernel="linear").fit(np.eye(3), [0, 1, 2]))
    with pytest.raises(ValueError, match="not fitted yet"):
        SVM(SVC())
    for kernel in ("linear", "rbf"):
        with pytest.raises(ValueError, match="x is of 3 pixels an image; it has to be of 64"):
            SVM(SVC(kernel=kernel).fit(x, y))(torch.rand(2, 3))


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


def test_one_step_of_evasion_is_that_of_the_equation():
    torch.manual_seed(0)
    x, benign, weights = torch.rand(3, 4) / 2 + 0.25, torch.rand(5, 4), torch.randn(4)

    def g(point):
        return (point * weights).sum(1) ** 2

    for density in (0.0, 3.0):
        (moved,) = evade(
            g, x, benign, [9.0], density=density, bandwidth=2.0, steps=1, step_size=0.05
        )
        for image, there in zip(x, moved, strict=True):
            point = image.clone().requires_grad_()
            near = sum((-(point - one).abs().sum() / 2.0).exp() for one in benign)
            objective = g(point[None]).sum() - density / 5 * near
            (slope,) = torch.autograd.grad(objective, point)
            assert torch.allclose(there, image - 0.05 * slope / slope.norm(), atol=1e-6)


def test_the_projection_onto_the_l1_ball_is_the_nearest_point_of_it():
    torch.manual_seed(0)
    x, radius = torch.full((50, 6), 0.5).double(), torch.full((50, 1), 0.3).double()
    delta = torch.randn(50, 6).double() * torch.logspace(-2, -0.8, 50)[:, None]
    found = _project_l1(x + delta, x, radius) - x
    inside = delta.abs().sum(1) <= 0.3
    assert 10 < inside.sum() < 40
    assert torch.equal(found[inside], (x + delta - x)[inside])  # inner points stay
    low, high = torch.zeros(50, 1).double(), delta.abs().amax(1, keepdim=True)
    for _ in range(60):  # bisection for what all coordinates shrink by
        middle = (low + high) / 2
        over = (delta.abs() - middle).clamp(min=0).sum(1, keepdim=True) > 0.3
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    expected = delta.sign() * (delta.abs() - high).clamp(min=0)
    assert torch.allclose(found[~inside], expected[~inside], atol=1e-9)


def test_evasion_takes_distances_as_any_sequence_and_images_of_either_precision(sevens_and_threes):
    x, y = sevens_and_threes
    g = SVM(SVC().fit(x, y))
    threes, sevens = x[y == 1][:3], x[y == 0]
    with torch.no_grad():
        expected = evade(g, threes, sevens, [0.0, 2.0], steps=5, density=1.0)
    for distances in ((0.0, 2.0), np.array([0.0, 2.0]), torch.tensor([0.0, 2.0])):
        found = evade(g, threes, sevens, distances, steps=np.int64(5), density=1.0)
        assert torch.equal(found, expected)
    double = evade(g, threes.double(), sevens, np.float64(2), steps=5, density=1.0)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), expected[1], atol=1e-4)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (lambda x: x.sum(1, keepdim=True), r"g is returning \(2, 1\) .* of shape \(2,\)"),
        (lambda x: x.sum(), r"g is returning \(\)"),
        (lambda x: x.detach().sum(1), "g is without a gradient in x"),
        (lambda x: x.sum(1).sub(9).sqrt(), "g is NaN or infinite at image 0"),
        (lambda x: x.sub(0.5).sqrt().sum(1), "g is NaN or infinite at image 1"),
    ],
)
def test_a_decision_function_that_cannot_be_descended_is_refused(g, message):
    x = torch.tensor([[0.96, 0.97], [0.5, 0.98]])
    with pytest.raises(ValueError, match=message):
        evade(g, x, torch.rand(3, 2), 1.0)


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
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"bandwidth": 0.0}, "bandwidth is 0"),
        ({"density": -1.0}, "density is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"benign": torch.zeros(3, 5)}, r"benign is \(3, 5\)"),
        ({"benign": torch.zeros(0, 4), "density": 1.0}, "benign is .* a non-empty batch"),
        ({"epsilon": []}, r"epsilon is \[\]"),
        ({"epsilon": "0.1"}, "epsilon is '0.1'"),
        ({"epsilon": ["1"]}, "epsilon is '1'"),
        ({"x": torch.rand(2, 4) * 255}, "x is between"),
        ({"x": torch.rand(2, 4) - 1}, "x is between -"),
        ({"x": torch.rand(2, 4) / 0}, "x is between inf"),
        ({"x": torch.rand(0, 4)}, "x is .* a non-empty batch"),
    ],
)
def test_bad_input_gets_one_clear_sentence(change, message):
    arguments = {"x": torch.rand(2, 4), "benign": torch.rand(3, 4), "epsilon": 1.0} | change
    with pytest.raises(ValueError, match=message):
        evade(lambda x: x.sum(1), **arguments)
