"""Figures that fit light and dark pages, carry alt text, and can be explored without a kernel.

Floor 2; called by the book.
"""

from minimax.figures.draw import flow, image_grid, perturbation
from minimax.figures.page import explore, show

__all__ = ["explore", "flow", "image_grid", "perturbation", "show"]
