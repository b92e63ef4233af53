"""The book on a GPU, as far as that can be seen without one: see ``pretend``.

Every public function that has to do with tensors is called on the CPU and on the pretend GPU, and
every chapter is run there (``make device``).
"""

import copy
import importlib
import inspect
import pkgutil
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.func import grad, vmap

import minimax
from minimax import chapters, collapse, coverage, data, errors, gans, scale, stabilisers
from minimax import dcgan as dcgans
from minimax import networks as nets
from minimax.attacks import (
    black_box,
    ensemble,
    evasion,
    gradient,
    latent,
    minimal,
    photographs,
    physical,
    serve,
    substitutes,
)
from minimax.data import signs
from minimax.defenses import (
    adversarial_training,
    certify,
    interval_bounds,
    virtual_adversarial_training,
)
from minimax.evaluation import accuracy, evaluate, predict_proba, statistics_held
from minimax.figures import draw
from minimax.game import Player, engine, minibatches, parallel, play, reinitialise
from minimax.likelihood import (
    RBM,
    BernoulliMixture,
    annealed_importance_sampling,
    contrastive_divergence,
    importance_weighted_bound,
    log_mean_exp,
    log_partition_exact,
    temperatures,
)
from pretend import CUDA, pretend_gpu, set_default_device


@pytest.fixture
def gpu(monkeypatch):
    """A pretend GPU, and how often the program waited for it."""
    with pretend_gpu(monkeypatch) as waits:
        yield waits


# --- the pretend GPU itself ---------------------------------------------------------------------

