"""Black-box attacks: what they ask, what they find, and their limits."""

import pytest
import torch
from torch import nn

from minimax import recorded
from minimax.attacks import fgsm, substitutes
from minimax.attacks.black_box import _normal, hop_skip_jump, square, train_substitute
from minimax.data import load
from minimax.evaluation import predict_proba
from minimax.networks import mlp


@pytest.fixture
def oracle(network):
    def answer(images):
        answer.asked += len(images)
        return predict_proba(network, images).argmax(1)

    answer.asked = 0
    return answer


def substitute_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), mlp(64, 100, 100, 10))


def test_a_substitute_learns_the_oracles_labels_and_its_attacks_transfer(network, oracle, digits):
    x, _ = digits
    model = substitute_network()
    asked = train_substitute(oracle, model, x[:100], augmentations=4, watch=lambda: oracle.asked)
    assert asked.queries == asked.watched == [100, 200, 400, 800, 1600]
    assert len(asked.images) == 100 * 2**4 == oracle.asked
    assert torch.equal(asked.labels, predict_proba(network, asked.images).argmax(1))
    rest, labels = x[100:], predict_proba(network, x[100:]).argmax(1)
    agreement = (predict_proba(model, rest).argmax(1) == labels).float().mean()
    assert agreement > 0.75
    attacked = fgsm(model, rest, labels, 0.3)
    coin = torch.randn(rest.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = (rest + 0.3 * coin).clamp(0, 1)
    fooled, by_noise = (
        (predict_proba(network, z).argmax(1) != labels).float().mean() for z in (attacked, noisy)
    )
    assert fooled > by_noise + 0.2


def test_neighbours_are_one_signed_step_away_and_the_sign_flips(oracle, digits):
    x = digits[0][:20]
    asked = train_substitute(
        oracle, substitute_network(), x, augmentations=2, period=1, step_size=0.05
    )
    for start, end in ((0, 20), (0, 40)):
        step = asked.images[end : 2 * end] - asked.images[start:end]
        assert step.abs().max() <= 0.05 + 1e-6
        assert step.abs().max() > 0.04
    assert asked.images.min() >= 0 and asked.images.max() <= 1


def test_neighbours_follow_the_logit_of_the_oracles_label(oracle, digits):
    x, model = digits[0][:10], substitute_network()
    options = {"augmentations": 4, "period": 2, "step_size": 0.05, "lr": 0.0, "epochs": 1}
    asked = train_substitute(oracle, model, x, **options)
    for augmentation, side in enumerate([1, 1, -1, -1]):  # the sign flips every two
        old = asked.images[: 10 * 2**augmentation].clone().requires_grad_()
        labels = asked.labels[: len(old)]
        own = model(old)[torch.arange(len(old)), labels].sum()
        sign = torch.autograd.grad(own, old)[0].sign()
        new = asked.images[len(old) : 2 * len(old)]
        assert torch.allclose(new, (old + side * 0.05 * sign).clamp(0, 1).detach(), atol=1e-6)


@pytest.mark.parametrize("wrong", [10, -100])
def test_answers_of_an_oracle_that_the_substitute_can_not_give_are_named(wrong, digits):
    oracle = lambda images: torch.full((len(images),), wrong)  # noqa: E731
    with pytest.raises(ValueError, match=rf"oracle\(images\) is from {wrong} .* from 0 to 9"):
        train_substitute(oracle, substitute_network(), digits[0][:10], augmentations=1)


def test_reservoir_sampling_bounds_the_queries(oracle, digits):
    asked = train_substitute(
        oracle, substitute_network(), digits[0][:50], augmentations=5, reservoir=(2, 30), epochs=1
    )
    assert len(asked.images) == oracle.asked == 50 * 4 + 3 * 30


def test_the_grid_records_each_pair_once_with_its_controls(monkeypatch, tmp_path):
    """MNIST is not at hand everywhere: its digits are scikit-learn's here."""
    few = {"seeds": 60, "augmentations": 2, "reservoir": (1, 50), "every": 3}
    for name, value in {
        "_mnist": lambda split: load("digits", split=split, size=28),
        "SEEDS": range(2),
        "SERVERS": {"MLP": ("MLP", 150)},
        "PAIRS": [("MLP", "MLP")],
        "SETTINGS": substitutes.SETTINGS | few,
    }.items():
        monkeypatch.setattr(substitutes, name, value)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    substitutes._served.cache_clear()
    asked, attacked = [], []
    train, step = substitutes.train_substitute, substitutes.fgsm

    def training(oracle, network, seeds, **options):
        asked.append(seeds)
        return train(oracle, network, seeds, **options)

    def attacking(network, x, *rest):
        attacked.append(x)
        return step(network, x, *rest)

    monkeypatch.setattr(substitutes, "train_substitute", training)
    monkeypatch.setattr(substitutes, "fgsm", attacking)
    substitutes.record_substitutes()
    assert torch.cdist(asked[0].flatten(1), attacked[0].flatten(1)).min() > 0  # none is a seed
    row = recorded.run(substitutes.RECORD)["MLP | MLP"]
    measured = row["measured"]
    assert row["labels"] == [60, 120, 170] and row["seeds"] == [0, 1]
    assert [course[-1] for course in row["course"]] == measured["FGSM, ε = 0.3"]
    assert all(len(course) == 3 for course in row["course"])
    assert min(measured["server right"]) > 0.8 and min(measured["agreement"]) > 0.6
    for attack in ("FGSM", "momentum", "noise"):
        by_size = [measured[f"{attack}, ε = {epsilon}"] for epsilon in substitutes.EPSILONS]
        assert sum(by_size[0]) < sum(by_size[-1])
    for attack in ("FGSM", "momentum"):
        both = zip(measured[f"{attack}, ε = 0.3"], measured["noise, ε = 0.3"], strict=True)
        assert all(fooled > by_noise + 0.2 for fooled, by_noise in both)
    assert substitutes.steal("MLP", "MLP", 0)["measured"]["agreement"] == measured["agreement"][0]
    monkeypatch.setattr(substitutes, "steal", None)
    substitutes.record_substitutes()  # the pair is there


@pytest.mark.parametrize("kernel", [2, 5])
def test_a_convolutional_network_takes_digits(kernel):
    made = substitutes.convolutional(kernel, 9, channels=(3, 4))
    assert made(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_square_stays_in_the_ball_counts_its_queries_and_beats_noise(network, digits):
    x, y = digits[0][:60], digits[1][:60]
    counts = torch.zeros(1)

    def scores(images):
        counts.add_(len(images))
        return predict_proba(network, images)

    generator = torch.Generator().manual_seed(0)
    found = square(scores, x, y, 0.2, queries=300, generator=generator)
    assert (found.images - x).abs().max() <= 0.2 + 1e-6
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert found.queries.sum() == counts
    assert found.queries.max() <= 300
    fooled = predict_proba(network, found.images).argmax(1) != y
    coin = torch.randn(x.shape, generator=generator).sign()
    by_noise = predict_proba(network, (x + 0.2 * coin).clamp(0, 1)).argmax(1) != y
    assert fooled.float().mean() > by_noise.float().mean() + 0.3
    assert (found.queries[~fooled] == 300).all()
    more = square(scores, x, y, 0.2, queries=600, generator=torch.Generator().manual_seed(0))
    assert (predict_proba(network, more.images).argmax(1) != y).sum() >= fooled.sum() - 1


def test_square_goes_on_at_a_tie_that_is_no_mistake():
    """A network of few bits ties often; of two equal logits the first is the answer."""
    torch.manual_seed(1)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def scores(images):
        return (smooth(images) * 4).round() / 4

    x = torch.rand(200, 1, 8, 8)
    y = scores(x).argmax(1)
    found = square(scores, x, y, 0.1, queries=50, generator=torch.Generator().manual_seed(0))
    wrong = scores(found.images).argmax(1) != y
    assert wrong.any() and (found.queries[~wrong] == 50).all()
    assert (found.queries[wrong] < 50).any()


def test_hop_skip_jump_needs_labels_only_and_gets_nearer_with_queries(network, oracle, digits):
    x, y = digits[0][:8], predict_proba(network, digits[0][:8]).argmax(1)
    start = torch.stack([digits[0][digits[1] == (label + 1) % 10][0] for label in y])
    start_wrong = predict_proba(network, start).argmax(1) != y
    x, y, start = x[start_wrong], y[start_wrong], start[start_wrong]
    distances = [(start - x).flatten(1).norm(dim=1)]
    for queries in (100, 1500):
        oracle.asked = 0
        generator = torch.Generator().manual_seed(0)
        found = hop_skip_jump(oracle, x, y, start, queries=queries, generator=generator)
        assert (predict_proba(network, found.images).argmax(1) != y).all()
        assert found.queries.sum() == oracle.asked
        assert found.queries.max() <= queries
        distances.append((found.images - x).flatten(1).norm(dim=1))
    assert (distances[1] <= distances[0]).all()
    assert distances[2].mean() < 0.7 * distances[1].mean()


def test_the_normal_is_that_of_equation_16():
    noise = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    fools = torch.tensor([True, True, True, False])  # mean sign 1/2: weights ½, ½, ½, −3/2
    assert torch.allclose(_normal(fools, noise), torch.tensor([0.0, 1.0]), atol=1e-6)
    weights = torch.tensor([0.5, 0.5, -1.5, 0.5])
    fools = torch.tensor([True, True, False, True])
    expected = (weights[:, None] * noise).sum(0)
    assert torch.allclose(_normal(fools, noise), expected / expected.norm(), atol=1e-6)
    skewed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # where the mean makes a difference
    found = _normal(torch.tensor([True, True, False]), skewed)
    assert torch.allclose(found, torch.tensor([4 / 3, -4 / 3]) / (4 / 3 * 2**0.5), atol=1e-6)
    sure = _normal(torch.ones(4, dtype=torch.bool), noise + 1)
    assert torch.allclose(sure, torch.full((2,), 0.5**0.5))


def test_hop_skip_jump_steps_shorter_and_looks_at_more_neighbours_each_time():
    calls = []

    def halfspace(images):
        calls.append(images.clone())
        return (images.flatten(1).mean(1) > 0.6).long()

    x, y = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    start = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.75
    hop_skip_jump(halfspace, x, y, start, queries=2000, generator=torch.Generator().manual_seed(0))
    at = [i for i, images in enumerate(calls) if len(images) > 1]
    assert [len(calls[i]) for i in at[:4]] == [100, 141, 173, 200]
    for step, i in enumerate(at[:4], start=1):
        point, ahead = calls[i].mean(0), calls[i + 1][0]
        distance = (point - x[0]).norm()
        length = (ahead - point).norm().item()
        assert length == pytest.approx(distance.item() / step**0.5, rel=0.15)


def broken_scores(images):
    return torch.full((len(images), 10), float("nan"))


def test_answers_that_are_none_are_refused(network, digits):
    x, y = digits[0][:4], digits[1][:4]
    with pytest.raises(ValueError, match="scores is returning NaN"):
        square(broken_scores, x, y, 0.1, queries=50)
    with pytest.raises(ValueError, match="scores is returning one logit"):
        square(lambda images: torch.ones(len(images), 1), x, y, 0.1)
    with pytest.raises(ValueError, match=r"oracle\(images\) is \(4, 1\) torch.int64"):
        hop_skip_jump(lambda images: torch.ones(len(images), 1).long(), x, y, x)
    with pytest.raises(ValueError, match=r"oracle\(images\) is \(4, 10\) torch.float32"):
        train_substitute(lambda images: torch.rand(len(images), 10), substitute_network(), x)
    with pytest.raises(ValueError, match="y is from 0 to 12"):
        square(lambda z: predict_proba(network, z), x, torch.tensor([0, 1, 2, 12]), 0.1)


def test_refusals(network, oracle, digits):
    x, y = digits[0][:4], predict_proba(network, digits[0][:4]).argmax(1)
    with pytest.raises(ValueError, match="start is labelled"):
        hop_skip_jump(oracle, x, y, x)
    with pytest.raises(ValueError, match=r"start is \(2, 1, 8, 8\)"):
        hop_skip_jump(oracle, x, y, x[:2])
    with pytest.raises(ValueError, match="queries is 0"):
        square(lambda z: predict_proba(network, z), x, y, 0.1, queries=0)
    with pytest.raises(ValueError, match=r"x is \(4, 64\)"):
        square(lambda z: predict_proba(network, z), x.flatten(1), y, 0.1)
    with pytest.raises(ValueError, match="epochs is 0"):
        train_substitute(oracle, substitute_network(), x, epochs=0)
    with pytest.raises(ValueError, match="reservoir is 0"):
        train_substitute(oracle, substitute_network(), x, reservoir=(1, 0))
