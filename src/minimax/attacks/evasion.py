"""Evading the classifiers of before deep learning: naive Bayes (2004) and the SVM (2013).

Introduced in *Adversarial examples*.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.naive_bayes import BernoulliNB
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from minimax.attacks.gradient import BALLS, Epsilon, for_each_epsilon
from minimax.errors import (
    Words,
    check_choice,
    check_count,
    check_number,
    check_pixels,
    described,
    refuse,
)

CELLS = 2**30  # of the knapsack's table, a byte each


class Camouflage(NamedTuple):
    """The cheapest way past a filter: the message that results and what it cost.

    Introduced in *Adversarial examples*.
    """

    words: np.ndarray  # (W,) booleans
    cost: float  # ∞ if no set of changes gets past; ``words`` is the message unchanged then


def log_odds(spam_filter: BernoulliNB) -> tuple[np.ndarray, float]:
    """Return w (W,) and b such that log P(spam | x)/P(ham | x) = w·x + b for binary x.

    Naive Bayes is linear in the words; ``spam_filter`` has to be fitted on two classes, spam being
    the second. Raises ValueError otherwise, and if a word is certain (alpha = 0), for then w is
    infinite. Introduced in *Adversarial examples*.
    """
    check_is_fitted(spam_filter)
    if len(spam_filter.classes_) != 2:
        refuse(
            "spam_filter", Words(f"of {len(spam_filter.classes_)} classes"), "fitted on two classes"
        )
    present = spam_filter.feature_log_prob_
    with np.errstate(divide="ignore", invalid="ignore"):
        absent = np.log1p(-np.exp(present))
        w = (present - absent)[1] - (present - absent)[0]
        b = (absent.sum(1) + spam_filter.class_log_prior_) @ [-1, 1]
    if not (np.isfinite(w).all() and np.isfinite(b)):
        got = Words("certain of a word: its probability is 0 or 1")
        refuse("spam_filter", got, "fitted with smoothing, alpha > 0")
    return w, float(b)


def cheapest_camouflage(
    w: np.ndarray, b: float, words: np.ndarray, costs: np.ndarray
) -> Camouflage:
    """Return the cheapest set of word changes after which w·x + b < 0: Dalvi's adversary.

    Dalvi et al. (2004), section 4. Changing word i, adding it if it is absent and removing it if
    present, costs ``costs[i]`` (W,), a whole number, or ∞ if it may not be changed. To reach the
    needed gain at the least cost is a 0/1 knapsack; since costs are whole numbers, the table over
    costs solves it exactly. Raises ValueError for shapes or costs that do not fit, for NaN, and for
    a table of more than 2³⁰ cells. Introduced in *Adversarial examples*.
    """
    w, costs, words = np.asarray(w), np.asarray(costs), np.asarray(words).astype(bool)
    if not w.shape == words.shape == costs.shape:
        refuse("words", words.shape, f"of the shape of w and costs, {w.shape} and {costs.shape}")
    if not (np.isfinite(w).all() and np.isfinite(b)):
        refuse("(w, b)", Words("with NaN or infinity"), "finite")
    if np.isnan(costs).any():
        refuse("costs", Words("with NaN"), "whole numbers of at least 1, or infinite")
    gains = np.where(words, w, -w)  # how far a change moves the message towards ham
    useful = np.flatnonzero((gains > 0) & np.isfinite(costs))
    if not np.array_equal(costs[useful], np.rint(costs[useful])) or (costs[useful] < 1).any():
        refuse("costs", costs[useful].tolist(), "whole numbers of at least 1, or infinite")
    needed = float(w @ words + b)
    if needed < 0:
        return Camouflage(words, 0.0)
    if gains[useful].sum() <= needed:
        return Camouflage(words, np.inf)

    price = costs[useful]
    # No more is ever needed than what the greedy choice by gain per cost pays; it has to get past
    # by more than the rounding of a sum in another order.
    order = np.argsort(-gains[useful] / price)
    past = needed + 1e-9 * (1 + abs(needed))
    enough = np.searchsorted(gains[useful][order].cumsum(), past, side="right")
    most = int(price[order][: enough + 1].sum())
    if len(useful) * (most + 1) > CELLS:
        got = Words(f"up to {price.max():g}, for a table of {len(useful)} words × {most + 1} costs")
        refuse("costs", got, f"smaller: at most {CELLS} cells (count in a coarser unit)")
    best = np.zeros(most + 1)  # best[c]: the largest gain that c buys from the words so far
    bought = np.zeros((len(useful), most + 1), dtype=bool)
    for k, (gain, real_cost) in enumerate(zip(gains[useful], price, strict=True)):
        cost = int(real_cost)
        if cost <= most:
            with_it = best[: most + 1 - cost] + gain
            bought[k, cost:] = with_it > best[cost:]
            best[cost:] = np.maximum(best[cost:], with_it)
    if best[most] <= needed:  # all changes together get there by rounding alone
        return Camouflage(words, np.inf)
    total = left = int(np.argmax(best > needed))
    changed = words.copy()
    for k in reversed(range(len(useful))):
        if bought[k, left]:
            changed[useful[k]] ^= True
            left -= int(price[k])
    return Camouflage(changed, float(total))


class AwareFilter:
    """A naive Bayes filter that models the optimal adversary of the plain one.

    Dalvi et al. (2004), section 5, sum P(x′ | spam) over all x′ that the adversary would turn into
    x. We estimate that distribution instead: the training spam is camouflaged by the adversary,
    and naive Bayes is fitted to three classes: ham, spam as it was, spam in camouflage.
    Introduced in *Adversarial examples*.
    """

    def __init__(self, words: np.ndarray, y: np.ndarray, camouflaged: np.ndarray) -> None:
        """Fit to ``words`` (N, W), ``y`` (N,) (1 is spam), and the spam rows in camouflage.

        Raises ValueError if ``camouflaged`` has another shape than the spam rows.
        """
        y = np.asarray(y)
        if camouflaged.shape != words[y == 1].shape:
            allowed = f"of the shape of the spam, {words[y == 1].shape}"
            refuse("camouflaged", camouflaged.shape, allowed)
        changed = camouflaged[(camouflaged != words[y == 1]).any(1)]
        classes = np.concatenate([y, np.full(len(changed), 2)])
        self.model = BernoulliNB().fit(np.concatenate([words, changed]), classes)

    def predict(self, words: np.ndarray) -> np.ndarray:
        """Return 1 for each message (N, W) that is spam, in camouflage or not."""
        return (self.model.predict_proba(words)[:, 1:].sum(1) > 0.5).astype(int)


class SVM(nn.Module):
    """The decision function of a fitted two-class SVC, differentiable in its input.

    g(x) = Σᵢ αᵢyᵢ k(x, xᵢ) + b with a linear or RBF kernel; flattens its input and computes in
    the precision of its buffers. Raises ValueError for another kernel, more classes, or an input
    of another width. Introduced in *Adversarial examples*.
    """

    support: Tensor
    dual: Tensor

    def __init__(self, svc: SVC) -> None:
        """Take the support vectors over from ``svc``, fitted on dense or on sparse data."""
        super().__init__()
        check_is_fitted(svc)
        self.kernel = check_choice("svc.kernel", svc.kernel, ("linear", "rbf"))
        if len(svc.classes_) != 2:
            refuse("svc", Words(f"of {len(svc.classes_)} classes"), "fitted on two classes")
        support, dual = (
            part.toarray() if issparse(part) else part
            for part in (svc.support_vectors_, svc.dual_coef_)
        )
        self.register_buffer("support", torch.tensor(support, dtype=torch.float32))
        self.register_buffer("dual", torch.tensor(dual[0], dtype=torch.float32))
        self.bias, self.gamma = float(svc.intercept_[0]), float(svc._gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return g(x) (N,): positive for the second class."""
        x = x.flatten(1).to(self.support.dtype)
        if x.shape[1] != self.support.shape[1]:
            got = Words(f"of {x.shape[1]} pixels an image")
            refuse("x", got, f"of {self.support.shape[1]}, as the support vectors are")
        if self.kernel == "linear":
            return x @ (self.dual @ self.support) + self.bias
        exact = "donot_use_mm_for_euclid_dist"  # the product form loses digits of near points
        square = torch.cdist(x, self.support, compute_mode=exact) ** 2
        return (-self.gamma * square).exp() @ self.dual + self.bias


