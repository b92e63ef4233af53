"""How a game starts: new weights for a network, drawn as its own layers do."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from minimax.errors import Words, refuse


@torch.no_grad()
def reinitialise(network: nn.Module) -> None:
    """Draw new weights for ``network`` as its layers' own ``reset_parameters`` do.

    Parts come before the whole, so that a network with a rule of its own has the last word. A
    weight under a parametrisation of torch.nn.utils (weight_norm, orthogonal, …) is drawn as if
    it had none, and then parametrised. What is frozen, pretrained for example, stays as it is.
    Raises ValueError if there are weights that no such method draws; the network is then as it was.
    Introduced in *The minimax game*.
    """
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frozen = _frozen(network)
    for name, weight in network.named_parameters():
        if weight.requires_grad and "parametrizations" not in name:
            weight.fill_(torch.nan)  # what is NaN in the end was not drawn
    for module in reversed(list(network.modules())):
        if hasattr(module, "reset_parameters"):
            _reset(module)
    missed = [
        name for name, w in network.named_parameters() if w.requires_grad and bool(w.isnan().any())
    ]
    network.load_state_dict(before if missed else {k: before[k] for k in frozen}, strict=False)
    if missed:
        allowed = "part of a module with a method reset_parameters, which draws it anew"
        refuse("the weight", Words(f"{missed[0]} of {type(network).__name__}"), allowed)


def _frozen(network: nn.Module) -> list[str]:
    """Return the names of frozen weights, and of the buffers of parts that are frozen."""
    names = []
    for prefix, module in network.named_modules():
        own = list(module.named_parameters(prefix, recurse=False))
        names += [name for name, weight in own if not weight.requires_grad]
        if own and not any(weight.requires_grad for _, weight in own):
            names += [name for name, _ in module.named_buffers(prefix, recurse=False)]
    return names


def _reset(module: nn.Module) -> None:
    """Call ``module.reset_parameters()``, through its parametrisations if it has some."""
    if not parametrize.is_parametrized(module):
        module.reset_parameters()  # type: ignore[operator]
        return
    names = list(module.parametrizations)  # type: ignore[arg-type]
    with parametrize.cached():  # the rule draws into what is cached
        module.reset_parameters()  # type: ignore[operator]
        fresh = {name: getattr(module, name).clone() for name in names}
    for name, value in fresh.items():
        setattr(module, name, value)
