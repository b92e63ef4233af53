"""Figures that fit light and dark pages, carry alt text, and can be explored without a kernel."""

from minimax.figures.draw import image_grid, perturbation, timeline
from minimax.figures.show import explore, show

__all__ = ["explore", "image_grid", "perturbation", "show", "timeline"]