REFUSED = {  # what a real GPU refuses, and how torch begins its sentence
    "a sum": (lambda x, y: x + y, "Expected all tensors to be on the same device"),
    "a product": (lambda x, y: x @ y.T, "Expected all tensors to be on the same device"),
    "a GPU number with CPU tensors": (lambda x, y: y * x[0, 0], "Expected all tensors"),
    "a CPU number in a stack": (lambda x, y: torch.stack([x[0, 0], y[0, 0]]), "Expected all"),
    "GPU rows of a CPU tensor": (lambda x, y: y[x.argmax(1)], "indices should be either on cpu"),
    "in vmap": (lambda x, y: vmap(torch.add, (0, None))(x, y[0]), "Expected all tensors"),
    "in a gradient": (lambda x, y: grad(lambda x: (x * y).sum())(x), "Expected all tensors"),
    "a network elsewhere": (lambda x, y: nn.Linear(3, 1)(x), "Expected all tensors"),
    "an assignment of rows": (lambda x, y: x.index_put_((y[0].long(),), y[0]), "Expected all"),
    "a CPU generator": (
        lambda x, y: torch.rand(2, generator=torch.Generator(), device="cuda"),
        "Expected a 'cuda' device type for generator but found 'cpu'",
    ),
    "a GPU generator": (
        lambda x, y: torch.rand(2, generator=torch.Generator("cuda")),
        "Expected a 'cpu' device type for generator but found 'cuda'",
    ),
    "coins": (lambda x, y: torch.bernoulli(x, generator=torch.Generator()), "Expected a 'cuda'"),
    "noise": (lambda x, y: x.normal_(generator=torch.Generator()), "Expected a 'cuda'"),
    "numpy()": (lambda x, y: x.numpy(), "can't convert cuda:0 device type tensor to numpy"),
    "NumPy": (lambda x, y: np.asarray(x), "can't convert cuda:0 device type tensor to numpy"),
    "a second GPU": (lambda x, y: x.to("cuda:1"), "CUDA error: invalid device ordinal"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_pretend_gpu_refuses(gpu, what):
    do, words = REFUSED[what]
    with pytest.raises((RuntimeError, TypeError), match=f"^{words}"):
        do(torch.rand(2, 3, device="cuda"), torch.rand(2, 3))


def test_the_pretend_gpu_takes_what_a_gpu_takes(gpu):
    x, y = torch.rand(2, 3, device="cuda"), torch.rand(2, 3)
    on_gpu = [
        x + y[0, 0], x[y[:, 0].long()], x[0], x.T @ x, y.to("cuda"), y.to(x), torch.rand_like(x),
        x.double(), x.new_zeros(2), x.new_tensor([1.0]), copy.deepcopy(x), x.clone().copy_(y),
        torch.nn.functional.one_hot(x.argmax(1), 3), torch.tensor([1], device="cuda"),
        torch.as_tensor(y, device="cuda"), nn.Linear(3, 1).to("cuda")(x), x.detach(),
        torch.rand(2, generator=torch.Generator("cuda"), device="cuda"),
        torch.zeros_like(y, device="cuda"), vmap(lambda x: x + torch.rand_like(x),
        randomness="different")(x), grad(lambda x: x.to("cpu").sum())(x),
    ]  # fmt: skip
    assert {value.device for value in on_gpu} == {CUDA} and all(v.is_cuda for v in on_gpu)
    on_cpu = [y, x.cpu(), torch.zeros(2), y.clone().copy_(x), torch.zeros_like(x, device="cpu")]
    assert {value.device.type for value in on_cpu} == {"cpu"} and x.cpu().numpy().shape == (2, 3)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: (x @ x.T).device).result() == CUDA
    set_default_device("cuda")
    made = [torch.zeros(2), nn.Linear(2, 1).weight, torch.tensor(1.0), torch.as_tensor(y)]
    assert {value.device for value in made} == {CUDA}
    with torch.device("cpu"):
        assert torch.zeros(2).device.type == "cpu"


def test_the_pretend_gpu_counts_what_waits_for_it(gpu):
    x, y = torch.rand(2, 3, device="cuda"), torch.rand(2, 3)
    for wait in (
        lambda x: x[0, 0].item(), lambda x: bool(x[0, 0] > 0), lambda x: x.tolist(), Tensor.cpu,
        lambda x: x[x > 0.5], torch.nonzero, lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x.add_(0).copy_(y), lambda x: y.to(x),
    ):  # fmt: skip
        before = gpu.count
        wait(x)
        assert gpu.count > before, inspect.getsource(wait)
    before = gpu.count
    torch.nn.functional.one_hot(x.argmax(1), 3), x[[0, 1]].sum(), x.sort(), y[y > 0.5].tolist()
    assert gpu.count == before


def test_nothing_is_left_of_the_pretend_gpu(monkeypatch):
    patched = (torch, Tensor, torch.cuda, torch.accelerator, torch.nn.functional)
    before = [dict(vars(place)) for place in patched]
    with monkeypatch.context() as patches, pretend_gpu(patches):
        x = torch.rand(2, device="cuda")
    assert x.device.type == torch.get_default_device().type == "cpu" and not x.is_cuda
    for place, own in zip(patched, before, strict=True):
        changed = {name for name, value in vars(place).items() if own.get(name) is not value}
        assert changed == set(), place


# --- the switch ---------------------------------------------------------------------------------


def test_quick_runs_are_for_the_cpu_and_those_at_paper_scale_for_a_gpu(gpu, monkeypatch):
    for name in ("MINIMAX_DEVICE", "MINIMAX_SCALE"):
        monkeypatch.delenv(name, raising=False)
    assert scale.device() == torch.device("cpu")
    assert scale.device("paper") == torch.device("cuda")
    monkeypatch.setenv("MINIMAX_SCALE", "paper")
    assert scale.device() == torch.device("cuda") and scale.device("quick").type == "cpu"
    monkeypatch.setenv("MINIMAX_DEVICE", "cpu")
    assert scale.device() == torch.device("cpu")
    monkeypatch.setenv("MINIMAX_DEVICE", "cuda:0")
    assert scale.use_device() == torch.device("cuda:0") and torch.zeros(1).device == CUDA
    assert np.asarray(torch.ones(2)).tolist() == [1, 1]  # as matplotlib asks
    monkeypatch.setenv("MINIMAX_DEVICE", "cpu")
    assert scale.use_device().type == torch.zeros(1).device.type == "cpu"


def test_mps_has_to_be_asked_for(monkeypatch):
    """It has no 64-bit floats."""
    there = {"current_accelerator": lambda **_: torch.device("mps"), "device_count": lambda: 1}
    for name, answer in there.items():
        monkeypatch.setattr(torch.accelerator, name, answer)
    monkeypatch.delenv("MINIMAX_DEVICE", raising=False)
    assert scale.device("paper").type == "cpu"
    monkeypatch.setenv("MINIMAX_DEVICE", "mps")
    assert scale.device().type == "mps"


@pytest.mark.parametrize("value", ["", "gpu", "cuda:1", "CPU", "mps"])
def test_a_device_that_is_not_there_is_refused_by_name(gpu, monkeypatch, value):
    monkeypatch.setenv("MINIMAX_DEVICE", value)
    allowed = "one of 'cpu', 'cuda', 'cuda:0'"
    with pytest.raises(ValueError, match=f"MINIMAX_DEVICE is '{value}'; it has to be {allowed}."):
        scale.device()


def test_on_the_cpu_no_mode_slows_torch_down(monkeypatch):
    monkeypatch.setenv("MINIMAX_DEVICE", "cpu")
    own = Tensor.__array__
    assert scale.use_device() == torch.device("cpu")
    assert not torch.overrides._get_current_function_mode_stack() and Tensor.__array__ is own


# --- every function -----------------------------------------------------------------------------


class Bench:
    """What the calls below are made of, on one device; ``draws_on`` is where generators are."""

    def __init__(self, device, draws_on):
        self.device, self.draws_on = torch.device(device), draws_on
        torch.manual_seed(0)
        self.x, self.y = self.rand(6, 1, 4, 4), self.on(torch.arange(6) % 5)
        self.model = self.on(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)))
        self.vae = self.on(nets.VAE((1, 4, 4), 2, 8))
        self.rbm = self.on(RBM(4, 3))
        ring = data.load("ring", count=40)
        self.ring, self.centres = self.on(ring.x), self.on(ring.extras["centres"])
        self.D, self.G, self.F = (self.on(nets.mlp(*n)) for n in ((2, 4, 1), (3, 4, 2), (2, 4, 3)))
        self.J, self.T = (self.on(nets.mlp(5, 4, 1)) for _ in "JT")

    def on(self, thing):
        return thing.to(self.device)

    def rand(self, *shape):
        return self.on(torch.rand(*shape))

    def generator(self):
        return torch.Generator(self.draws_on).manual_seed(torch.initial_seed())

    def play(self, players, batches=None, **options):
        batches = batches or minibatches(self.ring, size=8, noise=3)
        history = play(players, batches, rounds=2, seed=3, **options)
        return [loss.tolist() for loss in history.losses.values()]


