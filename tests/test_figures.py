import re

import matplotlib.pyplot as plt
import pytest
import torch

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

    def noise(k):
        return figures.image_grid(torch.rand(1, 3, 500, 500), columns=1)

    with pytest.raises(ValueError, match=r"has \d\.\d MB; it has to stay below 1.5 MB"):
        figures.explore(noise, k=list(range(12)), alt=lambda k: "Coloured noise.")


def test_image_grid_outlines_and_texts():
    images = torch.rand(6, 1, 8, 8)
    outlined = torch.tensor([True, False, False, True, False, False])
    fig = figures.image_grid(
        images, columns=3, top=["a", "b", "c"], left=["r", "s"], outlined=outlined
    )
    (axes,) = fig.axes
    assert len(axes.patches) == 2
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c", "r", "s"}
    plt.close(fig)
    with pytest.raises(ValueError, match=r"images is \(6, 8, 8\)"):
        figures.image_grid(images[:, 0], columns=3)


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
