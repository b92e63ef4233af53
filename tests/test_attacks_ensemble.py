"""The ensemble of attacks: its parts, and its agreement with public implementations."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from minimax import recorded
from minimax.attacks import ensemble, pgd
from minimax.attacks.black_box import hop_skip_jump, square
from minimax.attacks.ensemble import Ensemble, apgd, auto_attack, dlr, fab
from minimax.data import load
from minimax.defenses import adversarial_training
from minimax.evaluation import accuracy, predict_proba
from minimax.game import minibatches, play
from minimax.networks import mlp, strided_network

EPSILON = 0.15


@pytest.fixture(scope="module")
def digits():
    return load("digits", split="test", size=28)


@pytest.fixture(scope="module")
def network():
    """A network that is robust to a point, so that attacks differ."""
    torch.manual_seed(0)
    train = load("digits", size=28)
    network = strided_network()
    player = adversarial_training(network, 0.1, steps=3, random_start=True)
    play([player], minibatches(train.x, train.y, size=100), rounds=250)
    return network.eval()


def test_dlr_is_the_papers_and_knows_no_scale():
    logits, y = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]]), torch.tensor([0])
    target = torch.tensor([2])
    assert dlr(logits, y, target).item() == pytest.approx(-(4 - 3) / (4 - (2 + 1) / 2))
    assert dlr(100 * logits, y, target).item() == pytest.approx(dlr(logits, y, target).item())


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_apgd_stays_in_the_ball_and_is_as_strong_as_pgd(network, digits, loss):
    x, y = digits.x[:100], digits.y[:100]
    target = predict_proba(network, x).scatter(1, y[:, None], 0).argmax(1)
    found = apgd(network, x, y, EPSILON, loss=loss, target=target)
    assert (found - x).abs().max() <= EPSILON + 1e-6 and found.min() >= 0 and found.max() <= 1
    by_pgd = accuracy(network, pgd(network, x, y, EPSILON, steps=100, until_fooled=True), y)
    assert accuracy(network, found, y) <= by_pgd + 0.05


def test_apgd_needs_no_step_size():
    """On a loss with a ridge, a fixed large step jumps to and fro; halved steps settle."""

    class Ridge(nn.Module):
        def forward(self, x):
            height = -(x[:, :1] - 0.437).abs() * 4
            return torch.cat([-height, height, *[height - 9] * 8], 1)

    x, y = torch.full((1, 2), 0.3), torch.tensor([0])
    found = apgd(Ridge(), x, y, 0.2, steps=100)
    assert found[0, 0].item() == pytest.approx(0.437, abs=5e-3)


def written_out(model, x, y, epsilon, steps):
    """Croce and Hein (2020), algorithm 1, for one image that is never misclassified."""

    def look(point):
        point = point.detach().requires_grad_()
        loss = cross_entropy(model(point), y)
        return loss.item(), torch.autograd.grad(loss, point)[0].sign()

    def near(point):
        return (x + (point - x).clamp(-epsilon, epsilon)).clamp(0, 1)

    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checks = [math.ceil(share * steps) for share in shares]
    points, before, size, halved_last = [x], x, 2 * epsilon, False
    values, signs = ([one] for one in look(x))
    best, best_last, rises, last = 0, values[0], 0, 0
    for k in range(steps):
        ahead = near(points[-1] + size * signs[-1])
        if k > 0:
            move = 0.75 * (ahead - points[-1]) + 0.25 * (points[-1] - before)
            ahead = near(points[-1] + move)
        before = points[-1]
        value, sign = look(ahead)
        rises += value > values[-1]
        points.append(ahead), values.append(value), signs.append(sign)
        best = max(range(len(values)), key=lambda i: (values[i], -i))
        if k + 1 in checks[1:]:
            few = rises < 0.75 * (k + 1 - last)
            stuck = not halved_last and best_last >= values[best]
            halved_last = few or stuck
            best_last, rises, last = values[best], 0, k + 1
            if halved_last:
                size /= 2
                points.append(points[best]), values.append(value), signs.append(signs[best])
    return points[best]


@pytest.mark.parametrize("seed", range(4))
def test_apgd_is_the_papers_algorithm_written_out(seed, monkeypatch):
    torch.manual_seed(seed)
    body = mlp(12, 24, 24, 3, activation=nn.Tanh).double()
    for layer in body[::2]:
        nn.init.normal_(layer.weight, std=1.0)  # wavy, so that steps have to shrink

    class Sure(nn.Module):
        def forward(self, x):
            return 0.6 * body(x) + torch.tensor([14.0, 0.0, 0.0])  # never wrong, yet not sure

    x, y = torch.rand(1, 12).double(), torch.tensor([0])
    monkeypatch.setattr(ensemble.BALLS["linf"], "sample", staticmethod(lambda x, r, g: x))
    found = apgd(Sure(), x, y, 0.3, steps=60)
    assert (found - written_out(Sure(), x, y, 0.3, 60)).abs().max() < 1e-9


@pytest.mark.parametrize("classes", [2, 3])
def test_below_four_classes_the_ensemble_leaves_dlr_out_and_says_so(classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    x = torch.rand(6, 1, 8, 8)
    y = predict_proba(model, x).argmax(1)
    found = auto_attack(model, x, y, 1e-3, steps=5, queries=20)
    assert list(found.after.values()) == [1.0] * 5
    assert found.left_out == ["steps: 5 of 100", "queries: 20 of 5000",
                              "DLR: fewer than four classes"]  # fmt: skip
    assert "APGD, targeted DLR: left out, fewer than four classes" in found.after
    with pytest.raises(ValueError, match=f"model is returning {classes} classes"):
        apgd(model, x, y, 0.1, loss="dlr", target=(y + 1) % classes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"targets": -1}, "targets is -1"),
        ({"queries": -1}, "queries is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_the_ensemble_refuses_before_any_work(options, named):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    x = torch.rand(3, 1, 2, 2)
    wrong = (predict_proba(model, x).argmax(1) + 1) % 4  # nothing is left to attack
    with pytest.raises(ValueError, match=named):
        auto_attack(model, x, wrong, **({"epsilon": 0.1} | options))


def test_ensemble_reports_falling_accuracies_and_its_images_bear_them_out(network, digits):
    x, y = digits.x[:120], digits.y[:120]
    found = auto_attack(network, x, y, EPSILON, steps=20, targets=2, queries=50)
    values = list(found.after.values())
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(accuracy(network, x, y))
    assert values[-1] == pytest.approx(accuracy(network, found.images, y))
    assert (found.images - x).abs().max() <= EPSILON + 1e-6


def test_with_epsilon_zero_nothing_falls(network, digits):
    x, y = digits.x[:50], digits.y[:50]
    found = auto_attack(network, x, y, 0.0, steps=3, targets=1, queries=3)
    assert list(found.after.values()) == pytest.approx([accuracy(network, x, y)] * 5)


def test_agrees_with_the_public_ensemble(network, digits):
    """Within one point of robust accuracy on the same network and images."""
    public = pytest.importorskip("pyautoattack")
    x, y = digits.x[:200], digits.y[:200]
    ours = auto_attack(network, x, y, EPSILON, queries=500).after["Square"]
    attack = public.AutoAttack(network, eps=EPSILON, seed=0, version="custom",
                               attacks=["apgd-ce", "apgd-t", "fab-t"])  # fmt: skip
    theirs = accuracy(network, attack.run_standard_evaluation(x, y, batch_size=len(x))[0], y)
    assert 0.1 < theirs < 0.9 and abs(ours - theirs) <= 0.01


def written_out_fab(model, x, y, target, steps):
    """Croce and Hein (2020), algorithm 1, for one image of a model without a batch."""

    def to_plane(z, w, lead):
        """Bisect how far all pixels go until the plane is reached, or no pixel can go on."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            moved = (z - middle * math.copysign(1, lead) * w.sign()).clamp(0, 1)
            reached = (lead + (w * (moved - z)).sum()) * lead <= 0
            low, high = (low, middle) if reached else (middle, high)
        return (z - high * math.copysign(1, lead) * w.sign()).clamp(0, 1) - z

    best, distance, z = x, math.inf, x
    for _ in range(steps):
        z = z.detach().requires_grad_()
        logits = model(z[None])[0]
        lead = logits[y] - logits[target]
        (w,) = torch.autograd.grad(lead, z)
        z, lead = z.detach(), lead.item()
        one, two = to_plane(z, w, lead), to_plane(x, w, lead + (w * (x - z)).sum().item())
        a, b = one.abs().max().item(), two.abs().max().item()
        share = min(a / (a + b), 0.1)
        z = ((1 - share) * (z + 1.05 * one) + share * (x + 1.05 * two)).clamp(0, 1)
        if model(z[None])[0].argmax() != y:
            if (z - x).abs().max() < distance:
                best, distance = z, (z - x).abs().max()
            z = 0.1 * x + 0.9 * z
    return best


