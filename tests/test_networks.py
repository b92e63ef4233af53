import pytest
import torch
from torch import nn

from minimax.networks import (
    Maxout,
    Normalise,
    accuracy,
    evaluating,
    maxout_network,
    mlp,
    predict,
    reinitialise,
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
    probability = predict(model, x, batch_size=3)
    assert model.training and model[1].training
    assert torch.allclose(probability.sum(1), torch.ones(10))
    assert torch.equal(probability, predict(model, x, batch_size=3))
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