def bright(x):
    return (x.flatten(1).sum(1) > 8).long()


def games(b, objectives, *networks):
    return [
        b.play(objective(*networks), copies=copies)
        for objective in objectives for copies in (None, 2)
    ]  # fmt: skip


def history(b):
    """A game with everything that is looked at or kept on the way."""
    player = Player(b.model, lambda x, y: nn.functional.cross_entropy(b.model(x), y), average=0.5,
                    clip=1.0, schedule=lambda share: 1 - share)  # fmt: skip
    course = play(player, minibatches(b.x, b.y, size=4), rounds=3, seed=0, copies=2,
                  watch={"right": lambda: accuracy(b.model, b.x, b.y)}, every=1)  # fmt: skip
    seen = [course.watched["right"].tolist(), course.losses["player 1"].tolist()]
    course.load(1, averaged=True)
    return [*seen, course.each(lambda: b.model(b.x)), b.model[1].weight, repr(course)]


def checkpointed(b, folder):
    """A game that stops and goes on."""
    players = gans.minimax(b.D, b.G)
    batches = minibatches(b.ring, size=8, noise=3)
    for rounds in (2, 4):
        course = play(players, batches, rounds=rounds, seed=0, checkpoint=folder)
    return [loss.tolist() for loss in course.losses.values()]


def served(b):
    with serve.LabelServer(b.model.eval(), (1, 4, 4)) as server:
        return serve.ask(server.url, b.x)


def pretrained(b):
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 12))
    return data.Pretrained(b.on(network.eval()), [*"abcdefghijkl"], "here")


def images_game(b, objective, *modules, colours=1):
    x, y = b.rand(8, 1, 16, 16), b.rand(8, colours, 16, 16)
    return b.play(objective(*map(b.on, modules)), minibatches(x, y, size=4))


def mixture(b):
    x = (b.rand(20, 6) > 0.5).to(b.x)
    start = BernoulliMixture.start(x, 2, b.generator())
    after = start.improved(x)
    return after.means, after.weights, after.posterior(x), after.sample_means(5, b.generator())


def svm(b):
    svc = SVC(kernel="rbf").fit(b.ring.cpu(), b.ring[:, 0].cpu() > 0)
    g = b.on(evasion.SVM(svc))
    x, options = b.ring.clamp(0, 1), {"steps": 3, "density": 1.0}
    return [g(b.ring)] + [
        evasion.evade(g, x[:5], x, [0.1, 0.5], norm=norm, **options)
        for norm in ("l1", "l2")
    ]  # fmt: skip


def moved(b, player):
    for module in player.modules:
        b.on(module)
    return player


def reinitialised(b):
    reinitialise(b.model)
    return b.model[1].weight


def judged(b, *stack):
    return b.on(nn.Sequential(*stack))(b.ring[:8])


def with_reference(b):
    norm = stabilisers.VirtualBatchNorm(4, 6)
    network = nn.Sequential(nn.Linear(2, 4), norm)
    return b.on(stabilisers.WithReference(network, b.ring[:6].cpu()))(b.ring[6:9])


def mixed(b):
    memory = b.on(gans.Memory(2, (1,)))
    return [memory.mixed(b.on(torch.arange(4.0) + k)[:, None]) for k in range(3)]