@pytest.mark.parametrize("seed", range(4))
def test_fab_is_the_papers_algorithm_written_out(seed):
    torch.manual_seed(seed)
    model = mlp(12, 24, 24, 5, activation=nn.Tanh).double()
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.7)  # crooked, so that a plane is not the border
    x = torch.rand(3, 12).double().round(decimals=1)  # some pixels have no room on one side
    y = model(x).argmax(1)
    target = (y + 1) % 5
    found = fab(model, x, y, target, steps=25)
    by_hand = torch.stack(
        [written_out_fab(model, *one, 25) for one in zip(x, y, target, strict=True)]
    )
    assert (found - by_hand).abs().max() < 1e-6 and (found != x).any()


def test_fab_finds_the_nearest_border_of_a_linear_classifier():
    """The smallest ε at which all pixels together, those with room, reach the border."""
    torch.manual_seed(0)
    model, x = mlp(30, 2).double(), torch.rand(20, 30).double()
    y = model(x).argmax(1)
    w, gap = model[0].weight.detach(), model(x).detach()
    w, gap = w[y] - w[1 - y], (gap.gather(1, y[:, None]) - gap.gather(1, 1 - y[:, None]))[:, 0]
    low, high = torch.zeros(20).double(), torch.ones(20).double()
    for _ in range(60):
        middle = (low + high) / 2
        moved = (x - middle[:, None] * w.sign()).clamp(0, 1)
        reached = (w * (x - moved)).sum(1) >= gap
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    found = fab(model, x, y, 1 - y, steps=100)
    size = (found - x).abs().amax(1)
    assert (model(found).argmax(1) != y).all()
    assert (size >= high - 1e-9).all() and (size <= 1.02 * high + 1e-9).all()


