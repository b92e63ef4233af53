"""The large matrix products of a traced round, by oneDNN.

On processors that are not Intel's they take half the time that MKL's take, which torch calls.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule

LARGE = 2**22  # multiplications in a product; below, calling takes what is saved

aten, ops = torch.ops.aten, torch.ops.minimax


def _product(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return a b + bias; of stacks, one product after the other."""
    if a.dim() == 2:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    out = _shaped(bias, a, b)
    for place, one, other in zip(out.unbind(), a.unbind(), b.unbind(), strict=True):
        place.copy_(_product(None, one, other))
    return out


def _shaped(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-1])


if not hasattr(ops, "product"):  # the package may be loaded twice
    _library = torch.library.Library("minimax", "FRAGMENT")
    _library.define("product(Tensor? bias, Tensor a, Tensor b) -> Tensor")
    _library.impl("product", _product, "CPU")
    _library.impl("product", _shaped, "Meta")


def use_faster(program: GraphModule) -> None:
    """Let the large products in ``program``, in 32 bits on a CPU, be computed so.

    Introduced in *The minimax game*.
    """
    kinds = {aten.mm.default, aten.bmm.default, aten.addmm.default}
    on = torch.backends.mkldnn.is_available()
    for node in program.graph.nodes:
        if on and node.target in kinds and not node.kwargs:
            *bias, a, b = node.args
            x, y = a.meta["val"], b.meta["val"]
            plain = x.device.type == "cpu" and x.dtype == torch.float32
            plain &= x.stride(-1) == 1 and (not bias or bias[0].meta["val"].dim() == 1)
            if plain and x.shape[-2:].numel() * y.shape[-1] >= LARGE:
                node.target, node.args = ops.product.default, (*(bias or [None]), a, b)
