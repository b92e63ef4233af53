import base64
import io
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from minimax import figures


def line():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], color="black")
    ax.set(xlabel="ε", title="<&>")
    return fig


@pytest.fixture
def markup(shown):
    """Return the HTML of what a function displays."""

    def displayed(function):
        shown.clear()
        function()
        ((data, _),) = shown
        return data["text/html"]

    return displayed


def test_show_demands_alt_text():
    with pytest.raises(TypeError, match="alt"):
        figures.show(line())
    with pytest.raises(ValueError, match="alt is 'plot'; it has to say in words"):
        figures.show(line(), alt="plot")
    with pytest.raises(TypeError, match="figure is str"):
        figures.show("no figure", alt="A rising line.")


def test_show_gives_one_picture_for_light_and_dark_pages(markup):
    html = markup(lambda: figures.show(line(), alt='A "rising" line.'))
    assert 'role="img" aria-label="A &quot;rising&quot; line."' in html
    assert "#000000" not in html and "currentColor" in html
    assert "#ffffff" not in html
    assert "<style" not in html  # it would leak into the page


SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(markup):
    """Return a figure as it is displayed: the element and its markup."""

    def shown_as(figure, alt="A rising line."):
        text = markup(lambda: figures.show(figure, alt=alt))
        return ElementTree.fromstring(text).find(f".//{SVG}svg"), text

    return shown_as


def texts(svg):
    return ["".join(element.itertext()).strip() for element in svg.iter(f"{SVG}text")]


def test_text_comes_out_as_it_was_written(drawn):
    title = 'ε = 0.00392 #000000 \'DejaVu Sans\' id="x" url(#a) href="#a" <style>&</style> 1.2345'
    alt = 'p = 0.000123456, #000000, id="x", url(#a): a line.'
    fig, ax = plt.subplots()
    ax.plot([0, 0.0004], [0, 1])
    ax.set_xticks([0, 0.0001, 0.0002, 0.0003, 0.0004])
    ax.set_title(title)
    svg, _ = drawn(fig, alt)
    assert title in texts(svg)
    assert texts(svg)[:5] == ["0.0000", "0.0001", "0.0002", "0.0003", "0.0004"]
    assert svg.get("aria-label") == alt


def test_a_formula_keeps_its_numbers(drawn):
    fig, ax = plt.subplots()
    ax.set_title(r"$\epsilon_1 = 0.00392$")
    svg, _ = drawn(fig)
    assert any("0.00392" in text.replace("\n", "").replace(" ", "") for text in texts(svg))


def test_geometry_is_rounded_to_a_thousandth_of_a_point(drawn):
    fig = plt.figure(figsize=(1, 1), layout="none")  # 72 points wide
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 72), ylim=(0, 72))
    ax.axis("off")
    ax.plot([1.23456, 65.98765], [2.00049, 3.9999])
    svg, text = drawn(fig)
    assert "M 1.235 70 L 65.988 68" in text
    digits = [value for element in svg.iter() for name, value in element.items()
              if name in ("d", "x", "y", "style", "width")]  # fmt: skip
    assert not any(re.search(r"\.\d{4}", value) for value in digits)


def test_the_scale_of_a_long_image_keeps_its_digits(drawn):
    """4,000 pixels on 300 points: a factor of 0.075 rounded to 0.08 would be 20 points too much."""
    image = np.zeros((10, 4000))
    image[:, ::2] = 1
    fig, ax = plt.subplots()
    ax.imshow(image, aspect="auto")
    ax.axis("off")
    svg, _ = drawn(fig)
    (element,) = svg.iter(f"{SVG}image")
    box = svg.find(f".//{SVG}clipPath/{SVG}rect")
    factor = re.search(r"(?:matrix|scale)\(([-\d.]+)", element.get("transform"))
    width = float(element.get("width")) * (float(factor[1]) if factor else 1)
    if box is not None:
        assert width == pytest.approx(float(box.get("width")), rel=2e-3)
    assert 200 < width < 440


def test_a_link_of_a_figure_goes_where_it_went(drawn):
    fig, ax = plt.subplots()
    ax.set_title("elsewhere", url="#a-section-of-the-page")
    ax.text(0, 0, "far away", url="https://example.org/#m")
    _, text = drawn(fig)
    assert 'href="#a-section-of-the-page"' in text and 'href="https://example.org/#m"' in text


DARK = {
    "in the context": lambda draw: _in_dark(draw, inside=True),
    "made there, shown outside": lambda draw: _in_dark(draw, inside=False),
}