@for_each_epsilon
def evade(
    g: Callable[[Tensor], Tensor],
    x: Tensor,
    benign: Tensor,
    epsilon: Epsilon,
    *,
    norm: str = "l1",
    density: float = 0.0,
    bandwidth: float = 10.0,
    steps: int = 100,
    step_size: float = 0.1,
) -> Tensor:
    """Return images within ``epsilon`` of ``x`` that descend g − λ·density of benign points.

    Biggio et al. (2013), algorithm 1 and equation 3: minimise
    g(x) − (λ/n)·Σᵢ exp(−‖x − xᵢ‖₁/h) by gradient steps of length ``step_size``, projected onto
    the ball of radius ``epsilon`` and onto the box [0, 1]. g maps (N, d) to (N,), negative being
    benign; ``x`` is (N, d), ``benign`` (n, d). λ is ``density``, h ``bandwidth``; ``norm`` "l1" or
    "l2"; ε is in pixels of [0, 1] under that norm. For a sequence of E values of ε the result is
    (E, N, d). Raises ValueError for arguments out of range, and for a g that gives another shape,
    or NaN, or has no gradient. Introduced in *Adversarial examples*.
    """
    check_choice("norm", norm, ("l1", "l2"))
    steps = check_count("steps", steps)
    density = check_number("density", density)
    bandwidth = check_number("bandwidth", bandwidth, at_least=1e-12)
    step_size = check_number("step_size", step_size, at_least=1e-12)
    if x.dim() != 2 or benign.dim() != 2 or x.shape[1] != benign.shape[1]:
        refuse("benign", tuple(benign.shape), f"of shape (n, d), x being {tuple(x.shape)}")
    check_pixels("x", x)
    if density:
        check_pixels("benign", benign)
        benign = benign.to(x.dtype)
    radius = x.new_full((len(x), 1), check_number("epsilon", epsilon))
    point = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            value = g(point)
            if value.shape != (len(x),):
                got = Words(f"returning {described(value).text}")
                refuse("g", got, f"returning one value for each image, of shape ({len(x)},)")
            if not value.requires_grad:
                refuse("g", Words("without a gradient in x"), "differentiable")
            objective = value.sum()
            if density:
                kernel = (-torch.cdist(point, benign, p=1) / bandwidth).exp()
                objective = objective - density * kernel.mean(1).sum()
            (gradient,) = torch.autograd.grad(objective, point)
        finite = value.isfinite() & gradient.isfinite().all(1)
        if not finite.all():
            got = Words(f"NaN or infinite at image {int((~finite).nonzero()[0])}")
            refuse("g", got, "finite in [0, 1], as its gradient has to be")
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
    excess = (size.cumsum(1) - radius) / torch.arange(1, size.shape[1] + 1, device=x.device)
    last = (size > excess).sum(1, keepdim=True).clamp(min=1) - 1
    shrink = excess.gather(1, last).clamp(min=0)
    return (x + delta.sign() * (delta.abs() - shrink).clamp(min=0)).clamp(0, 1)
