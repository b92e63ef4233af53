"""``show`` and ``explore``: the only two ways for a figure to leave a cell.

A figure becomes inline SVG in which black is the page's own text colour, on a transparent ground:
one picture for light and dark themes, in the book, in Jupyter and in Colab, with nothing to load.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image

from minimax.claims import number
from minimax.errors import refuse

COLOURS = ["#3b82c4", "#d9822b", "#2a9d5c", "#d1495b", "#8e6bbf", "#7f8c8d"]  # 3:1 on both grounds
STYLE = {
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.figsize": (6.0, 3.4),
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "image.cmap": "gray",
    "image.interpolation": "none",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "svg.fonttype": "none",  # text stays text: smaller, sharp, and it can be selected
    "svg.hashsalt": "minimax",  # the same figure gives the same file
}
plt.rcParams.update(STYLE)  # type: ignore[arg-type]
LARGEST = 1_500_000  # bytes of one explorable figure


def show(figure: Figure, *, alt: str) -> None:
    """Display ``figure`` with its text alternative, legible on light and dark pages.

    ``alt`` says what a reader who can't see the figure should know. Raises ValueError if it is
    shorter than ten characters, TypeError if ``figure`` is no matplotlib figure.
    Introduced in *How to use this book*.
    """
    markup = f'<figure style="margin:0">{_svg(figure, alt)}</figure>'
    display(HTML(markup), metadata={"minimax_alt": alt})


def explore(
    draw: Callable[..., Figure],
    *,
    alt: Callable[..., str],
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, int] | None = None,
    **axes: Sequence[Any],
) -> None:
    """Display a figure that the reader explores along one or two axes, without a kernel.

    Each keyword in ``axes`` names an axis and lists its values; ``draw`` and ``alt`` are called
    with one value of each, by name, and return that frame's figure and text alternative. ``labels``
    replaces an axis's name beside its slider, ``start`` its first position (default: the middle).
    All frames are drawn now and stand in the page, which needs no network; without scripts the
    one at the start is a plain picture. Raises ValueError for no axis or more than two, for an
    empty one, for a start that is no position of an axis, or when the result is larger than
    1.5 MB. Introduced in *How to use this book*.
    """
    if not 1 <= len(axes) <= 2:
        raise ValueError(f"explore got {len(axes)} axes ({', '.join(axes)}); it takes one or two.")
    for name, values in axes.items():
        if not len(values):
            raise ValueError(f"{name} is an empty axis; it has to hold at least one value.")
    for name, position in (start or {}).items():
        if name not in axes or position not in range(len(axes[name])):
            refuse("start", start, "a position, counted from 0, for axes that are given")
    first = {name: len(values) // 2 for name, values in axes.items()} | dict(start or {})
    frames, alts = [], []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        alts.append(alt(**chosen))
        frames.append(_svg(draw(**chosen), alts[-1]))
    markup = _explorable(frames, axes, labels or {}, first)
    if (size := len(markup.encode())) > LARGEST:
        raise ValueError(
            f"The explorable figure has {size / 1e6:.1f} MB; it has to stay below "
            f"{LARGEST / 1e6} MB: use fewer values ({len(frames)} frames) or smaller images."
        )
    display(HTML(markup), metadata={"minimax_alt": alts})


def _svg(figure: Figure, alt: str) -> str:
    """Return ``figure`` as inline SVG and close it."""
    if not isinstance(figure, Figure):
        raise TypeError(f"figure is {type(figure).__name__}; it has to be a matplotlib Figure.")
    if not isinstance(alt, str) or len(alt.strip()) < 10:
        raise ValueError(f"alt is {alt!r}; it has to say in words what the figure shows.")
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#000000\b", "currentColor", svg)
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    svg = re.sub(r"\s*\n\s*", "\n", re.sub(r"(\d\.\d{3})\d+", r"\1", svg))
    svg = re.sub(r'"data:image/png;base64,\s*([^"]+)"', _smaller, svg)
    # Several figures share a page: each needs ids of its own.
    own = "m" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda i: f' id="{own}-{i[1]}"' if i[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{own}-", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1]) * 4 / 3  # type: ignore[index]
    start = (
        f'<svg role="img" aria-label="{html.escape(alt)}" fill="currentColor" '
        f'style="width:100%;max-width:{width:.0f}px;height:auto;stroke-linejoin:round" '
    )
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    return start + svg[len("<svg") :].strip()


def _smaller(match: re.Match[str]) -> str:
    """Return the embedded PNG, or the same picture as WebP where that is a third smaller."""
    png = base64.b64decode(match[1])
    file = io.BytesIO()
    image = Image.open(io.BytesIO(png))
    large = len(png) > 20_000  # a photograph: what little is lost can't be seen
    image.save(file, "WEBP", lossless=not large, quality=85, method=4)
    kind, data = ("webp", file.getvalue()) if file.tell() < len(png) * 2 / 3 else ("png", png)
    return f'"data:image/{kind};base64,{base64.b64encode(data).decode()}"'


def _explorable(
    frames: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
    labels: Mapping[str, str],
    first: Mapping[str, int],
) -> str:
    key = "explore-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:10]
    sizes = [len(values) for values in axes.values()]
    shown = 0
    for name, size in zip(axes, sizes, strict=True):
        shown = shown * size + first[name]
    pictures = "".join(
        f"<div data-frame{'' if index == shown else ' hidden'}>{frame}</div>"
        for index, frame in enumerate(frames)
    )
    sliders = "".join(
        f'<label for="{key}-{name}" style="text-align:right">'
        f"{html.escape(labels.get(name, name.replace('_', ' ')))}</label>"
        f'<input type="range" id="{key}-{name}" min="0" max="{len(values) - 1}" step="1" '
        f'value="{first[name]}" style="width:100%;min-height:2.2em;touch-action:manipulation">'
        f'<output for="{key}-{name}" style="min-width:4em"></output>'
        for name, values in axes.items()
    )
    texts = json.dumps([[number(value) for value in values] for values in axes.values()])
    texts = texts.replace("</", "<\\/")  # no value may end the script
    return f"""<figure data-explore="{key}" style="margin:0">
<div aria-live="polite">{pictures}</div>
<div data-controls hidden style="display:none;grid-template-columns:max-content 1fr max-content;\
gap:.2em .8em;align-items:center;max-width:40em">{sliders}</div>
<script>
document.querySelectorAll('[data-explore="{key}"]:not([data-ready])').forEach(figure => {{
  const texts = {texts};
  const frames = figure.querySelectorAll('[data-frame]');
  const sliders = figure.querySelectorAll('input');
  const controls = figure.querySelector('[data-controls]');
  const update = () => {{
    let index = 0;
    sliders.forEach((slider, axis) => {{
      const text = texts[axis][slider.value];
      index = index * texts[axis].length + Number(slider.value);
      slider.nextElementSibling.textContent = text;
      slider.setAttribute('aria-valuetext', text);
    }});
    frames.forEach((frame, number) => {{ frame.hidden = number !== index; }});
  }};
  sliders.forEach(slider => slider.addEventListener('input', update));
  figure.dataset.ready = '';
  controls.hidden = false;
  controls.style.display = 'grid';
  update();
}});
</script></figure>"""