def _in_dark(draw, inside):
    with plt.style.context("dark_background"):
        fig, ax = plt.subplots()
        ax.plot([0, 1], label="a")
        ax.set(title="T", xlabel="x")
        ax.legend(frameon=True)
        if inside:
            return draw(fig)
    return draw(fig)


@pytest.mark.parametrize("how", DARK)
def test_a_readers_dark_style_leaves_nothing_white_and_nothing_black(drawn, how):
    _, text = DARK[how](drawn)
    assert "#ffffff" not in text and "#000000" not in text
    assert text.count("currentColor") > 20


def test_a_readers_style_does_not_reach_the_page(drawn):
    style = {"svg.fonttype": "path", "savefig.facecolor": "white", "svg.image_inline": False,
             "savefig.bbox": "tight", "text.usetex": True}  # fmt: skip
    plain, _ = drawn(line())
    fig = line()
    with plt.rc_context({"legend.frameon": True}):
        framed, ax = plt.subplots()
        ax.plot([0, 1], label="a")
        ax.legend()
    with plt.rc_context(style):
        styled, _ = drawn(fig)
        late, text = drawn(line())
        _, legend = drawn(framed)
    assert ElementTree.tostring(styled) == ElementTree.tostring(plain)
    assert ["".join(part.split()) for part in texts(late)] == texts(plain)
    assert "#ffffff" not in text
    assert "#ffffff" not in legend


def test_the_package_resets_a_style_for_dark_grounds(python):
    done = python(
        "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt\n"
        "plt.style.use('dark_background'); plt.rcParams['text.usetex'] = True\n"
        "from minimax import figures\n"
        "f, a = plt.subplots(); a.set_title('T')\n"
        "print(a.title.get_color(), f.get_facecolor()[0], a.title.get_usetex())"
    )
    assert done.stdout.split() == ["black", "1.0", "False"], done.stderr


def scribble(corners):
    fig, ax = plt.subplots()
    ax.plot(*np.random.default_rng(0).random((2, corners)))
    return fig


def test_a_figure_of_more_than_three_megabytes_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"has \d\.\d MB; it has to stay below 3 MB.*rasterized"):
        figures.show(scribble(180_000), alt="A scribble.")


def test_a_figure_of_less_than_three_megabytes_is_shown(drawn):
    _, text = drawn(scribble(120_000))
    assert 2_000_000 < len(text) < 3_000_000


def test_many_points_drawn_as_an_image_are_few_bytes(drawn):
    fig, ax = plt.subplots()
    ax.plot(*np.random.default_rng(0).random((2, 20_000)), ".", rasterized=True)
    _, text = drawn(fig)
    assert len(text) < 300_000 and "data:image/" in text


def test_a_shown_figure_is_closed(markup):
    fig = line()
    markup(lambda: figures.show(fig, alt="A rising line."))
    assert not plt.fignum_exists(fig.number)


def test_the_same_figure_gives_the_same_markup(markup):
    def draw():
        return markup(lambda: figures.show(line(), alt="A rising line."))

    assert draw() == draw()


def test_ids_are_unique_and_every_reference_has_one(markup):
    def draw(k):
        fig, ax = plt.subplots()
        ax.plot([0, k])
        return fig

    html = markup(lambda: figures.explore(draw, k=[1, 2, 3], alt=lambda k: f"A line up to {k}."))
    ids = re.findall(r'<\w+[^>]* id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert references
    assert set(references) <= set(ids)


def test_explore_is_self_contained_and_labelled(markup):
    def draw(epsilon, digit):
        fig, ax = plt.subplots()
        ax.bar([0], [epsilon * digit])
        return fig

    options = {
        "labels": {"epsilon": "ε"},
        "start": {"epsilon": 1, "digit": 0},
        "alt": lambda epsilon, digit: f"A bar of {epsilon * digit:.1f}.",
    }
    html = markup(lambda: figures.explore(draw, epsilon=[0.1, 0.2], digit=[1, 2, 3], **options))
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html)
    assert html.count('type="range"') == 2
    for name in re.findall(r'<label for="([^"]+)"', html):
        assert f'<input type="range" id="{name}"' in html
    assert html.count("data-frame") - html.count("'[data-frame]'") == 6
    # Without scripts: exactly one picture, no dead controls.
    assert len(re.findall(r"<div data-frame>", html)) == 1
    assert re.search(r'<div data-frame><svg[^>]*aria-label="A bar of 0.2."', html)
    assert "<div data-controls hidden" in html