def held(b):
    network = b.on(nn.BatchNorm1d(2))
    with statistics_held():
        return network(b.ring), network.running_mean


def shared(b):
    network = b.on(nn.Sequential(nn.Conv2d(1, 2, 3), parallel.SharedBatchNorm2d(2)))
    return network(b.x)


def cell(b):
    scores, course = collapse.play_cell(
        collapse.Cell("ring", "gan", scale="short"), 2, rounds=2, size=8
    )
    return scores[0], course.losses["discriminator"].tolist()


# Functions that are tried together are named together. Those of MAKERS make tensors of nothing, on
# the default device; all others are also given tensors on a GPU that is not the default device.
CALLS = {
    "fgsm input_gradient gradient_of frozen differentiable check_gradient": lambda b: [
        gradient.input_gradient(b.model, b.x, b.y), gradient.fgsm(b.model, b.x, b.y, [0.1, 0.2]),
    ],
    "pgd for_each_epsilon device_of": lambda b: [
        gradient.pgd(b.model, b.x, b.y, e, norm=norm, steps=3, restarts=2, until_fooled=until,
                     momentum=0.5, generator=b.generator())
        for e in (0.1, [0.1, 0.3]) for norm in ("linf", "l2") for until in (True, False)
    ],
    "lbfgs": lambda b: minimal.lbfgs(b.model, b.x[:2], (b.y[:2] + 1) % 5, search_steps=1, steps=5),
    "deepfool": lambda b: [
        minimal.deepfool(b.model, b.x, b.y, norm=norm, steps=5) for norm in ("l2", "linf")
    ],
    "jsma": lambda b: [
        minimal.jsma(b.model, b.x, (b.y + 1) % 5, pixels=6, outputs=outputs)
        for outputs in ("logits", "probabilities")
    ],
    "carlini_wagner margin": lambda b: [
        minimal.carlini_wagner(b.model, b.x, b.y, steps=20, search_steps=2),
        minimal.margin(b.model(b.x), b.y),
    ],
    "apgd dlr": lambda b: [
        ensemble.apgd(b.model, b.x, b.y, 0.3, steps=5, loss=loss, target=(b.y + 1) % 5,
                      generator=b.generator())
        for loss in ("cross_entropy", "dlr")
    ],
    "fab": lambda b: ensemble.fab(b.model, b.x, b.y, (b.y + 1) % 5, steps=5),
    "auto_attack": lambda b: [*ensemble.auto_attack(
        b.model, b.x, b.y, [0.01, 0.1], steps=3, queries=9, generator=b.generator())],
    "square": lambda b: [*black_box.square(
        b.model, b.x, b.y, 0.1, queries=20, generator=b.generator())],
    "hop_skip_jump": lambda b: [*black_box.hop_skip_jump(
        bright, 0.4 * torch.ones_like(b.x[:2]), b.on(torch.zeros(2).long()),
        0.6 * torch.ones_like(b.x[:2]), queries=150, generator=b.generator())],
    "train_substitute": lambda b: [*black_box.train_substitute(
        lambda x: bright(x).cpu(), b.model, b.x, augmentations=2, reservoir=(0, 2),
        generator=b.generator())],
    "SVM evade": svm,
    "reconstruct_as": lambda b: [
        latent.reconstruct_as(b.vae, b.x[:3], b.x[3:], attack=attack, steps=5)
        for attack in ("latent", "loss")
    ],
    "attack_photograph turn_into_ostriches": lambda b: [
        photographs.attack_photograph(pretrained(b), b.rand(3, 16, 16)),
        photographs.turn_into_ostriches(pretrained(b), b.rand(1, 3, 16, 16), steps=3),
    ],
    "recorded_squeezenet tensors": photographs.recorded_squeezenet,
    "recorded_colour_network colour_network": lambda: [
        *photographs.recorded_colour_network().state_dict().values()],
    "PrintAndPhotograph Through": lambda b: b.on(physical.Through(
        b.model, b.on(physical.PrintAndPhotograph()), views=2))(b.x),
    "basic_iterative": lambda b: physical.basic_iterative(b.model, b.x, b.y, 3, batch_size=2),
    "Sticker non_printability as_printed": lambda b: [
        physical.Sticker(b.x[0, 0] > 0.5)(b.rand(2, 4, 4, 4)),
        physical.as_printed(b.rand(3, 4, 4)),
        physical.non_printability(b.rand(3, 4, 4), b.x[0, 0] > 0.5),
    ],
    "LabelServer ask": served,
    "worst_case adversarial_training": lambda b: b.play(
        adversarial_training(b.model, 0.1, steps=2, random_start=True, clip_start=True,
                             mix=0.5),
        minibatches(b.x, b.y, size=4), copies=2),
    "virtual_adversarial_training virtual_adversarial_loss": lambda b: b.play(
        virtual_adversarial_training(b.model, 0.1), minibatches(b.x, b.y, b.x, size=4)),
    "interval_bounds": lambda b: [*interval_bounds(b.model, b.x, 0.1)],
    "certify": lambda b: [*certify(
        b.model, b.x, 0.1, first=5, samples=50, alpha=0.3, generator=b.generator())],
    "evaluate predict_proba accuracy evaluating": lambda b: [
        evaluate(b.model, b.x), predict_proba(b.model, b.x), accuracy(b.model, b.x, b.y),
    ],
    "statistics_held": held,
    "check_tensor check_images check_pixels check_labels check_model check_logits check_classes "
    "check_classes_of_loss logits_of check_made all_copies described check_number check_batch_size":
        lambda b: [
            errors.check_images(b.x, b.y), errors.logits_of(b.model, b.x, b.y),
            errors.check_made("G", b.x, 6, b.x), errors.described(b.x).text,
            errors.check_number("lr", b.x.sum()), errors.all_copies(b.x),
            errors.check_tensor("x", b.x),
        ],
    "image_grid perturbation": lambda b: [
        draw.image_grid(b.x, columns=3, outlined=b.y > 2),
        draw.perturbation([b.x[0], b.x[1]], ["", ""], ["+"]),
    ],
    "Player play History Arena Weights minibatches Game Side": history,
    "reinitialise": reinitialised,
    "SharedBatchNorm2d average": shared,
    "bf16_pays": lambda b: type(engine.bf16_pays(b.device)).__name__,
    "minimax non_saturating relativistic wasserstein unrolled smoothed check_judge squared_slope":
        lambda b: games(b, (gans.minimax, gans.non_saturating, gans.relativistic, gans.wasserstein,
                            gans.unrolled, stabilisers.smoothed), b.D, b.G),
    "ali veegan lfvi": lambda b: games(b, (gans.ali, gans.veegan, gans.lfvi), b.J, b.G, b.F),
    "informative mutual_information": lambda b: [
        *games(b, (gans.informative,), b.D, b.G, b.T),
        gans.mutual_information(b.T, b.ring[:8], b.F(b.ring[:8])),
    ],
    "Packed": lambda b: games(
        b, (lambda D, G: gans.minimax(gans.Packed(b.on(nets.mlp(4, 3, 1)), 2), G),), b.D, b.G),
    "feature_matching with_history HistoricalAverage": lambda b: [
        b.play(stabilisers.feature_matching(b.on(nn.Linear(2, 4)), b.on(nn.Linear(4, 1)), b.G)),
        b.play([moved(b, one) for one in stabilisers.with_history(gans.minimax(b.D, b.G))]),
    ],
    "MinibatchDiscrimination": lambda b: judged(b, stabilisers.MinibatchDiscrimination(2, 3, 2)),
    "VirtualBatchNorm WithReference": with_reference,
    "Memory": mixed,
    "pix2pix UNet PatchDiscriminator": lambda b: images_game(
        b, gans.pix2pix, nets.PatchDiscriminator(2, 4), nets.UNet(1, 1, 4, 2)),
    "simgan Refiner": lambda b: images_game(
        b, gans.simgan, nets.PatchDiscriminator(1, 4), nets.Refiner(1, 4, 1)),
    "semi_supervised": lambda b: b.play(
        gans.semi_supervised(b.on(nn.Linear(2, 4)), b.on(nn.Linear(4, 3)), b.G),
        minibatches(b.ring, b.on(torch.arange(40) % 3), b.ring, size=8, noise=3)),
    "BernoulliMixture": mixture,
    "RBM contrastive_divergence": lambda b: [
        b.play(contrastive_divergence(b.rbm), minibatches((b.rand(9, 4) > 0.5).float(), size=4)),
        b.rbm.gibbs(torch.zeros_like(b.rbm.a).expand(3, -1), 2, generator=b.generator()),
    ],
    "log_partition_exact annealed_importance_sampling log_mean_exp": lambda b: [
        log_partition_exact(b.rbm), log_mean_exp(annealed_importance_sampling(
            b.rbm, [0, 0.5, 1], 5, generator=b.generator())),
        annealed_importance_sampling(b.rbm, temperatures((3, 1.0)), 5, b.rand(4), b.generator()),
    ],
    "importance_weighted_bound VAE": lambda b: importance_weighted_bound(
        b.vae, b.x, [1, 5], generator=b.generator()),
    "temperatures": lambda b: temperatures((3, 0.5), (2, 1.0)),
    "inception_score frechet_distance precision_recall": lambda b: [
        coverage.inception_score(b.model(b.x).softmax(1), 2),
        coverage.frechet_distance(b.ring, b.ring + 1), coverage.precision_recall(b.ring, b.ring),
    ],
    "mode_scores embedded_mode_scores reverse_kl": lambda b: [
        coverage.mode_scores(b.ring, b.centres, 0.01), coverage.reverse_kl(b.y.bincount()),
        coverage.embedded_mode_scores(b.ring, b.centres, 1),
    ],
    "stacked_mode_scores": lambda b: coverage.stacked_mode_scores(b.rand(4, 3, 4, 4), bright),
    "nearest_codes batched_lbfgs": lambda b: [*coverage.nearest_codes(
        b.G, b.ring[:4], 3, restarts=2, steps=3, generator=b.generator())],
    "photograph": lambda b: signs.photograph(b.on(signs.fronts(24)), b.generator(), 24),
    "fronts": lambda b: signs.fronts(24),
    "load Data ring grid high_dimensional one_dimensional sample drawn_scenes drawn_eyes "
    "photographed_signs drawn_faces draw_face turning_faces load_photographs as_input": lambda b: [
        embedded(name) for name in EMBEDDED
    ],
    "Normalise Maxout mlp softmax_regression maxout_network strided_network "
    "convolutional": lambda b: [
        network(torch.rand(2, *shape)) for network, shape in (
            (nets.Normalise([0.5], [0.2]), (1, 4, 4)), (nets.Maxout(3, 2, 2), (3,)),
            (nets.maxout_network(16, units=8).eval(), (16,)), (nets.mlp(2, 3), (2,)),
            (nets.softmax_regression(16), (16,)), (nets.strided_network(), (1, 28, 28)),
            (substitutes.convolutional(2, 5), (1, 28, 28)),
        )
    ],
    "DCGANGenerator DCGANDiscriminator": lambda b: b.on(nets.DCGANDiscriminator(16, 1, 4))(
        b.on(nets.DCGANGenerator(16, 1, 4, 5))(b.rand(4, 5))),
    "train_dcgan start": lambda b: dcgans.train_dcgan(
        torch.rand(8, 1, 16, 16), size=16, features=4, rounds=2, batch=4, codes=5, bf16=False
    )[0].eval()(torch.rand(2, 5)),
    "recorded_dcgan": lambda b: dcgans.recorded_dcgan("faces")(torch.rand(2, 100)),
    "networks FlatJudge": lambda b: [
        network(torch.rand(2, inputs)) for network, inputs in zip(
            collapse.networks(collapse.Cell("stacked_digits", "gan"))[:2],
            (3 * 8**2, 100), strict=True)
    ],
    "play_cell score real_scores": cell,
}  # fmt: skip

