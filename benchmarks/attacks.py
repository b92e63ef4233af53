"""Attacks of ours against those of the libraries that a user would pick instead.

    python benchmarks/attacks.py [pgd cw apgd square] [--before SRC]

The same network, images and budget (steps or queries) for all; where a library lets one choose the
random start it is the same, elsewhere drawn by the same rule. In each turn every attack runs once,
and the best of the turns counts. On one thread, which is the default, and without a GPU, the time
is that of the processor, which other processes disturb less than that of the clock. Libraries that
are not installed are named and left out. ``--before`` adds rows of another state of the package,
whose ``src`` folder it names.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks.gradient import frozen
from minimax.data import load
from minimax.evaluation import accuracy
from minimax.game import Player, minibatches, play
from minimax.networks import maxout_network

STEPS, STEP_SIZE = 40, 0.01  # with ε = 0.3, the setting of Madry et al. on MNIST
SEARCHES, CW_STEPS, C = 5, 100, 0.1  # of Carlini and Wagner: searches of c, rounds of Adam, first c
APGD_STEPS, QUERIES = 100, 500
PEERS = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "cleverhans": "cleverhans",
    "art": "adversarial-robustness-toolbox",
    "pyautoattack": "pyautoattack",
}
SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd")


class Job(NamedTuple):
    """What every attack gets."""

    model: nn.Module
    x: Tensor
    y: Tensor
    epsilon: float
    start: Tensor


Run = Callable[[], Tensor]
Maker = Callable[[Job], Run]


def convolutional() -> nn.Sequential:
    """The MNIST network of Madry et al.: two 5×5 convolutions and 1,024 hidden units."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convolutional": (convolutional, 150),
    "maxout": (lambda: maxout_network(784), 500),
}


def trained(model: nn.Module, rounds: int) -> nn.Module:
    """Train on scikit-learn's digits at 28×28 pixels."""
    data = load("digits", size=28)
    player = Player(model, lambda x, y: cross_entropy(model(x), y))
    play([player], minibatches(data.x, data.y, size=100), rounds=rounds, seed=0)
    return model.eval()


# The libraries


def foolbox_pgd(job: Job) -> Run:
    import eagerpy
    import foolbox

    class FromStart(foolbox.attacks.LinfPGD):
        def get_random_start(self, x0: object, epsilon: float) -> object:
            return eagerpy.astensor(job.start)

    attack = FromStart(abs_stepsize=STEP_SIZE, steps=STEPS)
    model = foolbox.PyTorchModel(job.model, (0, 1))
    return lambda: attack(model, job.x, job.y, epsilons=job.epsilon)[1]


def foolbox_cw(job: Job) -> Run:
    import foolbox

    attack = foolbox.attacks.L2CarliniWagnerAttack(SEARCHES, CW_STEPS, 1e-2, 0, C)
    model = foolbox.PyTorchModel(job.model, (0, 1))
    return lambda: attack(model, job.x, job.y, epsilons=None)[1]


def torchattacks_(name: str, radius: bool = True, **options: Any) -> Maker:
    def make(job: Job) -> Run:
        import torchattacks

        ball = {"eps": job.epsilon} if radius else {}
        attack = getattr(torchattacks, name)(job.model, **ball, **options)
        return lambda: attack(job.x, job.y)

    return make


def cleverhans_pgd(job: Job) -> Run:
    from cleverhans.torch.attacks import projected_gradient_descent as module

    attack = module.projected_gradient_descent
    ball = (job.epsilon, STEP_SIZE, STEPS, np.inf)
    return lambda: attack(job.model, job.x, *ball, clip_min=0, clip_max=1, y=job.y)


def cleverhans_cw(job: Job) -> Run:
    from cleverhans.torch.attacks.carlini_wagner_l2 import carlini_wagner_l2 as attack

    budget = {"lr": 1e-2, "initial_const": C, "binary_search_steps": SEARCHES}
    return lambda: attack(job.model, job.x, 10, job.y, max_iterations=CW_STEPS, **budget)


def art(name: str, radius: bool = True, **options: Any) -> Maker:
    def make(job: Job) -> Run:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        loss, shape = nn.CrossEntropyLoss(), tuple(job.x.shape[1:])
        kind = "gpu" if job.x.is_cuda else "cpu"
        model = PyTorchClassifier(job.model, loss, shape, 10, clip_values=(0, 1), device_type=kind)
        ball = {"eps": job.epsilon} if radius else {}
        given = ball | options | {"batch_size": len(job.x), "verbose": False}
        attack = getattr(evasion, name)(model, **given)
        x, y = job.x.cpu().numpy(), job.y.cpu().numpy()
        return lambda: torch.from_numpy(attack.generate(x, y)).to(job.x)

    return make


