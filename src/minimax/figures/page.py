"""``show`` and ``explore``: the only two ways for a figure to leave a cell.

A figure becomes inline SVG in which black is the page's own text colour, on a transparent ground:
one picture for light and dark themes, in the book, in Jupyter and in Colab, with nothing to load.
Beside it goes a still for viewers that show no such HTML, as GitHub's, and its text alternative.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.axis import Tick
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.spines import Spine
from matplotlib.text import Text
from PIL import Image

from minimax.claims import number
from minimax.errors import Words, refuse

COLOURS = ["#3b82c4", "#d9822b", "#2a9d5c", "#d1495b", "#8e6bbf", "#7f8c8d"]  # 3:1 on both grounds
# A reader's own style may be for dark grounds; what such a style changes is matplotlib's own here.
STYLE = {key: plt.rcParamsDefault[key] for key in plt.style.library["dark_background"]} | {
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
    "savefig.bbox": None,
    "svg.fonttype": "none",  # text stays text: smaller, sharp, and it can be selected
    "svg.hashsalt": "minimax",  # the same figure gives the same file
    "svg.image_inline": True,
    "text.usetex": False,
}
plt.rcParams.update(STYLE)
LARGEST = 3_000_000  # bytes of one figure
LARGEST_EXPLORABLE = 1_500_000
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# What may be rounded to a thousandth of a point; not "transform", whose scale multiplies.
GEOMETRY = set("cx cy d dx dy height points r rx ry style viewBox width x x1 x2 y y1 y2".split())


def show(figure: Figure, *, alt: str) -> None:
    """Display ``figure`` with its text alternative, legible on light and dark pages.

    ``alt`` says what a reader who can't see the figure should know. Raises ValueError if it is
    shorter than ten characters or the figure larger than 3 MB, TypeError if ``figure`` is no
    matplotlib figure. Introduced in *How to use this book*.
    """
    picture, still = _svg(figure, alt), _still(figure)
    plt.close(figure)
    markup = f'<figure style="margin:0">{_or_still(picture, still, alt)}</figure>'
    if (size := len(markup.encode())) > LARGEST:
        raise ValueError(
            f"The figure has {size / 1e6:.1f} MB; it has to stay below {LARGEST / 1e6:g} MB: draw "
            "fewer points or smaller images, or give what has many parts rasterized=True."
        )
    _display(markup, still, alt, alt)


def explore(
    draw: Callable[..., Figure],
    *,
    alt: Callable[..., str],
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, int] | None = None,
    **axes: Iterable[Any],
) -> None:
    """Display a figure that the reader explores along one or two axes, without a kernel.

    Each keyword in ``axes`` names an axis and lists its values; ``draw`` and ``alt`` are called
    with one value of each, by name, and return that frame's figure and text alternative. ``labels``
    replaces an axis's name beside its slider, ``start`` its first position (default: the middle).
    All frames are drawn now and stand in the page, which needs no network; without scripts the
    one at the start is a plain picture. Raises ValueError for no axis or more than two, for one
    that is empty or no list of values, for a start or a label of no axis, or when the result is
    larger than 1.5 MB. Introduced in *How to use this book*.
    """
    if not 1 <= len(axes) <= 2:
        raise ValueError(f"explore got {len(axes)} axes ({', '.join(axes)}); it takes one or two.")
    lists: dict[str, list[Any]] = {}
    for name, values in axes.items():
        if not isinstance(values, Iterable):
            refuse(name, values, "a list of the values on this axis")
        lists[name] = list(values)
        if not lists[name]:
            raise ValueError(f"{name} is an empty axis; it has to hold at least one value.")
    for name, position in (start or {}).items():
        if name not in lists or position not in range(len(lists[name])):
            refuse("start", start, "a position, counted from 0, for axes that are given")
    if unknown := sorted(set(labels or {}) - set(lists)):
        refuse("labels", Words(f"given for {unknown[0]!r}"), f"for {' or '.join(lists)}")
    first = {name: len(values) // 2 for name, values in lists.items()} | dict(start or {})
    shown, frames, alts, still = 0, [], [], ""
    for name, values in lists.items():
        shown = shown * len(values) + first[name]
    for index, chosen in enumerate(itertools.product(*lists.values())):
        named = dict(zip(lists, chosen, strict=True))
        alts.append(alt(**named))
        figure = draw(**named)
        frames.append(_svg(figure, alts[-1]))
        still = _still(figure) if index == shown else still
        plt.close(figure)
    text = f"{alts[shown]} (One of {len(frames)} pictures; sliders choose.)"
    markup = _explorable(frames, shown, lists, labels or {}, first, still, text)
    if (size := len(markup.encode())) > LARGEST_EXPLORABLE:
        raise ValueError(
            f"The explorable figure has {size / 1e6:.1f} MB; it has to stay below "
            f"{LARGEST_EXPLORABLE / 1e6} MB: use fewer values ({len(frames)} frames) or smaller "
            "images."
        )
    _display(markup, still, text, alts)


def _display(markup: str, still: str, text: str, alt: str | list[str]) -> None:
    bundle = {"text/html": markup, "image/png": still, "text/plain": text}
    display(bundle, raw=True, metadata={"minimax_alt": alt})


def _or_still(picture: str, still: str, alt: str) -> str:
    """Return ``picture`` with its still beside it, which is seen where HTML is sanitized.

    JupyterLab does so in a notebook that it does not trust. SVG and ``template`` go, and what is
    inside them stays: the labels without their axes, and the still. So the picture is ``hidden``,
    which stays, and shown by a style, which goes.
    """
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{still}"/>'
    shown = 'hidden="hidden" style="display:flow-root!important"'
    return f"<template>{image}</template><div {shown}>{picture}</div>"


def _still(figure: Figure) -> str:
    """Return ``figure`` as PNG in base64, on its own ground."""
    file = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=80)
    return base64.b64encode(file.getvalue()).decode()


def _svg(figure: Figure, alt: str) -> str:
    """Return ``figure`` as inline SVG."""
    if not isinstance(figure, Figure):
        raise TypeError(f"figure is {type(figure).__name__}; it has to be a matplotlib Figure.")
    if not isinstance(alt, str) or len(alt.strip()) < 10:
        raise ValueError(f"alt is {alt!r}; it has to say in words what the figure shows.")
    inks = _inks(figure)
    file = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):  # a style would leak into the page
                element.remove(child)
        # Text is left as it is, but for the line breaks between elements.
        element.text, element.tail = (
            part if part is None or part.strip() or "\n" not in part else "\n"
            for part in (element.text, element.tail)
        )
        attributes = [(name.replace(LINK, "xlink:"), value) for name, value in element.items()]
        element.attrib = {name: _tidied(name, value, inks) for name, value in attributes}
        element.tag = element.tag.removeprefix(SVG)
    _make_ids_own(root)
    width = float(root.attrib.pop("width").removesuffix("pt")) * 4 / 3
    del root.attrib["height"]
    root.attrib = {
        "xmlns": SVG[1:-1],
        "xmlns:xlink": LINK[1:-1],
        "role": "img",
        "aria-label": alt,
        "fill": "currentColor",
        "style": f"width:100%;max-width:{width:.0f}px;height:auto;stroke-linejoin:round",
        **root.attrib,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _inks(figure: Figure) -> set[str]:
    """Return the colours that mean the page's text colour; prepare a figure of another style.

    In one made for a dark ground it is white, and black is a colour of the data. Text that is
    nearly black counts as black. Where the ground is any but white, text, spines and ticks in a
    shade of grey take the ink, and the grid is faint.
    """
    for text in figure.findobj(Text):
        text.set_usetex(False)
        if max(to_rgb(text.get_color())) < 0.3:  # near black, which a dark page would swallow
            text.set_color("#000000")
    patches = [figure.patch, *(axes.patch for axes in figure.axes)]
    grounds = {to_hex(patch.get_facecolor()) for patch in patches}
    ink = "#ffffff" if sum(to_rgb(figure.get_facecolor())) < 1.5 else "#000000"
    if grounds != {"#ffffff"}:
        _take_ink(figure, ink)
    for legend in figure.findobj(Legend):
        frame = legend.get_frame()
        if to_hex(frame.get_facecolor()) in grounds:
            frame.set_facecolor("none")
    return {ink}


def _take_ink(figure: Figure, ink: str) -> None:
    def grey(colour: Any) -> bool:
        return len({round(channel, 2) for channel in to_rgb(colour)}) == 1

    for text in figure.findobj(Text):
        if grey(text.get_color()):
            text.set_color(ink)
    for spine in figure.findobj(Spine):
        if grey(spine.get_edgecolor()):
            spine.set_edgecolor(ink)
    for tick in figure.findobj(Tick):
        for line in (tick.tick1line, tick.tick2line):
            line.set_markeredgecolor(ink)
        tick.gridline.set(color=ink, alpha=0.25)


def _tidied(name: str, value: str, inks: set[str]) -> str:
    """Return an attribute's value: shorter, in the page's colour, and with fonts to fall back."""
    if value.startswith("data:image/png;base64,"):
        return _smaller(value)
    if name in GEOMETRY:
        value = re.sub(r"-?\d+\.\d{4,}", lambda found: _rounded(found[0]), value)
    if name in ("style", "fill", "stroke"):
        value = re.sub("|".join(rf"{ink}\b" for ink in inks), "currentColor", value)
        value = value.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return " ".join(value.split()) if name in ("d", "points") else value


def _rounded(text: str) -> str:
    return f"{float(text):.3f}".rstrip("0").rstrip(".")


def _make_ids_own(root: ElementTree.Element) -> None:
    """Give the figure ids that no other figure on the page has, and drop those without use."""
    own = "m" + hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:8]
    ids = {element.get("id") for element in root.iter()}
    used: set[str] = set()

    def renamed(found: re.Match[str]) -> str:
        if found[2] not in ids:  # a link to elsewhere on the page
            return found[0]
        used.add(found[2])
        return f"{found[1]}{own}-{found[2]}{found[3]}"

    for element in root.iter():
        for name, value in element.items():
            pattern = r"^(#)(.+)()$" if name == "xlink:href" else r"(url\(#)(.+?)(\))"
            element.set(name, re.sub(pattern, renamed, value))
    for element in root.iter():
        if (name := element.attrib.pop("id", "")) in used:
            element.set("id", f"{own}-{name}")


def _smaller(link: str) -> str:
    """Return the embedded PNG, or the same picture as WebP where that is a third smaller."""
    png = base64.b64decode(link.partition(",")[2])
    file = io.BytesIO()
    image = Image.open(io.BytesIO(png))
    large = len(png) > 20_000  # a photograph: what little is lost can't be seen
    image.save(file, "WEBP", lossless=not large, quality=85, method=4)
    kind, data = ("webp", file.getvalue()) if file.tell() < len(png) * 2 / 3 else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _explorable(
    frames: Sequence[str],
    shown: int,
    axes: Mapping[str, Sequence[Any]],
    labels: Mapping[str, str],
    first: Mapping[str, int],
    still: str,
    alt: str,
) -> str:
    key = "explore-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:10]
    pictures = "".join(
        f"<div data-frame{'' if index == shown else ' hidden'}>{frame}</div>"
        for index, frame in enumerate(frames)
    )
    sliders = "".join(
        f'<label for="{key}-{name}" style="text-align:right">'
        f"{html.escape(labels.get(name, name.replace('_', ' ')))}</label>"
        f'<input type="range" id="{key}-{name}" min="0" max="{len(values) - 1}" step="1" '
        f'value="{first[name]}" style="width:100%;min-height:2.2em;touch-action:manipulation" '
        "data-lm-suppress-shortcuts>"  # in JupyterLab the arrows would move the notebook
        f'<output for="{key}-{name}" style="min-width:4em"></output>'
        for name, values in axes.items()
    )
    texts = json.dumps([[number(value) for value in values] for values in axes.values()])
    texts = texts.replace("</", "<\\/")  # no value may end the script
    return f"""<figure data-explore="{key}" style="margin:0">
{_or_still(f'<div aria-live="polite">{pictures}</div>', still, alt)}
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
