"""One game on several processes, started by torchrun: each computes its share of every batch.

All processes draw the same batches from the same seed, so that together they play the game that
one process would play alone, up to rounding.
"""

import os
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from minimax.errors import refuse
from minimax.game.player import Player, processes
from minimax.scale import device


def start() -> torch.device:
    """Join the other processes if torchrun started this one; return the device to compute on.

    Alone that is torch's default device. Several processes take a GPU each, if MINIMAX_DEVICE does
    not say "cpu", and talk by NCCL; others by Gloo. Introduced in *DCGAN*.
    """
    if "WORLD_SIZE" not in os.environ:
        return torch.get_default_device()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = device("paper").type == "cuda"
    if cuda:
        torch.cuda.set_device(local)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def is_first() -> bool:
    """Return whether this process writes what all have computed. Introduced in *DCGAN*."""
    return processes() == 1 or distributed.get_rank() == 0


class _Loss(nn.Module):
    """A player's loss as a module of the player's networks, as DistributedDataParallel wants it."""

    def __init__(self, player: Player) -> None:
        super().__init__()
        self.networks, self.loss = nn.ModuleList(player.modules), player.loss  # type: ignore[arg-type]

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)


def joint_loss(player: Player) -> Callable[..., Tensor]:
    """Return the player's loss, with a gradient averaged over all processes.

    Introduced in *DCGAN*.
    """
    return DistributedDataParallel(_Loss(player), broadcast_buffers=False)


def average(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over all processes. Introduced in *DCGAN*."""
    if processes() > 1:
        distributed.all_reduce(values)
        values = values / processes()
    return values


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by mean and variance over the whole batch, whoever holds its parts.

    torch.nn.SyncBatchNorm does the same, and only on GPUs. Introduced in *DCGAN*.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps (N, channels, height, width)."""
        if not self.training or processes() == 1:
            return super().forward(x)
        axes = (0, 2, 3)  # in two passes: E[x²] − E[x]² can come out negative
        mean = all_reduce(x.float().mean(axes)) / processes()
        offset = x.float() - mean[:, None, None]
        variance = all_reduce(offset.square().mean(axes)) / processes()
        if self.track_running_stats:
            self._remember(mean, variance, x.numel() / x.shape[1] * processes())
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: float) -> None:
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        count_of = float(self.num_batches_tracked)  # type: ignore[arg-type]
        share = 1 / count_of if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)  # type: ignore[union-attr]
        self.running_var.lerp_(variance * count / (count - 1), share)  # type: ignore[union-attr]


def share_statistics(network: nn.Module) -> None:
    """Make the batch normalisations of ``network`` shared ones, in place. Introduced in *DCGAN*.

    On a GPU they become torch.nn.SyncBatchNorm, elsewhere SharedBatchNorm2d. Raises ValueError for
    one that is not two-dimensional.
    """
    on_gpu = any(value.is_cuda for value in chain(network.parameters(), network.buffers()))
    for part in network.modules():
        if type(part) is nn.BatchNorm2d and on_gpu:
            part.__class__ = nn.SyncBatchNorm  # type: ignore[assignment]
            part.process_group = None  # type: ignore[assignment]
        elif type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(
            part, (SharedBatchNorm2d, nn.SyncBatchNorm)
        ):
            refuse("network", type(part).__name__, "without normalisations but BatchNorm2d")