def auto_apgd(job: Job) -> Run:
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(job.model, APGD_STEPS, eps=job.epsilon, device=job.x.device)
    return lambda: attack.perturb(job.x, job.y)


def auto_square(job: Job) -> Run:
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(
        job.model, n_queries=QUERIES, eps=job.epsilon, seed=0, device=job.x.device
    )
    return lambda: attack.perturb(job.x, job.y)


# Ours


def our_pgd(until_fooled: bool) -> Callable[[ModuleType], Maker]:
    options = {"steps": STEPS, "step_size": STEP_SIZE, "until_fooled": until_fooled}
    return lambda attacks: lambda job: lambda: attacks.pgd(*job[:4], start=job.start, **options)


def our_cw(attacks: ModuleType) -> Maker:
    options = {"steps": CW_STEPS, "search_steps": SEARCHES, "c": C}
    return lambda job: lambda: attacks.carlini_wagner(*job[:3], **options)


def our_apgd(attacks: ModuleType) -> Maker:
    return lambda job: lambda: attacks.ensemble.apgd(*job[:4], steps=APGD_STEPS)


def our_square(attacks: ModuleType) -> Maker:
    def run(job: Job) -> Tensor:
        return attacks.black_box.square(job.model, *job[1:4], queries=QUERIES).images

    return lambda job: lambda: run(job)


class Work(NamedTuple):
    """One kind of attack: how many images, which radii, who has it, and ours."""

    title: str
    images: int
    radii: tuple[float, ...]
    peers: dict[str, Maker]
    ours: dict[str, Callable[[ModuleType], Maker]]


WORK = {
    "pgd": Work(
        f"PGD, {STEPS} steps of {STEP_SIZE}", 256, (0.1, 0.3),
        {
            "Foolbox": foolbox_pgd,
            "torchattacks": torchattacks_("PGD", alpha=STEP_SIZE, steps=STEPS),
            "CleverHans": cleverhans_pgd,
            "ART": art("ProjectedGradientDescentPyTorch",
                       eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=1),
        },
        {"fixed work": our_pgd(False), "until fooled": our_pgd(True)},
    ),
    "cw": Work(
        f"Carlini–Wagner L2, {SEARCHES} searches of {CW_STEPS} steps", 64, (math.inf,),
        {
            "Foolbox": foolbox_cw,
            "torchattacks, c = 1, 500 steps": torchattacks_(
                "CW", radius=False, c=1, steps=SEARCHES * CW_STEPS),
            "CleverHans": cleverhans_cw,
            "ART": art("CarliniL2Method", radius=False, binary_search_steps=SEARCHES,
                       max_iter=CW_STEPS, initial_const=C),
        },
        {"same budget": our_cw},
    ),
    "apgd": Work(
        f"APGD on cross-entropy, {APGD_STEPS} steps", 256, (0.1, 0.3),
        {
            "torchattacks": torchattacks_("APGD", steps=APGD_STEPS),
            "pyautoattack": auto_apgd,
            "ART": art("AutoProjectedGradientDescent", eps_step=0.2, max_iter=APGD_STEPS,
                       nb_random_init=1),
        },
        {"same budget": our_apgd},
    ),
    "square": Work(
        f"Square, {QUERIES} queries", 128, (0.1, 0.3),
        {
            "torchattacks": torchattacks_("Square", n_queries=QUERIES),
            "pyautoattack": auto_square,
            "ART": art("SquareAttack", max_iter=QUERIES),
        },
        {"same budget": our_square},
    ),
}  # fmt: skip


# Measuring


def seconds(run: Run) -> tuple[float, Tensor]:
    """Return how long ``run`` takes, and its images."""
    with contextlib.redirect_stdout(io.StringIO()):
        began = now()
        images = run()
        return now() - began, images.detach()


