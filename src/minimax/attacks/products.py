"""A network that holds still, computed faster on a CPU: the same numbers, up to rounding.

An attack asks for logits and for gradients in the images, never in the weights. Then other ways to
the same sums pay: oneDNN's matrix products, twice as fast as MKL's on processors that are not
Intel's; images that lie channel after channel; and the gradient of a convolution whose images have
few channels as a product.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import ScriptModule
from torch.nn.functional import conv2d, fold, linear
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

FEW = 4  # the channels of a picture
SMALL, WORTH = 2**12, 2**20  # weights, multiplications; below, asking takes what is saved
ROWS = 32  # of a matrix; for fewer, laying out the weights takes what is saved


def faster(model: object) -> AbstractContextManager[Any]:
    """Return where linear layers and convolutions of ``model`` with constant weights are faster.

    What is no module, small, compiled or scripted is left as it is. Introduced in *Adversarial
    examples*.
    """
    parts = [*model.modules()] if isinstance(model, nn.Module) else []
    large = any(w.numel() >= SMALL for part in parts for w in part.parameters(recurse=False))
    foreign = any(isinstance(part, ScriptModule) or hasattr(part, "_orig_mod") for part in parts)
    inside = any(isinstance(mode, _Faster) for mode in _get_current_function_mode_stack())
    on = large and not foreign and not inside and torch.backends.mkldnn.is_available()
    return _Faster() if on else nullcontext()


class _Faster(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        # weights, and as oneDNN likes them laid out; both as they were at one time
        self.kept: dict[Tensor, tuple[tuple[int, int], Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            return func(*args, **kwargs)
        if func in (linear, conv2d) and _pays(*args[:3]):
            x, weight, *others = args
            laid_out = self._laid_out(weight)
            if func is linear:
                return _Product.apply(x, weight, laid_out, *others)
            few = x.shape[1] == weight.shape[1] <= FEW and len(others) == 5
            few = few and not isinstance(others[2], str)  # padding="same"
            return (_Picture.apply if few else conv2d)(x, laid_out, *others)
        if func is Tensor.view and args[0].dim() == 4 and not args[0].is_contiguous():
            # there is no view of what lies channel after channel; writes to a copy would be lost
            args[0].data = args[0].data.contiguous()
        return func(*args)

    def _laid_out(self, weight: Tensor) -> Tensor:
        now = weight._version, weight.data_ptr()
        if weight not in self.kept or self.kept[weight][0] != now:
            self.kept[weight] = now, _laid_out(weight)
        return self.kept[weight][1]


def _laid_out(weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return weight.t().contiguous().t()
    return weight.clone(memory_format=torch.channels_last)  # anew even where one layout is both


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether the product is large, its weights constant here, and all on the CPU."""
    if x.dim() != weight.dim() or x.numel() * weight[:, :1].numel() < WORTH:
        return False
    if x.dim() == 2 and len(x) < ROWS:
        return False
    learning = weight.requires_grad or (bias is not None and bias.requires_grad)
    held = isinstance(weight, nn.Parameter) and not (learning and torch.is_grad_enabled())
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, weight))
    inside = torch.is_autocast_enabled("cpu") or torch._C._functorch.peek_interpreter_stack()
    return held and plain and not inside and forward_ad._current_level < 0


class _Product(torch.autograd.Function):
    """x wᵀ + b, by oneDNN; it likes weights by_input, and their transpose on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, by_input: Tensor, *bias: Any) -> Tensor:
        ctx.save_for_backward(weight, by_input)
        return torch.ops.mkldnn._linear_pointwise(x, by_input, *(bias or [None]), "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, by_input = ctx.saved_tensors
        return _Product.apply(gradient, by_input.t(), weight.t()), None, None, None


class _Picture(torch.autograd.Function):
    """A convolution of images of few channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Any, *how: Any) -> Tensor:
        stride, padding, dilation, _ = how
        ctx.save_for_backward(kernel)
        ctx.how = x.shape[2:], kernel.shape[2:], dilation, padding, stride
        return conv2d(x, kernel, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (kernel,) = ctx.saved_tensors
        patches = kernel.flatten(1).t() @ gradient.flatten(2)
        return fold(patches, *ctx.how), *[None] * 6
