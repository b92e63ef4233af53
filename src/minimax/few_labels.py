"""Virtual adversarial training on MNIST with a hundred labels: the long run of *Defenses*.

Floor 4; called by listing, reproduce.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax import recorded
from minimax.data import load
from minimax.defenses import virtual_adversarial_loss
from minimax.evaluation import accuracy
from minimax.game import Player, minibatches, play
from minimax.game.player import Batch
from minimax.recorded.origin import checkpoint_folder, origin

RECORD = "defenses/few_labels_mnist"
SETTINGS: dict[str, Any] = {
    "labels": 100, "sizes": [784, 1200, 1200, 10], "unlabelled": 250, "rounds": 6_000,
    "lr": 2e-3, "epsilon": 1.0, "xi": 1e-2,
}  # fmt: skip


class _Product(torch.autograd.Function):
    """x wᵀ + b by oneDNN, forwards and back: twice as fast as MKL on a processor not Intel's."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise
        by_x = product(slope, weight.t(), None, "none", [], "")
        if not ctx.needs_input_grad[1]:
            return by_x, None, None
        return by_x, product(slope.t(), x.t(), None, "none", [], ""), slope.sum(0)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and torch.backends.mkldnn.is_available():
            return _Product.apply(input, self.weight, self.bias)
        return super().forward(input)


def normalised_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these ``sizes``, a batch normalisation after each, and ReLUs.

    The network of the code of Miyato et al. (2016), which normalises the logits too. Introduced in
    *Defenses*.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [_Linear(inputs, outputs), nn.BatchNorm1d(outputs, momentum=None), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def renew_statistics(network: nn.Module, x: Tensor, size: int) -> None:
    """Let the batch normalisations of ``network`` average over batches of ``size`` of ``x``.

    While it learns, they see little but the labelled images. Introduced in *Defenses*.
    """
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.reset_running_stats()
    network.train()
    for batch in x.split(size):
        network(batch)


def train_few_labels(
    network: nn.Module, seed: int, rounds: int, checkpoint: Path | None = None
) -> dict[str, list[float]]:
    """Train ``network`` on 100 labelled and all unlabelled images; return its errors on the way.

    After the code of Miyato et al. (2016, *Distributional smoothing with virtual adversarial
    training*): its network, batches (100 images with labels, 250 without), one step of the power
    method, and first rate of Adam. It plays 50,000 rounds; in fewer, the rate falls in a straight
    line, and not by a tenth after each hundredth. It has ε = 0.3 and ξ = 10⁻⁶, which 32 bits can't
    resolve. ``seed`` draws the images that have labels, ten of each class, and the batches.
    Introduced in *Defenses*.
    """
    train, test = load("mnist"), load("mnist", split="test")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=draw)
    each = SETTINGS["labels"] // 10
    chosen = torch.cat([order[train.y[order] == k][:each] for k in range(10)])
    x, y = train.x[chosen], train.y[chosen]
    drawn = minibatches(train.x, size=SETTINGS["unlabelled"])

    def batches(generator: torch.Generator) -> Batch:
        return (x, y, *drawn(generator))

    def few_labels_loss(x: Tensor, y: Tensor, unlabelled: Tensor) -> Tensor:
        smoothness = virtual_adversarial_loss(
            network, unlabelled, SETTINGS["epsilon"], xi=SETTINGS["xi"]
        )
        return cross_entropy(network(x), y) + smoothness

    def error() -> float:
        renew_statistics(network, train.x[:10_000], SETTINGS["unlabelled"])
        return 1 - accuracy(network, test.x, test.y)

    history = play(
        [Player(network, few_labels_loss, lr=SETTINGS["lr"], schedule=lambda over: 1 - over)],
        batches, rounds=rounds, seed=seed, watch={"error": error},
        every=max(1, rounds // 10), checkpoint=checkpoint,
    )  # fmt: skip
    return {"rounds": list(history.rounds), "error": history.watched["error"].tolist()}


def record_few_labels(seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Record the errors of a network with 100 labels, a row for each of ``seeds``.

    Introduced in *Defenses*.
    """
    for seed in seeds:
        began, begun = time.perf_counter(), origin()
        torch.manual_seed(seed)
        network = normalised_mlp(SETTINGS["sizes"])
        kept = checkpoint_folder(Path(tempfile.gettempdir()), f"few-labels-{seed}", SETTINGS)
        measured = train_few_labels(network, seed, SETTINGS["rounds"], kept)
        seconds = time.perf_counter() - began
        row = begun | {"seconds": seconds, "seeds": [seed], "settings": SETTINGS}
        recorded.write_row(RECORD, f"seed {seed}", row | {"measured": measured})
        shutil.rmtree(kept)
