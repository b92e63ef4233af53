from typing import ClassVar

import foolbox
import numpy as np
import pytest
import torch
from torch import nn

from minimax.attacks import fgsm, input_gradient, pgd
from minimax.evaluation import accuracy


@pytest.fixture(scope="module")
def batch(digits):
    return digits[0][:100], digits[1][:100]


def theirs(network):
    return foolbox.PyTorchModel(network, bounds=(0, 1))


def from_start(attack_class, start):
    """Foolbox's attack, begun where we begin ours."""
    import eagerpy

    class FromStart(attack_class):
        def get_random_start(self, x0, epsilon):
            return eagerpy.astensor(start)

    return FromStart


def test_fgsm_equals_foolbox(network, batch):
    x, y = batch
    raw, _, _ = foolbox.attacks.FGSM()(theirs(network), x, y, epsilons=[0.05, 0.1])
    ours = fgsm(network, x, y, [0.05, 0.1])
    assert (torch.stack(raw) - ours).abs().max() <= 1e-6


def test_fgsm_goes_up_the_loss_and_down_towards_a_target(network, batch):
    x, y = batch
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(network(fgsm(network, x, y, 0.05)), y) > loss(network(x), y) + 0.1
        wanted = (y + 1) % 10
        towards = fgsm(network, x, wanted, 0.05, targeted=True)
        assert loss(network(towards), wanted) < loss(network(x), wanted) - 0.1


