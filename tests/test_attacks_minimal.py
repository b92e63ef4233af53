import foolbox
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from minimax.attacks import carlini_wagner, lbfgs
from minimax.evaluation import accuracy, predict_proba


def size(moved, x):
    return (moved - x).flatten(1).norm(dim=1)


@pytest.fixture(scope="module")
def correct(network, digits):
    x, y = digits
    with torch.no_grad():
        right = network(x).argmax(1) == y
    return x[right][:40], y[right][:40]


@pytest.mark.parametrize("targeted", [False, True])
def test_carlini_wagner_is_as_near_as_foolbox_at_equal_success(network, correct, targeted):
    x, y = correct
    label = (y + 1) % 10 if targeted else y
    criterion = foolbox.criteria.TargetedMisclassification(label) if targeted else y
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=300, stepsize=1e-2, initial_const=1e-2
    )
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    raw, _, success = theirs(model, x, criterion, epsilons=None)
    ours = carlini_wagner(network, x, label, targeted=targeted, search_steps=6, steps=300, c=1e-2)
    reached = accuracy(network, ours, label)
    assert success.all()
    assert reached == (1 if targeted else 0)
    assert ours.min() >= 0 and ours.max() <= 1
    assert size(ours, x).mean() <= 1.05 * size(raw, x).mean()


def test_carlini_wagner_returns_the_nearest_of_all_images_that_fooled():
    torch.manual_seed(0)
    line, x, seen = nn.Linear(8, 2), torch.full((1, 8), 0.5), []
    y = line(x).argmax(1)

    class Watched(nn.Module):
        def forward(self, images):
            logits = line(images)
            if logits.argmax(1) != y:
                seen.append(size(images.detach(), x).item())
            return logits

    found = carlini_wagner(Watched(), x, y, search_steps=4, steps=100, c=1.0, lr=0.1)
    assert size(found, x).item() == pytest.approx(min(seen), abs=1e-6)
    assert min(seen) < 0.9 * seen[-1] or min(seen) < 0.9 * max(seen)


def test_carlini_wagner_succeeds_on_black_and_white_images(network, digits):
    """There tanh is flat: for a while nothing moves, and that is no reason to stop."""
    x = (digits[0][:20] > 0.5).float()
    y = predict_proba(network, x).argmax(1)
    moved = carlini_wagner(network, x, y, search_steps=3, steps=500, c=1.0)
    assert accuracy(network, moved, y) == 0
    assert 0.1 < size(moved, x).median() < 1.2


class Tie(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 2) + 0 * x.sum()


def test_a_tie_is_no_success_of_carlini_and_wagner():
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    assert torch.equal(carlini_wagner(Tie(), x, y, steps=3), x)


def test_carlini_wagner_works_in_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).half()
    x = (torch.rand(4, 1, 4, 4) > 0.5).half()
    y = predict_proba(model, x).argmax(1)
    moved = carlini_wagner(model, x, y, steps=700, search_steps=3, c=1.0)
    assert moved.dtype == torch.float16
    assert (model(moved).argmax(1) != y).all()


def test_confidence_is_a_margin_between_logits(network, correct):
    x, y = correct[0][:10], correct[1][:10]
    moved = carlini_wagner(network, x, y, confidence=3.0, search_steps=5, steps=200, c=1.0)
    with torch.no_grad():
        logits = network(moved)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert (others - own >= 3.0 - 1e-4).all()


def test_lbfgs_reaches_every_target_within_the_box(network, correct):
    x, y = correct[0][:10], correct[1][:10]
    target = (y + 3) % 10
    moved = lbfgs(network, x, target)
    assert accuracy(network, moved, target) == 1
    assert moved.min() >= 0 and moved.max() <= 1
    assert size(moved, x).mean() < 2.5


def test_lbfgs_finds_the_exact_answer_of_a_linear_classifier():
    # Inside the box, the nearest point of the other class lies along the difference of the weights.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).double()
    x = torch.full((1, 20), 0.5).double()
    with torch.no_grad():
        w = model[1].weight[1] - model[1].weight[0]
        margin = (model(x)[:, 1] - model(x)[:, 0]).item()
    target = torch.tensor([int(margin < 0)])
    moved = lbfgs(model, x, target, search_steps=25, steps=200)
    nearest = abs(margin) / w.norm().item()
    assert size(moved, x).item() == pytest.approx(nearest, rel=0.01)


def test_lbfgs_ends_where_the_loss_and_the_distance_balance():
    """There 2c·r + ∇ℓ = 0, with a c that was tried: ``c`` times a power of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).double()
    x = torch.full((1, 20), 0.5).double()
    target = 1 - model(x).argmax(1)
    moved = lbfgs(model, x, target, search_steps=0, steps=200, c=0.01).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(moved), target), moved)
    r = (moved - x).detach()
    c = gradient.norm() / (2 * r.norm())
    assert torch.allclose(2 * c * r, -gradient, atol=1e-4)
    power = (c / 0.01).log2().item()
    assert power == pytest.approx(round(power), abs=0.01)


def test_more_bisections_never_end_farther_away(network, correct):
    x, target = correct[0][:5], (correct[1][:5] + 1) % 10
    sizes = [size(lbfgs(network, x, target, search_steps=n), x).mean() for n in (0, 8)]
    assert sizes[1] <= sizes[0] + 1e-4


@pytest.mark.parametrize("attack", [lbfgs, carlini_wagner])
def test_an_image_that_cannot_be_turned_comes_back_unchanged(attack):
    class Always(nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([0.0, 5.0])

    x, y = torch.rand(2, 1, 4, 4), torch.tensor([1, 1])
    wanted = torch.zeros(2, dtype=torch.long) if attack is lbfgs else y
    options = {} if attack is lbfgs else {"steps": 10}
    assert torch.equal(attack(Always(), x, wanted, **options), x)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (lbfgs, {"c": 0}, "c is 0"),
        (lbfgs, {"steps": 0}, "steps is 0"),
        (lbfgs, {"search_steps": -1}, "search_steps is -1"),
        (lbfgs, {"target": torch.tensor([99])}, "^target is from 99 to 99"),
        (lbfgs, {"target": torch.tensor([1.0])}, r"^target is \(1,\) torch.float32"),
        (carlini_wagner, {"confidence": -1}, "confidence is -1"),
        (carlini_wagner, {"steps": 0}, "steps is 0"),
        (carlini_wagner, {"lr": 0}, "lr is 0"),
        (carlini_wagner, {"c": float("nan")}, "c is nan"),
    ],
)
def test_bad_input_gets_one_clear_sentence(network, attack, options, message):
    label = "target" if attack is lbfgs else "y"
    with pytest.raises(ValueError, match=message):
        attack(network, torch.rand(1, 1, 8, 8), **({label: torch.tensor([0])} | options))