def test_the_ensemble_takes_of_fab_what_lies_in_the_ball(network, digits, monkeypatch):
    x, y = digits.x[:100], digits.y[:100]
    weak = {"steps": 10, "queries": 0, "targets": 9}
    after = auto_attack(network, x, y, EPSILON, **weak)
    with_fab = after.after["FAB, targeted"]
    assert after.left_out == ["steps: 10 of 100", "queries: 0 of 5000"]
    monkeypatch.setattr(ensemble, "apgd", lambda model, x, *args, **options: x)
    alone = auto_attack(network, x, y, EPSILON, **weak)
    assert with_fab <= alone.after["FAB, targeted"] < alone.after["APGD, targeted DLR"]
    wrong = predict_proba(network, x).scatter(1, y[:, None], -1).argsort(1, descending=True)
    least = torch.full((100,), torch.inf)
    for k in range(9):
        size = (fab(network, x, y, wrong[:, k], steps=10) - x).flatten(1).abs().amax(1)
        least = torch.where((size > 0) & (size < least), size, least)
    right = predict_proba(network, x).argmax(1) == y
    left = (right & (least > EPSILON)).float().mean().item()
    assert alone.after["FAB, targeted"] == pytest.approx(left, abs=0.02)


def test_pgd_leaves_the_robust_accuracy_that_foolbox_leaves(network, digits):
    foolbox = pytest.importorskip("foolbox")
    x, y = digits.x, digits.y
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.05, steps=60, random_start=False)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    theirs = 1 - attack(model, x, y, epsilons=EPSILON)[2].float().mean().item()
    # both from the image itself: each would draw its own start, to which the odd image falls alone
    moved = pgd(network, x, y, EPSILON, steps=60, step_size=0.05 * EPSILON, random_start=False)
    ours = accuracy(network, moved, y)
    assert 0.1 < theirs < 0.9 and abs(ours - theirs) <= 0.01


def test_square_is_as_strong_as_the_public_one(network, digits):
    """A little stronger: the public one draws no square that touches the last row or column."""
    public = pytest.importorskip("pyautoattack")
    x, y = digits.x, digits.y
    torch.manual_seed(0)
    found = square(lambda images: predict_proba(network, images), x, y, EPSILON, queries=300).images
    attack = public.AutoAttack(network, eps=EPSILON, seed=0, attacks=["square"], version="custom")
    attack.square.n_queries = 300
    theirs = accuracy(network, attack.run_standard_evaluation(x, y, batch_size=len(x))[0], y)
    ours = accuracy(network, found, y)
    assert 0.1 < theirs < 0.9 and theirs - 0.1 < ours <= theirs + 0.02


def test_hop_skip_jump_comes_as_near_as_foolboxs(network, digits):
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    right = (predict_proba(network, digits.x).argmax(1) == digits.y).nonzero()[:6, 0]
    x, y = digits.x[right], digits.y[right]
    start = torch.stack([digits.x[right][y != label][0] for label in y])

    def distance(images):
        return (images - x).flatten(1).norm(dim=1).median().item()

    ours = hop_skip_jump(lambda images: predict_proba(network, images).argmax(1), x, y, start,
                         queries=1500)  # fmt: skip
    attack = foolbox.attacks.HopSkipJumpAttack(steps=9, initial_gradient_eval_steps=50)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    theirs = attack(model, x, y, epsilons=None, starting_points=start)[1]
    assert distance(ours.images) < 1.15 * distance(theirs)