EMBEDDED = {
    "digits": {}, "stacked_digits": {"count": 4}, "photographs": {}, "signs": {"count": 8},
    "faces": {"count": 3}, "turning_faces": {"count": 2}, "scenes": {"count": 2},
    "eyes": {"count": 2, "style": "real"}, "ring": {"count": 9}, "grid": {"count": 9},
    "high_dimensional": {"count": 3}, "one_dimensional": {"count": 5},
}  # fmt: skip
MAKERS = set(
    "recorded_squeezenet recorded_colour_network temperatures fronts load Normalise train_dcgan "
    "recorded_dcgan networks play_cell".split()
)
# Parts of what is called, texts, and what wants the disk, a network or several processes.
WITHOUT = set(
    "Need Messages drawn_messages sms_spam squeezenet as_input load_photographs Captured "
    "NotFinite clip Game Side Folder share joint_loss share_statistics head write_tensors origin "
    "checkpoint_folder device_used record_squeezenet record_colour_network train_robust_mnist "
    "record_robust_mnist train_fast_mnist record_fast_mnist train_maxout_mnist "
    "record_maxout_mnist record_attacks "
    "dcgan_images device use_device seed settle Traced faster use_faster record_camera "
    "steal".split()
)


def embedded(name):
    made = data.load(name, **EMBEDDED[name])
    return [made.x, made.y, *(v for v in made.extras.values() if isinstance(v, Tensor))]


