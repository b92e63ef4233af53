"""What holds still is computed faster, and equal."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy

from minimax.attacks import fgsm, input_gradient, products
from minimax.attacks.gradient import frozen
from minimax.attacks.products import faster
from minimax.networks import maxout_network


class Residual(nn.Module):
    """Views its images, as many networks do, and adds what it was given."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding="same"), nn.BatchNorm2d(16)
        self.second, self.out = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16 * 28 * 28, 10)

    def forward(self, x):
        hidden = self.norm(self.first(x)).relu()
        return self.out((hidden + self.second(hidden)).view(len(x), -1))


def convolution(channels, out=16, **how):
    return lambda: nn.Sequential(
        nn.Conv2d(channels, out, 5, **how), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )


NETWORKS = {
    "maxout": (1, lambda: maxout_network(784)),
    "linear without bias": (1, lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False))),
    "residual": (3, Residual),
    "grey": (1, convolution(1)),
    "strides that leave pixels over": (3, convolution(3, stride=3, padding=1)),
    "dilation": (2, convolution(2, dilation=(2, 1), padding=(0, 2), bias=False)),
    "groups": (4, convolution(4, groups=2)),
    "reflecting": (3, convolution(3, padding=2, padding_mode="reflect")),
    "many channels": (8, convolution(8)),
}


@pytest.fixture
def laid_out(monkeypatch):
    """Every product counts as large; the weights that were laid out anew."""
    seen, lay_out = [], products._laid_out
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "WORTH", 0)
    monkeypatch.setattr(products, "ROWS", 0)
    monkeypatch.setattr(products, "_laid_out", lambda w: (seen.append(w), lay_out(w))[1])
    return seen


def plain_gradient(model, x, y):
    image = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(image), y, reduction="sum"), image)[0]


@pytest.fixture(params=NETWORKS)
def network(request):
    channels, make = NETWORKS[request.param]
    torch.manual_seed(0)
    x, y = torch.rand(6, channels, 28, 28), torch.randint(10, (6,))
    model = make()
    model(x)
    return model.eval(), x, y


def test_logits_and_gradients_are_equal(network, laid_out):
    model, x, y = network
    expected, slopes = model(x), plain_gradient(model, x, y)
    assert not laid_out
    with frozen(model):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain_gradient(model, x, y), slopes, rtol=1e-4, atol=1e-6)
    assert len(laid_out) == sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert input_gradient(model, x, y).stride() == x.stride()


def test_second_derivatives_are_equal(network, laid_out):
    model, x, y = network

    def curvature():
        image = x.clone().requires_grad_()
        loss = cross_entropy(model(image), y)
        (slope,) = torch.autograd.grad(loss, image, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), image)[0]

    expected = curvature()
    with frozen(model):
        torch.testing.assert_close(curvature(), expected, rtol=1e-3, atol=1e-6)
    assert laid_out


def test_weights_that_moved_between_two_attacks_are_seen(network, laid_out):
    model, x, y = network
    input_gradient(model, x, y)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    slopes = plain_gradient(model, x, y)
    torch.testing.assert_close(input_gradient(model, x, y), slopes, rtol=1e-4, atol=1e-6)


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


def spectral():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(784, 10)))


LEFT_ALONE = {
    "function": (lambda: lambda x: x.flatten(1)[:, :10], None),
    "traced": (lambda: torch.jit.trace(dense(), torch.rand(2, 1, 28, 28)), None),
    "compiled": (lambda: torch.compile(dense(), backend="eager"), None),
    "64 bits": (lambda: dense().double(), None),
    "parametrised": (lambda: spectral().eval(), None),
    "autocast": (dense, torch.autocast("cpu", torch.bfloat16)),
    "learning": (dense, torch.enable_grad()),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_would_differ_is_left_alone(kind, laid_out):
    make, within = LEFT_ALONE[kind]
    model = make()
    x = torch.rand(3, 1, 28, 28)
    if isinstance(model, nn.Module):
        x = x.to(next(model.parameters()).dtype)
        model.requires_grad_(isinstance(within, torch.enable_grad))
    expected = model(x)
    with faster(model):
        if within:
            with within:
                model(x)
        else:
            assert model(x).equal(expected)
    assert not laid_out


def test_under_vmap_it_is_left_alone(laid_out):
    model, x = dense().requires_grad_(False), torch.rand(3, 2, 1, 28, 28)
    with faster(model):
        torch.testing.assert_close(torch.vmap(model)(x), model(x.flatten(0, 1)).view(3, 2, 10))


def test_small_networks_pay_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 10))
    with faster(model):
        assert torch.overrides._get_current_function_mode() is None
    with faster(dense()), faster(dense()):
        assert len(torch.overrides._get_current_function_mode_stack()) == 1
    assert fgsm(model, torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), 0.1).shape == (2, 1, 3, 3)


class Cropped(nn.Module):
    """Writes into a view of its convolution's result."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 28 * 28, 10)

    def forward(self, x):
        hidden = self.first(x)
        hidden.view(len(x), -1)[:, ::2] *= 0.5
        return self.out(hidden.relu().flatten(1))


class Rewriting(nn.Module):
    """Moves its own weights, in place and by new memory, whenever it is asked."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(784, 784), nn.Linear(784, 10)

    def forward(self, x):
        with torch.no_grad():
            self.first.weight.mul_(0.9)
            self.out.weight.data = self.out.weight.data * 1.1
        return self.out(self.first(x.flatten(1)).relu())


@pytest.mark.parametrize(("kind", "channels"), [(Cropped, 3), (Rewriting, 1)])
def test_a_network_that_writes_in_place_does_what_it_did(kind, channels, laid_out):
    torch.manual_seed(0)
    model, x, y = kind(), torch.rand(6, channels, 28, 28), torch.randint(10, (6,))
    as_it_was = {name: value.clone() for name, value in model.state_dict().items()}
    expected = [model(x), plain_gradient(model, x, y)]
    model.load_state_dict(as_it_was)
    with frozen(model):
        got = [model(x), plain_gradient(model, x, y)]
    assert laid_out
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [dense, convolution(1)])
def test_a_bias_that_learns_has_its_gradient(make, laid_out):
    model, x = make(), torch.rand(3, 1, 28, 28)
    model(x)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    biases = [weight for weight in model.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(model(x).square().sum(), biases)
    with faster(model):
        got = torch.autograd.grad(model(x).square().sum(), biases)
    torch.testing.assert_close(got, expected)


def test_forward_mode_is_left_alone(laid_out):
    model, x = dense().requires_grad_(False), torch.rand(3, 1, 28, 28)
    along = torch.rand_like(x)
    expected = torch.func.jvp(model, (x,), (along,))[1]
    with faster(model), forward_ad.dual_level():
        out = model(forward_ad.make_dual(x, along))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)
    assert not laid_out


def test_a_large_product_is_taken_and_a_small_one_not(monkeypatch):
    """Madry et al.'s network on a batch is large, one image through a small one is not."""
    seen, lay_out = [], products._laid_out
    monkeypatch.setattr(products, "_laid_out", lambda w: (seen.append(w.dim()), lay_out(w))[1])
    large = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 14 * 14, 10)
    )
    with frozen(large):
        large(torch.rand(64, 1, 28, 28))
    assert seen == [4, 2]
    with frozen(small := dense()):
        small(torch.rand(64, 1, 28, 28))
    assert seen == [4, 2]
