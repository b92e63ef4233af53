"""Evading the classifiers of before deep learning: naive Bayes (2004) and the SVM (2013).

Introduced in *Adversarial examples*.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.naive_bayes import BernoulliNB
from sklearn.svm import SVC
from torch import Tensor, nn

from minimax.attacks.gradient import BALLS
from minimax.errors import Words, check_choice, check_count, check_number, refuse


class Camouflage(NamedTuple):
    """The cheapest way past a filter: the message that results and what it cost.

    Introduced in *Adversarial examples*.
    """

    words: np.ndarray  # (W,) booleans
    cost: float  # ∞ if no set of changes gets past; ``words`` is the message unchanged then


def log_odds(spam_filter: BernoulliNB) -> tuple[np.ndarray, float]:
    """Return w (W,) and b such that log P(spam | x)/P(ham | x) = w·x + b for binary x.

    Naive Bayes is linear in the words; ``spam_filter`` has to be fitted on two classes, spam being
    the second. Raises ValueError otherwise. Introduced in *Adversarial examples*.
    """
    if len(spam_filter.classes_) != 2:
        refuse(
            "spam_filter", Words(f"of {len(spam_filter.classes_)} classes"), "fitted on two classes"
        )
    present = spam_filter.feature_log_prob_
    absent = np.log1p(-np.exp(present))
    w = (present - absent)[1] - (present - absent)[0]
    b = (absent.sum(1) + spam_filter.class_log_prior_) @ [-1, 1]
    return w, float(b)


def cheapest_camouflage(
    w: np.ndarray, b: float, words: np.ndarray, costs: np.ndarray
) -> Camouflage:
    """Return the cheapest set of word changes after which w·x + b < 0: Dalvi's adversary.

    Dalvi et al. (2004), section 4. Changing word i, adding it if it is absent and removing it if
    present, costs ``costs[i]`` (W,), a whole number, or ∞ if it may not be changed. To reach the
    needed gain at the least cost is a 0/1 knapsack; since costs are whole numbers, the table over
    costs solves it exactly. Raises ValueError for shapes or costs that do not fit. Introduced in
    *Adversarial examples*.
    """
    words = np.asarray(words).astype(bool)
    if not w.shape == words.shape == costs.shape:
        refuse("words", words.shape, f"of the shape of w and costs, {w.shape} and {costs.shape}")
    gains = np.where(words, w, -w)  # how far a change moves the message towards ham
    useful = np.flatnonzero((gains > 0) & np.isfinite(costs))
    if not np.array_equal(costs[useful], np.rint(costs[useful])) or (costs[useful] < 1).any():
        refuse("costs", costs[useful].tolist(), "whole numbers of at least 1, or infinite")
    needed = float(w @ words + b)
    if needed < 0:
        return Camouflage(words, 0.0)
    if gains[useful].sum() <= needed:
        return Camouflage(words, np.inf)

    price = costs[useful].astype(int)
    # No more is ever needed than what the greedy choice by gain per cost pays.
    order = np.argsort(-gains[useful] / price)
    enough = np.searchsorted(gains[useful][order].cumsum(), needed, side="right")
    most = int(price[order][: enough + 1].sum())
    best = np.zeros(most + 1)  # best[c]: the largest gain that c buys from the words so far
    bought = np.zeros((len(useful), most + 1), dtype=bool)
    for k, (gain, cost) in enumerate(zip(gains[useful], price, strict=True)):
        if cost <= most:
            with_it = best[: most + 1 - cost] + gain
            bought[k, cost:] = with_it > best[cost:]
            best[cost:] = np.maximum(best[cost:], with_it)
    total = left = int(np.flatnonzero(best > needed)[0])
    changed = words.copy()
    for k in reversed(range(len(useful))):
        if bought[k, left]:
            changed[useful[k]] ^= True
            left -= price[k]
    return Camouflage(changed, float(total))


class AwareFilter:
    """A naive Bayes filter that models the optimal adversary of the plain one.

    Dalvi et al. (2004), section 5, sum P(x′ | spam) over all x′ that the adversary would turn into
    x. We estimate that distribution instead: the training spam is camouflaged by the adversary,
    and naive Bayes is fitted to three classes: ham, spam as it was, spam in camouflage.
    Introduced in *Adversarial examples*.
    """

    def __init__(self, words: np.ndarray, y: np.ndarray, camouflaged: np.ndarray) -> None:
        """Fit to ``words`` (N, W), ``y`` (N,) (1 is spam), and the spam rows in camouflage."""
        changed = camouflaged[(camouflaged != words[y == 1]).any(1)]
        classes = np.concatenate([y, np.full(len(changed), 2)])
        self.model = BernoulliNB().fit(np.concatenate([words, changed]), classes)

    def predict(self, words: np.ndarray) -> np.ndarray:
        """Return 1 for each message (N, W) that is spam, in camouflage or not."""
        return (self.model.predict_proba(words)[:, 1:].sum(1) > 0.5).astype(int)


class SVM(nn.Module):
    """The decision function of a fitted two-class SVC, differentiable in its input.

    g(x) = Σᵢ αᵢyᵢ k(x, xᵢ) + b with a linear or RBF kernel; flattens its input. Raises ValueError
    for another kernel or more classes. Introduced in *Adversarial examples*.
    """

    support: Tensor
    dual: Tensor

    def __init__(self, svc: SVC) -> None:
        """Take the support vectors over from ``svc``."""
        super().__init__()
        self.kernel = check_choice("svc.kernel", svc.kernel, ("linear", "rbf"))
        if len(svc.classes_) != 2:
            refuse("svc", Words(f"of {len(svc.classes_)} classes"), "fitted on two classes")
        self.register_buffer("support", torch.tensor(svc.support_vectors_, dtype=torch.float32))
        self.register_buffer("dual", torch.tensor(svc.dual_coef_[0], dtype=torch.float32))
        self.bias, self.gamma = float(svc.intercept_[0]), float(svc._gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return g(x) (N,): positive for the second class."""
        x = x.flatten(1)
        if self.kernel == "linear":
            return x @ (self.dual @ self.support) + self.bias
        exact = "donot_use_mm_for_euclid_dist"  # the product form loses digits of near points
        square = torch.cdist(x, self.support, compute_mode=exact) ** 2
        return (-self.gamma * square).exp() @ self.dual + self.bias


