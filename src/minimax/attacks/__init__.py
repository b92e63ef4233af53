"""Attacks: the perturbation moves, the classifier is held fixed.

Floor 3; called by the book, robust, reproduce.
"""

from minimax.attacks.gradient import fgsm, input_gradient, pgd
from minimax.attacks.minimal import carlini_wagner, deepfool, jsma, lbfgs

__all__ = ["carlini_wagner", "deepfool", "fgsm", "input_gradient", "jsma", "lbfgs", "pgd"]