def test_explore_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"got 0 axes .* one or two"):
        figures.explore(line, alt=lambda: "A rising line.")
    for start in ({"k": 2}, {"j": 0}):
        with pytest.raises(ValueError, match=r"start is {'.': .}; it has to be a position"):
            figures.explore(lambda k: line(), k=[1, 2], start=start, alt=lambda k: "A rising line.")
    with pytest.raises(ValueError, match="k is an empty axis"):
        figures.explore(lambda k: line(), k=[], alt=lambda k: "A rising line.")

    with pytest.raises(ValueError, match="k is 3; it has to be a list of the values"):
        figures.explore(lambda k: line(), k=3, alt=lambda k: "A rising line.")
    with pytest.raises(ValueError, match="labels is given for 'q'; it has to be for k"):
        figures.explore(lambda k: line(), k=[1], labels={"q": "Q"}, alt=lambda k: "A rising line.")

    def noise(k):
        return figures.image_grid(torch.rand(1, 3, 500, 500), columns=1)

    with pytest.raises(ValueError, match=r"has \d\.\d MB; it has to stay below 1.5 MB"):
        figures.explore(noise, k=list(range(12)), alt=lambda k: "Coloured noise.")


def test_an_axis_may_be_a_generator(markup):
    html = markup(
        lambda: figures.explore(
            lambda k: line(), k=(k for k in (1, 2, 3)), alt=lambda k: f"A line with k = {k}."
        )
    )
    assert html.count("<svg") == 3 and 'max="2"' in html


def test_the_first_axis_turns_slowest(markup):
    """Frame 2a + b of axes of 3 and 2 values, as the page's script counts it."""
    html = markup(
        lambda: figures.explore(
            lambda a, b: line(),
            a=[0, 1, 2],
            b=[0, 1],
            start={"a": 1, "b": 0},
            alt=lambda a, b: f"A line with a = {a}, b = {b}.",
        )
    )
    alts = re.findall(r'<div data-frame( hidden)?><svg[^>]*aria-label="([^"]*)"', html)
    expected = [f"A line with a = {a}, b = {b}." for a in (0, 1, 2) for b in (0, 1)]
    assert [alt for _, alt in alts] == expected
    assert [index for index, (hidden, _) in enumerate(alts) if not hidden] == [2]


def test_image_grid_outlines_and_texts():
    images = torch.rand(6, 1, 8, 8)
    outlined = torch.tensor([True, False, False, True, False, False])
    fig = figures.image_grid(
        images, columns=3, top=["a", "b", "c"], left=["r", "s"], outlined=outlined
    )
    (axes,) = fig.axes
    assert len(axes.patches) == 2
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c", "r", "s"}
    gap = 2
    places = [patch.get_xy() for patch in axes.patches]
    assert places == [(gap - 1, gap - 1), (gap - 1, gap + 8 + gap - 1)]  # images 0 and 3
    assert axes.patches[0].get_width() == 9
    plt.close(fig)


@pytest.mark.parametrize("count", [1, 5])
def test_image_grid_shows_each_image_where_its_texts_are(count):
    images = torch.rand(count, 3, 8, 10)
    fig = figures.image_grid(images, columns=2, below=[str(k) for k in range(count)])
    (axes,) = fig.axes
    pixels, gap = np.asarray(axes.images[0].get_array()), 3
    for k, text in enumerate(axes.texts):
        x, y = gap + k % 2 * (10 + gap), gap + k // 2 * (8 + gap)
        assert np.allclose(pixels[y : y + 8, x : x + 10, :3], images[k].movedim(0, 2))
        assert text.get_position()[0] == x + 5 and y + 8 < text.get_position()[1] < y + 8 + gap
    assert pixels[..., 3].sum() == count * 80  # the gaps are transparent
    plt.close(fig)


IMAGES = [
    (torch.rand(6, 8, 8), r"images is \(6, 8, 8\) torch.float32; it has to be .* \(N, 1 or 3"),
    (torch.rand(6, 2, 8, 8), r"images is \(6, 2, 8, 8\)"),
    (torch.rand(6, 4, 8, 8), r"images is \(6, 4, 8, 8\)"),
    (torch.rand(6, 8, 8, 3), r"images is \(6, 8, 8, 3\)"),
    (torch.rand(0, 1, 8, 8), r"images is \(0, 1, 8, 8\)"),
    (torch.full((4, 1, 8, 8), 128, dtype=torch.uint8), "images is .*uint8.* a float tensor"),
    (torch.full((4, 1, 8, 8), -0.5), "images is between -0.5 and -0.5"),
    (torch.full((4, 1, 8, 8), 255.0), "images is between 255 and 255"),
    (torch.full((4, 1, 8, 8), float("nan")), "images is between nan"),
    (np.zeros((4, 1, 8, 8)), "images is ndarray"),
]