def evade(
    g: Callable[[Tensor], Tensor],
    x: Tensor,
    benign: Tensor,
    distance: float | Sequence[float],
    *,
    norm: str = "l1",
    density: float = 0.0,
    bandwidth: float = 10.0,
    steps: int = 100,
    step_size: float = 0.1,
) -> Tensor:
    """Return images within ``distance`` of ``x`` that descend g − λ·density of benign points.

    Biggio et al. (2013), algorithm 1 and equation 3: minimise
    g(x) − (λ/n)·Σᵢ exp(−‖x − xᵢ‖₁/h) by gradient steps of length ``step_size``, projected onto
    the ball of radius ``distance`` and onto the box [0, 1]. g maps (N, d) to (N,), negative being
    benign; ``x`` is (N, d), ``benign`` (n, d). λ is ``density``, h ``bandwidth``; ``norm`` "l1" or
    "l2"; distances are in pixels of [0, 1]. For a sequence of D distances the result is (D, N, d).
    Raises ValueError for arguments out of range. Introduced in *Adversarial examples*.
    """
    check_choice("norm", norm, ("l1", "l2"))
    check_count("steps", steps)
    check_number("density", density)
    check_number("bandwidth", bandwidth, at_least=1e-12)
    check_number("step_size", step_size, at_least=1e-12)
    if x.dim() != 2 or benign.dim() != 2 or x.shape[1] != benign.shape[1]:
        refuse("benign", tuple(benign.shape), f"of shape (n, d), x being {tuple(x.shape)}")
    if isinstance(distance, Sequence):
        found = [
            evade(g, x, benign, d, norm=norm, density=density, bandwidth=bandwidth, steps=steps,
                  step_size=step_size)
            for d in distance
        ]  # fmt: skip
        return torch.stack(found)
    check_number("distance", distance)

    radius = torch.full((len(x), 1), float(distance))
    point = x.detach()
    for _ in range(steps):
        point = point.detach().requires_grad_()
        objective = g(point).sum()
        if density:
            kernel = (-torch.cdist(point, benign, p=1) / bandwidth).exp()
            objective = objective - density * kernel.mean(1).sum()
        (gradient,) = torch.autograd.grad(objective, point)
        moved = point.detach() - step_size * BALLS["l2"].direction(gradient)
        point = _project_l1(moved, x, radius) if norm == "l1" else BALLS["l2"].project(
            moved, x, radius
        )  # fmt: skip
    return point.detach()


def _project_l1(point: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """Return the nearest points with ‖point − x‖₁ ≤ radius, clipped to the box.

    Duchi et al. (2008), figure 1: shrink all coordinates by the same amount.
    """
    delta = point - x
    size, _ = delta.abs().sort(dim=1, descending=True)
    excess = (size.cumsum(1) - radius) / torch.arange(1, size.shape[1] + 1)
    last = (size > excess).sum(1, keepdim=True).clamp(min=1) - 1
    shrink = excess.gather(1, last).clamp(min=0)
    return (x + delta.sign() * (delta.abs() - shrink).clamp(min=0)).clamp(0, 1)
