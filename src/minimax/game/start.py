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
    before = {name: value.clone() for name, value in _values(network).items()}
    frozen = _frozen(network)
    kept = [*before]
    try:
        for name, weight in network.named_parameters():
            if weight.requires_grad and "parametrizations" not in name:
                weight.fill_(torch.nan)  # what is NaN in the end was not drawn
        for prefix, module in reversed(list(network.named_modules())):
            if prefix not in frozen:
                _reset(prefix, module, type(network).__name__)
        for name, weight in network.named_parameters():
            if weight.requires_grad and weight.isnan().any():
                allowed = "part of a module with a method reset_parameters, which draws it anew"
                refuse("the weight", Words(f"{name} of {type(network).__name__}"), allowed)
        parts = {name: name.rpartition(".")[0] for name in before}
        flags = dict(network.named_parameters())
        kept = [
            name
            for name, part in parts.items()
            if part in frozen or (name in flags and not flags[name].requires_grad)
        ]
    finally:
        values = _values(network)
        for name in kept:
            values[name].copy_(before[name])


def _values(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _frozen(network: nn.Module) -> set[str]:
    """Return the parts all of whose weights are frozen; one without weights goes with its whole."""
    frozen: dict[str, bool] = {}
    for prefix, module in network.named_modules():
        weights = list(module.parameters())
        whole = frozen.get(prefix.rpartition(".")[0], False)
        frozen[prefix] = not any(w.requires_grad for w in weights) if weights else whole
    return {prefix for prefix, is_frozen in frozen.items() if is_frozen}


def _reset(prefix: str, module: nn.Module, network: str) -> None:
    """Call ``module.reset_parameters()``, if it has one, through its parametrisations."""
    if not parametrize.is_parametrized(module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        return
    names = list(module.parametrizations)  # type: ignore[arg-type]
    told = f"{prefix}.{names[0]} of {network}".lstrip(".")
    if not hasattr(module, "reset_parameters"):
        allowed = "part of a module with a method reset_parameters, which draws it anew"
        refuse("the weight", Words(told), allowed)
    with parametrize.cached():  # the rule draws into what is cached
        module.reset_parameters()  # type: ignore[operator]
        fresh = {name: getattr(module, name).clone() for name in names}
    try:
        for name, value in fresh.items():
            setattr(module, name, value)
    except (NotImplementedError, RuntimeError) as error:
        allowed = f"under a parametrisation with an inverse ({str(error).splitlines()[0]})"
        refuse("the weight", Words(told), allowed)
