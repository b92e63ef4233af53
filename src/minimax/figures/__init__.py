"""Figures that fit light and dark pages, carry alt text, and can be explored without a kernel."""

from minimax.figures.draw import flow, image_grid, perturbation, timeline
from minimax.figures.show import explore, show

__all__ = ["explore", "flow", "image_grid", "perturbation", "show", "timeline"]