@pytest.mark.data
def test_the_recorded_network_is_as_robust_as_recorded():
    network = strided_network()
    network.load_state_dict(recorded.tensors("defenses/robust_mnist"))
    test = load("mnist", split="test")
    x, y = test.x[:500], test.y[:500]
    under = accuracy(
        network, pgd(network, x, y, 0.3, steps=100, step_size=0.01, until_fooled=True), y
    )
    record = recorded.run("defenses/robust_mnist")
    assert record["measured"]["PGD-100, restarts: 10"][0] >= 0.88
    assert abs(under - record["measured"]["PGD-100, restarts: 1"][0]) < 0.04


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"loss": "dlr"}, "target is None"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"loss": "dlr", "target": torch.zeros(4)}, "target is .*float32"),
    ],
)
def test_bad_arguments_are_named(options, named):
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=named):
        apgd(mlp(6, 4), x, y, 0.1, **options)


def test_a_label_outside_is_named():
    model = nn.Sequential(nn.Flatten(), mlp(6, 4))
    with pytest.raises(ValueError, match="from 0 to 3"):
        auto_attack(model, torch.rand(4, 1, 2, 3), torch.full((4,), 7), 0.1)


def test_cross_entropy_is_what_apgd_raises(network, digits):
    x, y = digits.x[:60], digits.y[:60]
    found = apgd(network, x, y, 0.02, steps=30)
    with torch.no_grad():
        before, after = (cross_entropy(network(images), y) for images in (x, found))
    assert after > before


def test_a_target_that_is_no_other_class_is_named(network, digits):
    x, y = digits.x[:4], digits.y[:4]
    target = (y + 1) % 10
    target[2] = y[2]
    with pytest.raises(ValueError, match="target is the label itself at image 2"):
        apgd(network, x, y, 0.1, loss="dlr", target=target)
    with pytest.raises(ValueError, match="target is the label itself at image 2"):
        fab(network, x, y, target)
    with pytest.raises(ValueError, match="target is from 99 to 99"):
        fab(network, x, y, torch.full((4,), 99))
    with pytest.raises(ValueError, match="target is from 99 to 99"):
        apgd(network, x, y, 0.1, loss="dlr", target=torch.full((4,), 99))


def test_flat_images_are_attacked_where_no_squares_are_asked_for():
    torch.manual_seed(0)
    model, x = mlp(6, 5), torch.rand(8, 6)
    y = predict_proba(model, x).argmax(1)
    found = auto_attack(model, x, y, 0.3, steps=5, queries=0)
    assert found.after["Square"] < 1
    with pytest.raises(ValueError, match=r"x is of shape \(8, 6\)"):
        auto_attack(model, x, y, 0.3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_ensemble_takes_networks_in_half_precision(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(kind)
    x = torch.rand(6, 1, 8, 8).to(kind)
    y = model(x).argmax(1)
    found = auto_attack(model, x, y, 0.25, steps=3, queries=5)
    assert found.images.dtype == fab(model, x, y, (y + 1) % 10, steps=2).dtype == kind
    assert (found.images - x).abs().max() <= 0.251


def test_several_radii_are_attacked_one_after_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x, radii = torch.rand(6, 1, 4, 4), [0.02, 0.1]
    y = model(x).argmax(1)
    seeded = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    for attack in (apgd, auto_attack, partial(square, model, queries=20)):
        given = (x, y) if isinstance(attack, partial) else (model, x, y)
        both = attack(*given, radii, generator=seeded())
        generator = seeded()
        alone = [attack(*given, epsilon, generator=generator) for epsilon in radii]
        images = [one if isinstance(one, torch.Tensor) else one.images for one in alone]
        found = both if isinstance(both, torch.Tensor) else both.images
        assert torch.equal(found, torch.stack(images)) and found.shape == (2, *x.shape)
        if isinstance(both, Ensemble):
            assert both.after == [one.after for one in alone]
    with pytest.raises(ValueError, match=r"epsilon is \[\]; it has to be a number or a non-empty"):
        apgd(model, x, y, [])
    with pytest.raises(ValueError, match=r"epsilon is \[0.1\]; it has to be a finite number"):
        apgd(model, x, y, [0.1, [0.1]])
    learned = [torch.tensor(0.1, requires_grad=True), 0.2]
    assert apgd(model, x, y, learned, steps=1).shape == (2, *x.shape)