def now() -> float:
    """Return the processor's time for one thread, else the clock's; a GPU has done what is due."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def compare(runs: dict[str, Run], turns: int) -> dict[str, tuple[float, Tensor]]:
    """Return the best time of each run, in seconds, and the images of its last turn."""
    best: dict[str, tuple[float, Tensor]] = {}
    for _ in range(turns + 1):  # the first turn warms up, and counts if it is the best
        for label, run in runs.items():
            spent, images = seconds(run)
            best[label] = min(spent, best.get(label, (math.inf,))[0]), images
    return best


def products(model: nn.Module, x: Tensor, slopes: bool) -> float:
    """Return the seconds of the products alone in one pass to the logits, with ``slopes`` back."""
    inputs: dict[nn.Module, Tensor] = {}
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]

    def keep(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        inputs[layer] = given[0].detach().requires_grad_(slopes)

    def passed(layer: nn.Module) -> Tensor:
        out = layer(inputs[layer])
        return torch.autograd.grad(out, inputs[layer], out.detach())[0] if slopes else out

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    with frozen(model):
        model(x)
        for hook in hooks:
            hook.remove()
        return sum(min(seconds(lambda: passed(one))[0] for _ in range(7)) for one in layers)  # noqa: B023


def images_passed(model: nn.Module, run: Run) -> int:
    """Return how many images go through ``model`` in one run."""
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    run()
    hook.remove()
    return sum(seen)


def package(src: Path | None = None) -> ModuleType:
    """Return minimax.attacks with all its parts; from another ``src`` folder, beside ours."""

    def taken() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == "minimax"]
        return {name: sys.modules.pop(name) for name in names}

    own = taken() if src else {}
    sys.path.insert(0, str(src or ""))
    attacks = importlib.import_module("minimax.attacks")
    for part in ("ensemble", "black_box"):
        importlib.import_module(f"minimax.attacks.{part}")
    sys.path.pop(0)
    if src:
        taken()
        sys.modules.update(own)
    return attacks


def made(work: Work, job: Job, packages: dict[str, ModuleType]) -> dict[str, Run]:
    """Return the attacks of ``work`` that can run here, ready to run."""
    makers = work.peers | {
        f"{whose}, {how}": make(attacks)
        for whose, attacks in packages.items()
        for how, make in work.ours.items()
    }
    runs = {}
    for label, make in makers.items():
        with contextlib.suppress(ModuleNotFoundError):
            runs[label] = make(job)
    return runs


def table(kind: str, packages: dict[str, ModuleType], data: Any, turns: int, network: str) -> None:
    """Measure one kind of attack on one network and print the rows."""
    work, model = WORK[kind], data.models[network]
    x, y = data.x[: work.images], data.y[: work.images]
    for epsilon in work.radii:
        start = (x + min(epsilon, 1) * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        runs = made(work, job := Job(model, x, y, epsilon, start), packages)
        found = compare(runs, turns)
        best = min((found[label][0] for label in work.peers if label in found), default=math.nan)
        slopes = kind != "square"
        limit = products(model, x, slopes) / len(job.x)
        for label, (spent, images) in found.items():
            left, moved = accuracy(model, images, y), (images - x).flatten(1).norm(dim=1).mean()
            share = ""
            if label not in work.peers:
                share = f"{limit * images_passed(model, runs[label]) / spent:.2f}"
            cells = (network, epsilon, label, f"{len(x) / spent:.1f}", f"{best / spent:.2f}",
                     f"{left:.3f}", f"{moved:.2f}", share)  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


class Given(NamedTuple):
    """The test digits, and the trained networks."""

    x: Tensor
    y: Tensor
    models: dict[str, nn.Module]


def header() -> str:
    """Return what the ratios hang on: processor, instructions, threads and versions."""
    flags, name = "", platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        pairs = [line.split(":", 1) for line in info.read_text("utf-8").splitlines() if ":" in line]
        found = {key.strip(): value.strip() for key, value in pairs}
        flags = found.get("flags", found.get("Features", ""))
        name = found.get("model name", name)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else name
    sets = ", ".join(one for one in SETS if one in flags.split())
    versions, missing = [], []
    for module, distribution in PEERS.items():
        try:
            importlib.import_module(module)
            versions.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except ModuleNotFoundError:
            missing.append(distribution)
    threads = torch.get_num_threads()
    alone = threads == 1 and not torch.cuda.is_available()
    clock = "of the processor" if alone else "of the clock"
    lines = [f"{name} ({sets}), {threads} threads, seconds {clock}, torch {torch.__version__}",
             ", ".join(versions)]  # fmt: skip
    return "\n".join(lines + [f"Not installed, left out: {', '.join(missing)}"] * bool(missing))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=list(WORK), help=", ".join(WORK))
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each attack")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--before", type=Path, help="the src folder of another state of ours")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(header())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    test = load("digits", split="test", size=28)
    models = {n: trained(NETWORKS[n][0](), NETWORKS[n][1]).to(device) for n in arguments.networks}
    data = Given(test.x.to(device), test.y.to(device), models)
    before = {"ours before": package(arguments.before)} if arguments.before else {}
    for what in arguments.what:
        print(f"\n{WORK[what].title}, {WORK[what].images} images\n")
        print("| network | ε | attack | images/s | ratio to the best library | accuracy left "
              "| mean L2 | share of the products |\n" + "|---" * 8 + "|")  # fmt: skip
        for network in models:
            table(what, before | {"ours": package()}, data, arguments.turns, network)


if __name__ == "__main__":
    main()