def public():
    """The public functions and classes whose code speaks of tensors, networks or data."""
    for module in pkgutil.walk_packages(minimax.__path__, "minimax."):
        for name, value in vars(importlib.import_module(module.name)).items():
            own = getattr(value, "__module__", "") == module.name and name[0] != "_"
            if not own or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            speaks = r"\bTensor\b|\btorch\.|\bnn\.|\bload\(|\btensors\("
            fields = inspect.isclass(value) and issubclass(value, tuple)
            if not fields and re.search(speaks, inspect.getsource(value)):
                yield name


def test_every_function_that_has_to_do_with_tensors_is_called():
    called = {name for names in CALLS for name in names.split()}
    assert set(public()) - called - WITHOUT == set()
    assert called | WITHOUT <= set(public()), "these are gone"


def parts(result):
    """The tensors and numbers of what a call gave, in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Figure):
        for axes in result.axes:
            yield from (torch.from_numpy(np.array(image.get_array())) for image in axes.images)
    elif isinstance(result, dict):
        yield from parts(list(result.values()))
    elif isinstance(result, (list, tuple)):
        for one in result:
            yield from parts(one)
    elif isinstance(result, (int, float)):
        yield float(result)
    else:
        assert isinstance(result, str), type(result)


def called(names, device, default, draws_on, seed=1):
    collapse.digit_reader.cache_clear()
    set_default_device(default)
    try:
        if draws_on == "global":
            bench = Bench(device, device)
            bench.generator = lambda: None
        else:
            bench = Bench(device, draws_on)
        call = CALLS[names]
        torch.manual_seed(seed)
        return [*parts(call(bench) if inspect.signature(call).parameters else call())]
    finally:
        set_default_device(None)
        plt.close("all")


# As a chapter has it; without a default device; the same with the caller's generator on the CPU.
USES = {"default": ("cuda", "cuda"), "given": (None, "cuda"), "generator elsewhere": (None, "cpu")}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("names", CALLS, ids=lambda names: names.split()[0])
def test_a_gpu_gives_what_the_cpu_gives(monkeypatch, names, use):
    default, draws_on = USES[use]
    if use == "given" and names.split()[0] in MAKERS:
        pytest.skip("makes tensors of nothing")
    if use == "generator elsewhere" and "generator()" not in inspect.getsource(CALLS[names]):
        pytest.skip("takes no generator")
    expected = called(names, "cpu", None, "cpu")
    with pretend_gpu(monkeypatch):
        found = called(names, "cuda", default, draws_on)
        places = {value.device for value in found if isinstance(value, Tensor)}
        found = [value.cpu() if isinstance(value, Tensor) else value for value in found]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, check_device=False)
    pictures = names.startswith("image_grid")
    assert places <= {torch.device("cpu") if pictures else CUDA}, places


def test_a_game_on_a_gpu_goes_on_from_its_checkpoint(monkeypatch, tmp_path):
    expected = checkpointed(Bench("cpu", "cpu"), tmp_path / "cpu")
    with pretend_gpu(monkeypatch):
        for default in (None, "cuda"):
            set_default_device(default)
            found = checkpointed(Bench("cuda", "cuda"), tmp_path / str(default))
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_was_seen_of_a_game_lies_on_the_default_device(gpu):
    b = Bench("cuda", "cuda")
    for default in (None, "cuda"):
        set_default_device(default)
        batches, watch = minibatches(b.ring, size=5, noise=3), {"w": lambda: b.D[0].weight}
        course = play(gans.minimax(b.D, b.G), batches, rounds=2, watch=watch)
        seen = {*course.losses.values(), *course.watched.values()}
        assert {value.device for value in seen} == {torch.get_default_device()}


def test_a_dcgan_is_trained_on_the_default_device(gpu):
    for default in ("cpu", "cuda"):
        set_default_device(default)
        assert parallel.start() == torch.get_default_device()


def test_data_elsewhere_come_to_the_game(gpu):
    """Data too large for the GPU stay in memory, and a batch is moved."""
    bench = Bench("cuda", "cuda")
    for images in (bench.ring.cpu(), data.Data(bench.ring.cpu(), torch.zeros(40))):
        batches, generator = minibatches(images, size=5, noise=2), bench.generator()
        for _ in range(3):  # from the second on, they were read ahead
            assert {part.device for part in batches(generator)} == {CUDA}


def test_while_a_game_is_played_its_gpu_is_the_current_one(gpu, monkeypatch):
    """Else a network on the second GPU is computed there, and its graph captured on the first."""
    current, seen = [None], []

    @contextmanager
    def device(which):
        current.append(which)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    bench = Bench("cuda", "cuda")
    d, g = gans.non_saturating(bench.D, bench.G)
    loss = lambda *batch: (seen.append(current[-1]), d.loss(*batch))[1]  # noqa: E731
    play([replace(d, loss=loss), g], points(bench), rounds=2)
    assert seen == [CUDA, CUDA] and current == [None]


def test_a_cell_is_played_on_the_gpu_wherever_it_is_sent(gpu, monkeypatch, tmp_path):
    """A worker of a cluster has not heard of the default device."""
    monkeypatch.setenv("MINIMAX_DEVICE", "cuda")
    cell, small = collapse.Cell("ring", "gan"), {"rounds": 2, "size": 8}
    with ThreadPoolExecutor(1) as worker:
        record, _ = worker.submit(collapse._played, cell, 2, tmp_path, small).result()
        assert worker.submit(torch.get_default_device).result() == CUDA
    assert record["device"] == "pretend GPU" and torch.get_default_device().type == "cpu"


# --- nothing waits in a loop --------------------------------------------------------------------


def waited(gpu, do):
    before = gpu.count
    do()
    return gpu.count - before


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


@pytest.mark.parametrize("kind", [lambda rows: rows, Rows])
def test_a_game_never_waits_for_data_that_lie_elsewhere(gpu, kind):
    """They are read by another thread, into memory that the GPU fetches from by itself."""
    bench = Bench("cuda", "cuda")
    elsewhere = kind(bench.ring.cpu())

    def drawn(times):
        batches, generator = minibatches(elsewhere, size=5, noise=2), bench.generator()
        return waited(gpu, lambda: [batches(generator) for _ in range(times)])

    assert drawn(3) == drawn(30)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_of_pgd_never_waits(gpu, norm):
    b = Bench("cuda", "cuda")

    def attack(steps, **options):
        return waited(gpu, lambda: gradient.pgd(
            b.model, b.x, b.y, 0.1, norm=norm, steps=steps, momentum=0.5, **options))  # fmt: skip

    assert attack(3) == attack(30)
    assert attack(3, until_fooled=True) < attack(30, until_fooled=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_on_a_gpu_still_finds_nan(gpu, norm):
    """At its end, though a step does not look."""

    class Broken(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            first = torch.zeros_like(x.flatten(1)[:, :5])
            first[1] = torch.nan if self.calls > 2 else 0.0
            return x.flatten(1)[:, :5] + first * x.flatten(1)[:, :5]

    b = Bench("cuda", "cuda")
    with pytest.raises(ValueError, match="the gradient of model is NaN or infinite at image 1"):
        gradient.pgd(Broken(), b.x, b.y, 0.1, norm=norm, steps=5)


def points(b):
    return minibatches(b.ring, size=8, noise=3)


def labelled(b):
    return minibatches(b.x, b.y, size=4)


ROUNDS = {
    "non_saturating": (lambda b: gans.non_saturating(b.D, b.G, average=0.9, clip=1.0), points),
    "relativistic": (lambda b: gans.relativistic(b.D, b.G), points),
    "wasserstein": (lambda b: gans.wasserstein(b.D, b.G), points),
    "unrolled": (lambda b: gans.unrolled(b.D, b.G), points),
    "adversarial_training": (lambda b: adversarial_training(b.model, 0.1, steps=2), labelled),
    "virtual_adversarial_training": (
        lambda b: virtual_adversarial_training(b.model, 0.1, schedule=lambda share: 1 - share),
        lambda b: minibatches(b.x, b.y, b.x, size=4),
    ),
    "contrastive_divergence": (
        lambda b: contrastive_divergence(b.rbm), lambda b: minibatches(b.rand(9, 4), size=4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_never_waits(gpu, name, copies):
    """Losses are looked at every hundred rounds."""
    b = Bench("cuda", "cuda")
    players, batches = (make(b) for make in ROUNDS[name])

    def game(rounds):
        return waited(gpu, lambda: play(players, batches, rounds=rounds, copies=copies, seed=0))

    assert game(3) == game(20)


# --- every chapter ------------------------------------------------------------------------------


@pytest.mark.device
@pytest.mark.parametrize("chapter", chapters.chapters())
def test_a_chapter_runs_on_a_gpu(monkeypatch, shown, tmp_path, chapter):
    """At quick scale, with all its claims; what it trains lies there."""
    for name, value in (("DEVICE", "cuda"), ("SCALE", "quick"), ("DATA", tmp_path), ("SEED", 0)):
        monkeypatch.setenv(f"MINIMAX_{name}", str(value))
    monkeypatch.chdir(chapters.ROOT / "book")
    space = {"__name__": "__main__"}
    collapse.digit_reader.cache_clear()
    with pretend_gpu(monkeypatch):
        for number, code in enumerate(chapters.code(chapter)):
            exec(compile(code, f"{chapter}, cell {number}", "exec"), space)
            plt.close("all")
        networks = [value for value in space.values() if isinstance(value, nn.Module)]
        assert {weight.device for n in networks for weight in n.parameters()} <= {CUDA}
    assert sum("minimax_claim" in metadata for _, metadata in shown) >= 12
