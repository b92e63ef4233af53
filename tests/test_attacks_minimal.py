import foolbox
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from minimax.attacks import carlini_wagner, deepfool, jsma, lbfgs
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


# --- DeepFool ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_walks_as_foolbox_does(network, correct, norm):
    x, y = correct
    attack = (
        foolbox.attacks.L2DeepFoolAttack if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack
    )
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    raw, _, success = attack(loss="logits")(model, x, y, epsilons=None)
    ours = deepfool(network, x, y, norm=norm)
    assert success.all() and accuracy(network, ours, y) == 0
    assert torch.allclose(ours, raw, atol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_steps_onto_the_nearest_border_of_a_linear_classifier(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 5)).double()
    x = torch.full((3, 20), 0.5).double()
    x += 0.05 * torch.randn_like(x)
    z, w = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    moved = deepfool(model, x, y, norm=norm)
    far = (w[y][:, None] - w).norm(p=2 if norm == "l2" else 1, dim=2)
    gap = z.gather(1, y[:, None]) - z
    nearest = (gap / far).masked_fill(gap == 0, torch.inf).amin(1)
    walked = (moved - x).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert torch.allclose(walked, 1.02 * (nearest + 1e-4))
    assert (model(moved).argmax(1) != y).all()


def test_deepfool_tries_only_the_likeliest_classes():
    """The first class leads the second by little but along a flat slope, the third by more."""
    model = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.0, -4.0]]))
        model.bias = nn.Parameter(torch.tensor([-0.02, 0.0, 1.9]).double())
    x, y = torch.full((1, 2), 0.5).double(), torch.tensor([0])
    assert (deepfool(model, x, y) - x).abs()[0, 1] > 1e-3  # towards the third
    moved = deepfool(model, x, y, targets=1)  # the second alone
    assert model(moved).argmax(1) == 1 and moved[0, 1] == x[0, 1]


def test_deepfool_leaves_what_is_misread_as_it_is(network, correct):
    x, y = correct
    assert torch.equal(deepfool(network, x, (y + 1) % 10), x)


def test_more_steps_of_deepfool_fool_more(network, correct):
    x, y = correct
    one, many = (accuracy(network, deepfool(network, x, y, steps=n), y) for n in (1, 50))
    assert many == 0 < one


def test_the_size_of_a_batch_changes_nothing_of_deepfool(network, correct):
    x, y = correct
    assert torch.allclose(deepfool(network, x, y), deepfool(network, x, y, batch_size=7), atol=1e-5)


# --- JSMA -------------------------------------------------------------------------------------


def slow_jsma(model, x, target, pixels, outputs=lambda z: z):
    """One image, all pairs one after another, all outputs one after another."""
    x = x.clone()
    for _ in range(pixels // 2):
        if model(x[None]).argmax() == target:
            return x
        J = torch.autograd.functional.jacobian(lambda x: outputs(model(x[None])[0]), x).flatten(1)
        best, most = None, 0.0
        free = [p for p in range(x.numel()) if x.view(-1)[p] < 1]
        for p in free:
            for q in free:
                a = (J[target, p] + J[target, q]).item()
                b = sum((J[k, p] + J[k, q]).item() for k in range(len(J)) if k != target)
                if p < q and a > 0 > b and -a * b > most:
                    best, most = [p, q], -a * b
        if best is None:
            return x
        x.view(-1)[best] = 1
    return x


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_jsma_turns_the_pairs_that_the_formula_names(outputs):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    x = 0.8 * torch.rand(12, 1, 4, 4).double()
    x[:, :, 0] = 1  # these are white already
    target = model(x).argsort(1)[:, -2]
    moved = jsma(model, x, target, pixels=6, outputs=outputs)
    apply = (lambda z: z.softmax(0)) if outputs == "probabilities" else (lambda z: z)
    wanted = torch.stack([slow_jsma(model, *one, 6, apply) for one in zip(x, target, strict=True)])
    reached = predict_proba(model, wanted).argmax(1) == target
    assert reached.any()
    assert torch.equal(moved, torch.where(reached.view(-1, 1, 1, 1), wanted, x))


def test_jsma_turns_few_pixels_and_only_to_white(network, correct):
    x, y = correct
    moved = jsma(network, x, (y + 1) % 10, pixels=20)
    changed = moved != x
    assert accuracy(network, moved, (y + 1) % 10) > 0.5
    assert changed.flatten(1).sum(1).max() <= 20
    assert (moved[changed] == 1).all()


def test_by_probabilities_jsma_finds_nothing_where_they_are_saturated(network, correct):
    x, target = correct[0][:10], (correct[1][:10] + 1) % 10

    class Sure(nn.Module):
        def forward(self, images):
            return 1e4 * network(images)

    assert torch.equal(jsma(Sure(), x, target, pixels=20, outputs="probabilities"), x)
    by_logits = jsma(Sure(), x, target, pixels=20)
    assert torch.equal(by_logits, jsma(network, x, target, pixels=20))
    assert accuracy(network, by_logits, target) > 0


def test_no_pair_of_pixels_counts_two_good_ones_that_are_white():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[4.0, 0.0, -0.1, -0.1], [0.0, 3.0, 1.0, 0.5]]))
    x = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    moved = jsma(model, x, torch.tensor([1]), pixels=4)
    assert torch.equal(moved, torch.tensor([[1.0, 1.0, 1.0, 1.0]]))


@pytest.mark.parametrize("attack", [lbfgs, carlini_wagner, deepfool, jsma])
def test_an_image_that_cannot_be_turned_comes_back_unchanged(attack):
    class Always(nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([0.0, 5.0])

    x, y = torch.rand(2, 1, 4, 4), torch.tensor([1, 1])
    wanted = torch.zeros(2, dtype=torch.long) if attack in (lbfgs, jsma) else y
    options = {lbfgs: {}, jsma: {"pixels": 4}}.get(attack, {"steps": 10})
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
        (deepfool, {"norm": "l1"}, "norm is 'l1'; it has to be one of 'l2', 'linf'"),
        (deepfool, {"steps": 0}, "steps is 0"),
        (deepfool, {"targets": 0}, "targets is 0"),
        (deepfool, {"overshoot": -1}, "overshoot is -1"),
        (deepfool, {"batch_size": 0}, "batch_size is 0"),
        (deepfool, {"y": torch.tensor([99])}, "^y is from 99 to 99"),
        (jsma, {"pixels": 1}, "pixels is 1; it has to be a whole number of at least 2"),
        (jsma, {"outputs": "loss"}, "outputs is 'loss'"),
        (jsma, {"target": torch.tensor([99])}, "^target is from 99 to 99"),
    ],
)
def test_bad_input_gets_one_clear_sentence(network, attack, options, message):
    label = "target" if attack in (lbfgs, jsma) else "y"
    with pytest.raises(ValueError, match=message):
        attack(network, torch.rand(1, 1, 8, 8), **({label: torch.tensor([0])} | options))