@pytest.mark.parametrize(("images", "message"), IMAGES)
def test_image_grid_refuses_what_is_no_batch_of_images_in_0_1(images, message):
    with pytest.raises(ValueError, match=message):
        figures.image_grid(images, columns=2)


@pytest.mark.parametrize(("images", "message"), IMAGES[1:5:3] + IMAGES[5:])
def test_perturbation_refuses_what_is_no_image_in_0_1(images, message):
    one = images[0] if len(images) else torch.rand(0, 8, 8)
    with pytest.raises(ValueError, match=r"images\[1\] is"):
        figures.perturbation([torch.rand(1, 8, 8), one], ["a", "b"], ["+"])


def test_rounding_is_no_reason_to_refuse_an_image():
    plt.close(figures.image_grid(torch.full((1, 1, 4, 4), 1.000001), columns=1))
    plt.close(figures.image_grid(torch.full((1, 3, 4, 4), -1e-6).half(), columns=1))


def test_image_grid_wants_a_text_for_each_image_row_and_column():
    images = torch.rand(5, 1, 8, 8)
    for name, given, number in (
        ("below", ["a"] * 4, "5, one per image"),
        ("left", ["a"], "2, one per row"),
        ("top", ["a"] * 2, "3, one per column"),
        ("outlined", torch.tensor([True]), "5, one per image"),
    ):
        with pytest.raises(ValueError, match=f"{name} is of length .*of length {number}"):
            figures.image_grid(images, columns=3, **{name: given})
    for columns in (0, 2.5, -1):
        with pytest.raises(ValueError, match="columns is"):
            figures.image_grid(images, columns=columns)
    fig = figures.image_grid(images, columns=np.int64(9), top=["a"] * 5)  # more than there are
    plt.close(fig)


def test_perturbation_wants_a_sign_between_two_images():
    image = torch.rand(1, 4, 4)
    with pytest.raises(ValueError, match="signs is"):
        figures.perturbation([image, image], ["a", "b"], ["+", "="])


def test_flow_draws_boxes_and_arrows_and_refuses_an_arrow_to_nowhere(markup):
    places = {"z": (0, 0), "G": (1, 0), "loss": (2, 0)}
    fig = figures.flow(places, ["z→G", "G→loss"], ["loss→G"], moving="G", colour="C2")
    html = markup(lambda: figures.show(fig, alt="From z through G to the loss, and back to G."))
    assert all(f">{name}<" in html for name in places)
    assert "stroke-dasharray" in html
    with pytest.raises(ValueError, match="an arrow is 'z→D'; it has to be 'a→b' between two of z"):
        figures.flow(places, ["z→D"], [], moving="G", colour="C2")
    plt.close("all")


@pytest.mark.parametrize(
    "style",
    ["dark_background", "seaborn-v0_8-darkgrid", "seaborn-v0_8-whitegrid", "ggplot", "bmh"],
)
def test_a_readers_own_style_leaves_no_white_ground_and_no_grey_text(markup, style):
    with plt.style.context(style):
        fig, axes = plt.subplots()
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("x", color="C0")
        axes.set_title("A title")
        fig.text(0.5, 0.01, "below")
        html = markup(lambda: figures.show(fig, alt="A rising line, in a style of the reader's."))
    assert "#ffffff" not in html
    for text in re.findall(r"<text[^>]*>", html):
        colours = re.findall(r"fill: ?(#[0-9a-f]{6})", text)
        assert all(len(set(re.findall("..", colour[1:]))) > 1 for colour in colours), text


def test_black_data_on_a_dark_ground_stay_black(markup):
    with plt.style.context("dark_background"):
        fig, axes = plt.subplots()
        axes.plot([0, 1], [0, 1], color="black")
        html = markup(lambda: figures.show(fig, alt="A black line on a dark ground."))
    assert "#000000" in html


def test_a_figure_leaves_its_cell_as_a_still_too(shown):
    """For viewers without such HTML; of an explorable figure, the frame that is seen first."""

    def draw(grey):
        figure = plt.figure(figsize=(1, 1), facecolor=str(grey))
        return figure

    figures.show(draw(0.2), alt="A square in dark grey.")
    figures.explore(draw, grey=[0.2, 0.4, 0.8], start={"grey": 1}, alt="A square, {grey}.".format)
    for (data, _), grey, words in zip(shown, (0.2, 0.4), ("dark grey.", "0.4."), strict=True):
        still = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("L")
        assert still.getextrema() == (round(255 * grey), round(255 * grey))
        assert words in data["text/plain"] and "<figure" in data["text/html"]
    assert "One of 3 pictures" in shown[1][0]["text/plain"]
    assert not plt.get_fignums()
