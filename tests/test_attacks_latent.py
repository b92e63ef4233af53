import pytest
import torch
from torch import nn

from minimax.attacks.latent import reconstruct_as
from minimax.data import load
from minimax.networks import VAE, softmax_regression


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    data = load("digits")
    model = VAE((1, 8, 8), codes=8, hidden=64)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(1500):
        optimiser.zero_grad()
        model.negative_elbo(data.x[torch.randint(len(data), (100,))]).mean().backward()
        optimiser.step()
    return model


def test_functions_are_no_networks(digits):
    x = digits[0][:2]
    with pytest.raises(ValueError, match="vae is of type function"):
        reconstruct_as(lambda z: z, x, x)
    options = {"attack": "classifier", "classifier": lambda z: z}
    with pytest.raises(ValueError, match="classifier is of type function"):
        reconstruct_as(VAE(x.shape[1:]), x, torch.zeros(2).long(), **options)


def test_the_vae_reconstructs(vae, digits):
    x = digits[0]
    error = (vae.reconstruct(x) - x).pow(2).mean()
    assert error < 0.4 * (x - x.mean(0)).pow(2).mean()


def test_negative_elbo_is_an_upper_bound_of_importance_sampling(vae, digits):
    x = digits[0][:20]
    with torch.no_grad():
        elbo = -torch.stack([vae.negative_elbo(x) for _ in range(200)]).mean(0)
        mean, log_variance = vae.encode(x)
        q = torch.distributions.Normal(mean, (log_variance / 2).exp())
        z = q.sample((500,))
        prior = torch.distributions.Normal(0, 1).log_prob(z).sum(2)
        logits = vae.decode(z.flatten(0, 1)).view(500, *x.shape)
        pixels = -nn.functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        )
        weight = prior + pixels.flatten(2).sum(2) - q.log_prob(z).sum(2)
        bound = weight.logsumexp(0) - torch.tensor(500.0).log()
    assert (bound >= elbo - 0.3).all()


def test_negative_elbo_is_the_cross_entropy_plus_the_divergence_from_the_prior():
    torch.manual_seed(0)
    model, x = VAE((6,), 3, 8), torch.rand(4, 6)
    with torch.no_grad():
        mean, log_variance = model.encode(x)
        log_variance = log_variance - 60  # so that the code is next to its mean
        model.log_variance.bias -= 60
        q = torch.distributions.Normal(mean.double(), (log_variance.double() / 2).exp())
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        p = model.decode(mean).sigmoid()
        pixels = -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)
        assert torch.allclose(model.negative_elbo(x).double(), pixels + kl, rtol=1e-5)
        other = torch.rand(4, 6)
        pixels = -(other * p.log() + (1 - other) * (1 - p).log()).sum(1)
        assert torch.allclose(model.negative_elbo(x, other).double(), pixels + kl, rtol=1e-5)


class Identity(VAE):
    """A code that is the image itself, so that the attack has a solution in closed form."""

    def encode(self, x):
        return x.flatten(1), torch.zeros_like(x.flatten(1))


def test_the_latent_attack_ends_between_image_and_target_as_c_says():
    torch.manual_seed(0)
    x, target = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    for c in (0.0, 1.0, 3.0):
        moved = reconstruct_as(Identity((1, 2, 2), 4, 4), x, target, c=c, steps=400)
        assert torch.allclose(moved, (target + c * x) / (1 + c), atol=1e-3)


def test_the_first_step_of_the_other_attacks_goes_down_their_loss_and_by_the_rate(digits):
    torch.manual_seed(0)
    vae, x, target = VAE((1, 8, 8), 8, 16), digits[0][:5] / 2 + 0.25, digits[0][5:10]
    reader, wanted = softmax_regression(8), torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)
    image = x.clone().requires_grad_()
    torch.manual_seed(0)
    explained = vae.negative_elbo(image, target).sum()
    read = nn.functional.cross_entropy(reader(vae.encode(image)[0]), wanted.long()) * 5
    for attack, loss, goal in (("loss", explained, target), ("classifier", read, wanted)):
        (slope,) = torch.autograd.grad(loss, image)
        torch.manual_seed(0)
        moved = reconstruct_as(
            vae, x, goal, attack=attack, classifier=reader, c=7.0, steps=1, lr=0.01
        )
        clear = slope.abs() > 1e-4  # Adam's first step is the sign of the slope
        assert torch.allclose((moved - x)[clear], -0.01 * slope.sign()[clear], atol=1e-4)