def line(weights, classes=2):
    """A linear model of the pixels whose first logit is their weighted sum."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), classes))
    nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    with torch.no_grad():
        model[1].weight[0] = torch.tensor(weights)
    return model


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_the_default_step_reaches_the_border_of_the_ball(steps):
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    moved = pgd(line([1.0, -1.0]), x, y, 0.1, steps=steps, random_start=False)
    assert torch.allclose(moved - x, torch.tensor([-0.1, 0.1]), atol=1e-6)


def test_the_default_step_is_two_and_a_half_times_the_share_of_the_radius():
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    seen = []
    model = line([1.0, -1.0])
    model.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().clone()))
    pgd(model, x, y, 0.1, steps=10, random_start=False)
    assert torch.allclose(seen[1] - x, torch.tensor([-0.025, 0.025]), atol=1e-6)


def test_a_start_outside_the_ball_is_projected_even_if_it_fools_already():
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    model = line([1.0, 1.0])
    model[1].bias.data[1] = 0.9
    start = torch.zeros_like(x)  # class 1, as is the border of the ball
    moved = pgd(model, x, y, 0.1, start=start, steps=3, until_fooled=True)
    assert (moved - x).abs().max() == pytest.approx(0.1)


def test_towards_a_target_an_image_is_done_once_it_is_there(network, batch):
    x, y = batch
    wanted = (y + 1) % 10
    kw = {"steps": 40, "random_start": False, "targeted": True}
    full, early = (pgd(network, x, wanted, 0.2, until_fooled=e, **kw) for e in (False, True))
    there = accuracy(network, full, wanted)
    assert there > 0.3
    assert accuracy(network, early, wanted) >= there


def test_of_several_restarts_success_counts_more_than_the_loss():
    class Steps(nn.Module):
        """Right of a half: the true class at a high loss. Left of it: wrong at a low one."""

        def forward(self, x):
            left = (x.flatten(1)[:, :1] < 0.5).float()
            logits = torch.tensor([[0.1, 0.0, 0.0]]) * (1 - left)
            return logits + torch.tensor([[2.0, 2.1, -9.0]]) * left + 0 * x.sum()

    x, y = torch.full((20, 1, 1, 1), 0.5), torch.zeros(20, dtype=torch.long)
    assert nn.functional.cross_entropy(Steps()(x), y) > nn.functional.cross_entropy(
        Steps()(x - 0.1), y
    )
    generator = torch.Generator().manual_seed(0)
    moved = pgd(Steps(), x, y, 0.2, steps=1, restarts=20, generator=generator)
    assert accuracy(Steps(), moved, y) == 0


def test_random_starts_fill_the_linf_ball_on_both_sides():
    x, y = torch.full((2000, 1, 1, 1), 0.5), torch.zeros(2000, dtype=torch.long)
    delta = pgd(line([0.0]), x, y, 0.1, steps=1) - x
    assert delta.min() < -0.099 and delta.max() > 0.099 and delta.mean().abs() < 0.005


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_linf_equals_foolbox_from_the_same_random_start(network, batch, targeted):
    x, y = batch
    start = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    attack = from_start(foolbox.attacks.LinfPGD, start)(abs_stepsize=0.01, steps=40)
    wanted = (y + 1) % 10
    criterion = foolbox.criteria.TargetedMisclassification(wanted) if targeted else y
    raw, _, _ = attack(theirs(network), x, criterion, epsilons=0.1)
    label = wanted if targeted else y
    ours = pgd(network, x, label, 0.1, steps=40, step_size=0.01, start=start, targeted=targeted)
    assert (raw - ours).abs().max() <= 1e-6


def test_pgd_l2_equals_foolbox_from_the_same_random_start(network, batch):
    # In double precision: in single, a rounding of 1e-7 can grow where a path meets a ReLU's kink.
    x, y = batch[0].double(), batch[1]
    noise = torch.randn_like(x)
    start = (x + 0.5 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    attack = from_start(foolbox.attacks.L2PGD, start)(abs_stepsize=0.05, steps=40)
    try:
        raw, _, _ = attack(theirs(network.double()), x, y, epsilons=1.0)
        ours = pgd(network, x, y, 1.0, norm="l2", steps=40, step_size=0.05, start=start)
    finally:
        network.float()
    assert (raw - ours).abs().max() <= 1e-6


def test_momentum_is_that_of_the_paper(network, batch):
    # Foolbox accumulates the signs of the gradients; Dong et al. the gradients over their L1 norm.
    x, y = batch
    point, g = x, torch.zeros_like(x)
    for _ in range(10):
        gradient = input_gradient(network, point, y)
        g = 0.9 * g + gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        point = (x + (point + 0.01 * g.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    ours = pgd(network, x, y, 0.1, steps=10, step_size=0.01, momentum=0.9, random_start=False)
    assert (point - ours).abs().max() <= 1e-6


def test_only_the_gradient_of_the_input_is_computed(batch):
    x, y = batch

    class Linear(torch.autograd.Function):
        asked: ClassVar = []

        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, grad):
            Linear.asked.append(tuple(ctx.needs_input_grad))
            x, w = ctx.saved_tensors
            return grad @ w.T, x.T @ grad if ctx.needs_input_grad[1] else None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(64, 10))

        def forward(self, x):
            return Linear.apply(x.flatten(1), self.w)

    net = Net()
    pgd(net, x, y, 0.1, steps=3)
    assert Linear.asked == [(True, False)] * 3
    assert net.w.grad is None


def test_mode_and_flags_come_back_even_after_an_error(network, batch):
    x, y = batch
    model = nn.Sequential(network, nn.BatchNorm1d(10))
    model.train()
    model[0].eval()
    model[1].weight.requires_grad_(False)
    before = [(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    mean = model[1].running_mean.clone()
    pgd(model, x, y, 0.1, steps=2)
    with pytest.raises(ValueError, match="y is from 0 to 99"):
        fgsm(model, x, torch.arange(100), 0.1)
    after = [(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    assert after == before
    assert torch.equal(model[1].running_mean, mean)  # evaluation mode: no statistics were touched


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("until_fooled", [False, True])
def test_results_stay_in_the_ball_and_the_box(network, batch, norm, until_fooled):
    x, y = batch
    epsilons = [0.0, 0.05, 0.3]
    adversarial = pgd(
        network, x, y, epsilons, norm=norm, steps=7, restarts=2, until_fooled=until_fooled
    )
    assert adversarial.shape == (3, *x.shape)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    for images, epsilon in zip(adversarial, epsilons, strict=True):
        delta = (images - x).flatten(1)
        size = delta.abs().amax() if norm == "linf" else delta.norm(dim=1).max()
        assert size <= epsilon + 1e-6
    assert torch.equal(adversarial[0], x)


def test_many_epsilons_in_one_call_equal_one_by_one(network, batch):
    x, y = batch
    for attack in (fgsm, lambda *a: pgd(*a, steps=5, random_start=False)):
        together = attack(network, x, y, [0.02, 0.1])
        assert (together[1] - attack(network, x, y, 0.1)).abs().max() <= 1e-6


def test_more_steps_never_do_worse_from_the_same_start(network, batch):
    x, y = batch
    start = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    kw = {"step_size": 0.01, "start": start, "until_fooled": True}
    robust = [accuracy(network, pgd(network, x, y, 0.1, steps=n, **kw), y) for n in (1, 3, 9, 27)]
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] < robust[0]


def test_until_fooled_does_less_work_at_equal_robust_accuracy(network, batch):
    x, y = batch
    seen = []
    handle = network.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    try:
        kw = {"steps": 40, "step_size": 0.01, "random_start": False}
        full = pgd(network, x, y, 0.1, **kw)
        work, seen[:] = sum(seen), []
        early = pgd(network, x, y, 0.1, until_fooled=True, **kw)
        assert sum(seen) < work
    finally:
        handle.remove()
    assert accuracy(network, early, y) <= accuracy(network, full, y)
    assert seen[-1] < len(x)


def test_restarts_keep_the_best(network, batch):
    x, y = batch
    loss = nn.CrossEntropyLoss(reduction="none")

    def attacked(restarts):
        generator = torch.Generator().manual_seed(5)
        images = pgd(network, x, y, 0.04, steps=3, restarts=restarts, generator=generator)
        with torch.no_grad():
            logits = network(images)
        return loss(logits, y), logits.argmax(1) != y

    (one, fooled_one), (five, fooled_five) = attacked(1), attacked(5)
    assert (fooled_five | ~fooled_one).all()
    same = fooled_one == fooled_five
    assert (five[same & ~fooled_one] >= one[same & ~fooled_one] - 1e-6).all()
    assert fooled_five.sum() > fooled_one.sum() or five.sum() > one.sum()


def test_random_numbers_come_from_the_generator(network, batch):
    x, y = batch

    def attacked(seed):
        return pgd(network, x, y, 0.1, steps=1, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(attacked(1), attacked(1))
    assert not torch.equal(attacked(1), attacked(2))


def test_random_starts_fill_the_l2_ball(batch):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(flat[1].weight)  # no gradient: the start is the end
    x, y = torch.full((2000, 1, 8, 8), 0.5), torch.zeros(2000, dtype=torch.long)
    size = (pgd(flat, x, y, 0.3, norm="l2", steps=1) - x).flatten(1).norm(dim=1) / 0.3
    assert size.max() <= 1 + 1e-5
    # uniform in the ball: (radius/ε)^64 is uniform, so its mean is 1/2
    assert (size**64).mean() == pytest.approx(0.5, abs=0.03)


def test_input_gradient_is_a_derivative(network, batch):
    x, y = batch[0][:5].double(), batch[1][:5]
    try:
        gradient = input_gradient(network.double(), x, y)
        direction = torch.randn_like(x)

        def loss(at):
            return nn.functional.cross_entropy(network(at), y, reduction="sum")

        with torch.no_grad():
            change = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    finally:
        network.float()
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-5)


BAD = [
    ({"epsilon": -0.1}, "epsilon is -0.1; it has to be a finite number of at least 0"),
    ({"epsilon": float("nan")}, "epsilon is nan"),
    ({"epsilon": "large"}, "epsilon is 'large'"),
    ({"epsilon": []}, r"epsilon is \[\]"),
    ({"epsilon": "0.1"}, "epsilon is '0.1'"),
    ({"epsilon": np.zeros((2, 2))}, r"epsilon is \[0.0, 0.0\]; it has to be a finite number"),
    ({"epsilon": [0.1, [0.2, 0.3]]}, r"epsilon is \[0.2, 0.3\]"),
    ({"epsilon": [0.1, "0.2"]}, "epsilon is '0.2'"),
    ({"epsilon": np.array([])}, "epsilon is array"),
    ({"y": torch.zeros(4, dtype=torch.bool)}, "y is .*bool"),
    ({"y": torch.zeros(4, 1, dtype=torch.long)}, r"y is \(4, 1\) torch.int64"),
    ({"norm": "l7"}, "norm is 'l7'; it has to be one of 'linf', 'l2'"),
    ({"steps": 0}, "steps is 0; it has to be a whole number of at least 1"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"restarts": 0}, "restarts is 0"),
    ({"momentum": -1}, "momentum is -1"),
    ({"step_size": float("inf")}, "step_size is inf"),
    ({"start": torch.zeros(1)}, r"start is \(1,\); it has to be a tensor of the shape of x"),
    ({"batch_size": 0}, "batch_size is 0"),
    (
        {"x": torch.full((4, 1, 8, 8), 255.0)},
        r"x is between 255 and 255; .*\(ε is in pixel units\)",
    ),
    ({"x": torch.full((4, 1, 8, 8), float("nan"))}, "x is between nan and nan"),
    ({"x": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, "x is .*uint8"),
    ({"x": torch.zeros(0, 1, 8, 8)}, "x is .*non-empty"),
    ({"y": torch.zeros(3, dtype=torch.long)}, r"y is .*of shape \(4,\)"),
    ({"y": torch.zeros(4)}, "y is .*float32"),
    ({"y": torch.tensor([0, 1, 2, 10])}, "y is from 0 to 10; it has to be from 0 to 9"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_gets_one_clear_sentence(network, change, message):
    arguments = {"x": torch.rand(4, 1, 8, 8), "y": torch.arange(4), "epsilon": 0.1} | change
    with pytest.raises(ValueError, match=message):
        pgd(network, **arguments)


def test_a_model_that_is_no_classifier_is_named():
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(ValueError, match=r"model is returning shape \(4, 1, 8, 8\)"):
        fgsm(nn.Identity(), x, y, 0.1)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(ValueError, match="model is returning NaN or infinity"):
        fgsm(broken, x, y, 0.1)


def test_attacks_work_inside_no_grad(network, batch):
    x, y = batch
    with torch.no_grad():
        assert (fgsm(network, x, y, 0.1) != x).any()


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_type_are_labels(network, batch, kind):
    x, y = batch[0][:4], batch[1][:4]
    for attack in (fgsm, lambda *a: pgd(*a, steps=2, random_start=False)):
        assert torch.equal(attack(network, x, y.to(kind), 0.1), attack(network, x, y, 0.1))


def test_many_epsilons_may_be_an_array_or_a_tensor(network, batch):
    x, y = batch[0][:4], batch[1][:4]
    expected = fgsm(network, x, y, [0.0, 0.1])
    assert torch.equal(fgsm(network, x, y, np.linspace(0, 0.1, 2)), expected)
    assert torch.equal(fgsm(network, x, y, torch.tensor([0.0, 0.1])), expected)
    assert torch.equal(fgsm(network, x, y, np.float64(0.1)), expected[1])
    assert torch.equal(fgsm(network, x, y, torch.tensor(0.1)), expected[1])


class Flat(nn.Module):
    def forward(self, x):
        return torch.eye(10)[x.flatten(1).sum(1).long() % 10]


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10], None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.flatten(1), "model is of type function; it has to be a torch.nn.Module"),
        (Pair(), "model is returning tuple"),
        (Flat(), "model is without a gradient in x"),
        (line([1.0] * 64, classes=1), "model is returning one logit"),
    ],
)
def test_what_is_no_differentiable_classifier_is_named(model, message):
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    for attack in (fgsm, pgd):
        with pytest.raises(ValueError, match=message):
            attack(model, x, y, 0.1)


def test_images_of_another_precision_than_the_model_are_named(network, batch):
    with pytest.raises(ValueError, match=r"x is torch.float64; it has to be torch.float32"):
        fgsm(network, batch[0].double(), batch[1], 0.1)


def test_a_network_in_half_precision_without_a_gradient_stays_where_it_is():
    model = line([0.0] * 64).half()
    x, y = torch.rand(4, 1, 8, 8).half(), torch.zeros(4, dtype=torch.long)
    moved = pgd(model, x, y, 0.5, norm="l2", random_start=False)
    assert moved.dtype == torch.float16 and torch.equal(moved, x)


def test_a_start_is_finite_and_takes_the_precision_of_the_images(network, batch):
    x, y = batch[0][:4], batch[1][:4]
    with pytest.raises(ValueError, match="start is with NaN or infinity"):
        pgd(network, x, y, 0.1, start=x * torch.nan)
    one, other = (pgd(network, x, y, 0.1, start=s, steps=3) for s in (x, x.double()))
    assert torch.equal(one, other)


def test_what_a_model_raises_for_itself_is_not_blamed_on_the_images():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2).half()

        def forward(self, x):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fgsm(Full(), torch.rand(2, 4), torch.zeros(2, dtype=torch.long), 0.1)


def test_a_pixel_outside_by_rounding_is_a_pixel(network, batch):
    x, y = batch[0][:4].clone(), batch[1][:4]
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -1e-8, 1 + 1e-7
    moved = pgd(network, x, y, 0.1, steps=2)
    assert moved.min() >= 0 and moved.max() <= 1


def test_an_infinite_gradient_is_named_with_its_image():
    class Root(nn.Module):
        def forward(self, x):
            return (x.flatten(1).sqrt() * 0 + x.flatten(1))[:, :10]

    x, y = torch.rand(6, 1, 8, 8) * 0.5 + 0.25, torch.zeros(6, dtype=torch.long)
    x[3] = 0
    for attack in (
        lambda: fgsm(Root(), x, y, 0.1, batch_size=2),
        lambda: input_gradient(Root(), x, y),
        lambda: pgd(Root(), x, y, [0.0, 0.1], random_start=False, batch_size=4),
    ):
        with pytest.raises(ValueError, match="gradient of model is NaN or infinite at image 3"):
            attack()
