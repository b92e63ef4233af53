import pytest
import torch
from torch import nn

from minimax.evaluation import accuracy, evaluating, predict_proba
from minimax.game import reinitialise
from minimax.networks import (
    VAE,
    Maxout,
    Normalise,
    PatchDiscriminator,
    Refiner,
    UNet,
    maxout_network,
    mlp,
)


def test_maxout_takes_the_largest_piece_of_each_unit():
    layer = Maxout(3, 2, 4)
    x = torch.randn(5, 3)
    weight, bias = layer.linear.weight.view(2, 4, 3), layer.linear.bias.view(2, 4)
    by_hand = (torch.einsum("ni,upi->nup", x, weight) + bias).max(2).values
    assert torch.allclose(layer(x), by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="pieces is 0"):
        Maxout(3, 2, 0)


def test_the_maxout_network_has_the_papers_size():
    weights = sum(p.numel() for p in maxout_network(784).parameters())
    assert weights == (784 * 1200 + 1200) + (240 * 1200 + 1200) + (240 * 10 + 10)


def test_normalise_keeps_epsilon_in_pixels():
    x = torch.rand(2, 3, 4, 4)
    layer = Normalise([0.5, 0.4, 0.3], [0.2, 0.1, 0.5])
    assert torch.allclose(layer(x)[:, 1], (x[:, 1] - 0.4) / 0.1)
    assert not list(layer.state_dict())


def test_predict_leaves_the_mode_alone_and_works_in_batches():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    x = torch.rand(10, 1, 2, 2)
    probability = predict_proba(model, x, batch_size=3)
    assert model.training and model[1].training
    assert torch.allclose(probability.sum(1), torch.ones(10))
    assert torch.equal(probability, predict_proba(model, x, batch_size=3))
    assert accuracy(model, x, probability.argmax(1)) == 1


def test_mlp_has_an_activation_between_its_layers_and_none_after():
    model = mlp(3, 5, 2, activation=nn.Tanh)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]
    assert model(torch.rand(4, 3)).shape == (4, 2)


def test_reinitialise_draws_what_the_layers_would_and_the_whole_has_the_last_word():
    class Zeros(nn.Sequential):
        def reset_parameters(self):
            for weight in self.parameters():
                nn.init.zeros_(weight)

    torch.manual_seed(3)
    fresh = nn.Linear(2, 2)
    model = nn.Linear(2, 2)
    torch.manual_seed(3)
    reinitialise(model)
    assert torch.equal(model.weight, fresh.weight)
    norm = nn.BatchNorm1d(2)
    norm(torch.rand(9, 2))
    reinitialise(norm)
    assert norm.running_mean.abs().max() == 0
    own = Zeros(nn.Linear(2, 2))
    reinitialise(own)
    assert own[0].weight.abs().max() == 0


def test_evaluating_gives_each_part_its_mode_back():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[1].eval()
    with evaluating(model):
        assert not model.training and not model[0].training
    assert model.training and model[0].training and not model[1].training


@pytest.mark.parametrize("skips", [True, False])
def test_a_unet_keeps_the_side_and_knows_the_place_only_by_its_skips(skips):
    network = UNet(7, 3, features=8, depth=3, skips=skips).eval()
    x = torch.rand(2, 7, 32, 32)
    y = network(x)
    assert y.shape == (2, 3, 32, 32) and y.min() >= 0 and y.max() <= 1
    channels = [part[0].in_channels for part in network.up]
    assert channels == ([32, 32, 16] if skips else [32, 16, 8])
    assert network(torch.rand(1, 7, 64, 64)).shape == (1, 3, 64, 64)


def test_dropout_is_a_unets_only_noise():
    network, x = UNet(1, 1, features=4, depth=3), torch.rand(4, 1, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(("stages", "wide"), [(1, 10), (2, 22), (3, 46)])
def test_a_patch_logit_sees_only_its_patch(stages, wide):
    D = PatchDiscriminator(1, features=4, stages=stages).eval()
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    logits = D(x)[0]
    side = round(len(logits) ** 0.5)
    (slope,) = torch.autograd.grad(logits[side // 2 * side + side // 2], x)
    seen = slope[0, 0].abs() > 0
    assert seen.any(0).sum() == wide and seen.any(1).sum() == wide


def test_a_refiner_starts_as_the_identity_and_can_change_pixels():
    x = torch.rand(2, 1, 12, 20) * 0.9 + 0.05
    refiner = Refiner(1, features=8)
    assert refiner(x).shape == x.shape
    assert (refiner(x) - x).abs().max() < 0.05
    reinitialise(refiner)
    assert (refiner(x) - x).abs().max() < 0.05


class Broken(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 10), float("nan"))


def test_a_network_that_returns_nan_has_no_accuracy():
    x, y = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
    for call in (lambda: accuracy(Broken(), x, y), lambda: predict_proba(Broken(), x)):
        with pytest.raises(ValueError, match="model is returning NaN or infinity"):
            call()


def test_accuracy_refuses_labels_that_would_be_broadcast():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(6, 1, 8, 8)
    y = model(x).argmax(1)
    assert accuracy(model, x, y) == accuracy(model, x, y.int()) == 1
    for labels in (y[:, None], y[:1], y.float()):
        with pytest.raises(ValueError, match=r"y is \(.*one whole-numbered class per image"):
            accuracy(model, x, labels)


def test_predict_refuses_what_is_no_batch_for_a_classifier():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"x is of shape \(0, 1, 8, 8\)"):
        predict_proba(model, torch.rand(0, 1, 8, 8))
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict_proba(model, torch.rand(2, 1, 8, 8), batch_size=0)
    with pytest.raises(ValueError, match="model is of type function"):
        predict_proba(lambda x: model(x), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"x is torch.float64; it has to be torch.float32"):
        predict_proba(model, torch.rand(2, 1, 8, 8).double())


def test_a_vae_samples_with_the_standard_deviation_and_pays_for_it():
    vae = VAE((1, 2, 2), codes=3, hidden=4)
    mean, sd = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, 0.1])
    rows, seen = 20_000, []
    vae.encode = lambda x: (mean.expand(len(x), 3), (2 * sd.log()).expand(len(x), 3))
    vae.decode = lambda z: seen.append(z) or torch.zeros(len(z), 1, 2, 2)
    x = torch.full((rows, 1, 2, 2), 0.5)
    cost = vae.negative_elbo(x)
    assert torch.allclose(seen[0].mean(0), mean, atol=0.05)
    assert torch.allclose(seen[0].std(0), sd, rtol=0.03)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, sd), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    assert torch.allclose(cost, 4 * torch.tensor(2.0).log() + kl, atol=1e-4)