@pytest.mark.parametrize("attack", ["latent", "loss"])
def test_the_reconstruction_moves_to_the_target(vae, digits, attack):
    x, y = digits[0][:20], digits[1][:20]
    target = digits[0][(y[:, None] != digits[1]).float().argmax(1)]
    weights = [p.clone() for p in vae.parameters()]
    moved = reconstruct_as(vae, x, target, attack=attack, c=0.05)
    assert moved.min() >= 0 and moved.max() <= 1

    def error(image, goal):
        return (vae.reconstruct(image) - goal).pow(2).mean().item()

    assert error(moved, target) < 0.5 * error(x, target)
    assert all(torch.equal(a, b) for a, b in zip(weights, vae.parameters(), strict=True))
    assert all(p.requires_grad for p in vae.parameters())


def test_the_classifier_attack_moves_the_codes(vae, digits):
    data = load("digits")
    reader = softmax_regression(8)
    with torch.no_grad():
        codes = vae.encode(data.x)[0]
    optimiser = torch.optim.Adam(reader.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(reader(codes), data.y).backward()
        optimiser.step()
    x, wanted = digits[0][:30], (digits[1][:30] + 1) % 10
    moved = reconstruct_as(vae, x, wanted, attack="classifier", classifier=reader, c=0.01)
    with torch.no_grad():
        assert (reader(vae.encode(moved)[0]).argmax(1) == wanted).float().mean() > 0.9


def test_a_larger_c_keeps_the_image_nearer(vae, digits):
    x, target = digits[0][:10], digits[0][10:20]
    sizes = [(reconstruct_as(vae, x, target, c=c) - x).norm() for c in (0.05, 1.0, 20.0)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "pixels"}, "attack is 'pixels'; it has to be one of 'latent'"),
        ({"target": torch.zeros(3)}, r"target is \(3,\); it has to be of shape \(2, 1, 8, 8\)"),
        ({"attack": "classifier", "target": torch.tensor([0, 1])}, "classifier is None"),
        ({"c": -1}, "c is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"x": torch.rand(2, 1, 8, 8) * 2 - 1}, "x is between -"),
        ({"target": torch.rand(2, 1, 8, 8) * 255}, "target is between"),
        ({"x": torch.rand(2, 1, 8, 8) / 0}, "x is between inf"),
        ({"x": torch.rand(2, 1, 8, 8).double()}, "x is torch.float64; it has to be torch.float32"),
        ({"attack": "classifier", "classifier": len, "target": torch.tensor([0, 1])}, "Module"),
        (
            {"attack": "classifier", "classifier": nn.Linear(8, 3), "target": torch.rand(2)},
            r"target is \(2,\) torch.float32; it has to be one whole-numbered class",
        ),
        (
            {"attack": "classifier", "classifier": nn.Linear(8, 3), "target": torch.tensor([0, 3])},
            "from 0 to 2",
        ),
        (
            {"attack": "classifier", "classifier": nn.Linear(8, 1), "target": torch.tensor([0, 0])},
            "returning one logit",
        ),
    ],
)
def test_bad_input_gets_one_clear_sentence(vae, options, message):
    arguments = {"x": torch.rand(2, 1, 8, 8), "target": torch.rand(2, 1, 8, 8)} | options
    with pytest.raises(ValueError, match=message):
        reconstruct_as(vae, **arguments)


@pytest.mark.parametrize("attack", ["latent", "loss"])
def test_a_broken_autoencoder_is_named(attack):
    vae = VAE((1, 2, 2), 2, 4)
    vae.mean.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match="vae is with a gradient that is NaN"):
        reconstruct_as(vae, torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2), attack=attack)
