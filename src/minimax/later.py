"""Modules that are loaded once they are used: torchvision and scikit-learn take seconds.

Floor 0; called by data, attacks, defenses, dcgan.
"""

import importlib
from typing import Any


class Later:
    """The module ``name``, loaded when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
