"""The built book, opened in a browser: make test builds it before it runs these."""

import functools
import http.server
import json
import os
import re
import shutil
import threading

import nbformat
import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from conftest import ROOT, browser_path
from minimax.chapters import chapters

HTML = ROOT / "_build" / "html"
PAGES = "index how_to_use_this_book how_claims_are_chosen notation results references".split()
PAGES += chapters()


def chrome(folder, *arguments):
    options = webdriver.ChromeOptions()
    options.binary_location = browser_path()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1400,1000",
        f"--user-data-dir={folder}", *arguments,
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if not (browser_path() and shutil.which("chromedriver")):
        if os.environ.get("CI"):
            pytest.fail("CI has to have chromium and chromedriver; .ci/run installs them.")
        pytest.skip("no chromium with chromedriver on this machine")
    driver = chrome(tmp_path_factory.mktemp("chrome"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site():
    """The built book on loopback."""
    assert (HTML / "index.html").exists(), "build the book first: make book"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    class Patient(http.server.ThreadingHTTPServer):
        request_queue_size = (
            128  # a page asks for dozens of files at once; five may wait by default
        )

    handler = functools.partial(Quiet, directory=str(HTML))
    httpd = Patient(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


@pytest.fixture(scope="module", params=chapters())
def chapter(driver, site, request):
    driver.get(f"{site}/book/{request.param}.html")
    return driver


def theme(driver, name):
    driver.execute_script(
        "document.documentElement.dataset.mode = document.documentElement.dataset.theme ="
        " arguments[0]", name
    )  # fmt: skip


def test_the_front_page_leads_into_the_book(driver, site):
    driver.get(f"{site}/index.html")
    link = "article a[href='adversarial_examples.html']"
    WebDriverWait(driver, 20).until(lambda d: d.find_elements(By.CSS_SELECTOR, link))
    assert driver.current_url.endswith("/book/index.html")
    assert "Minimax" in driver.title


@pytest.mark.parametrize("page", PAGES)
def test_no_page_asks_the_network_or_logs_an_error(driver, site, page):
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(f"{site}/book/{page}.html")
    asked = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert asked
    outside = [url for url in asked if not url.startswith((site, "data:", "blob:", "chrome"))]
    assert outside == []
    errors = [e for e in driver.get_log("browser") if "favicon" not in e["message"]]
    assert [e["message"] for e in errors if e["level"] == "SEVERE"] == []


def test_equations_are_typeset(chapter):
    typeset = "mjx-container"
    WebDriverWait(chapter, 20).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, typeset)) > 2)


def test_every_picture_has_a_text_alternative(chapter):
    pictures = chapter.find_elements(By.CSS_SELECTOR, ".cell_output figure svg")
    assert len(pictures) > 20
    for picture in pictures:
        assert picture.get_attribute("role") == "img"
        assert len(picture.get_attribute("aria-label")) >= 10
    for image in chapter.find_elements(By.CSS_SELECTOR, "article img"):
        assert image.get_attribute("alt")


def shown(figure):
    return [f for f in figure.find_elements(By.CSS_SELECTOR, "[data-frame]") if f.is_displayed()]


def explorable(chapter):
    found = chapter.find_elements(By.CSS_SELECTOR, "figure[data-explore]")
    assert len(found) >= 2
    return found


def reveal(chapter, element):
    chapter.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)


def test_sliders_are_labelled_and_answer_the_keyboard(chapter):
    for figure in explorable(chapter):
        (before,) = shown(figure)
        for slider in figure.find_elements(By.CSS_SELECTOR, "input[type=range]"):
            name = slider.get_attribute("id")
            (label,) = figure.find_elements(By.CSS_SELECTOR, f"label[for='{name}']")
            (output,) = figure.find_elements(By.CSS_SELECTOR, f"output[for='{name}']")
            assert label.text
            reveal(chapter, slider)
            text = output.text
            key = Keys.ARROW_LEFT if int(slider.get_attribute("value")) > 0 else Keys.ARROW_RIGHT
            slider.send_keys(key)
            (after,) = shown(figure)
            assert after != before
            assert output.text and output.text != text
            assert slider.get_attribute("aria-valuetext") == output.text
            before = after


def test_a_tap_moves_a_slider(chapter):
    figure = explorable(chapter)[0]
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(Keys.HOME)
    reveal(chapter, slider)
    box = chapter.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.right - 8, b.y + b.height / 2]",
        slider,
    )
    chapter.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    chapter.execute_cdp_cmd(
        "Input.synthesizeTapGesture", {"x": box[0], "y": box[1], "gestureSourceType": "touch"}
    )
    chapter.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert slider.get_attribute("value") == slider.get_attribute("max")


CONTRAST = """
const parse = c => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const all = [...document.querySelectorAll('.cell_output figure svg')];
const seen = all.filter(svg => svg.checkVisibility());
return seen.map(svg => {
  let ground = svg;
  let colour = [0, 0, 0, 0];
  while (ground && (colour = parse(getComputedStyle(ground).backgroundColor))[3] === 0)
    ground = ground.parentElement;
  const [a, b] = [light(parse(getComputedStyle(svg).color)), light(colour)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_in_figures_is_legible_in_both_themes(chapter, name):
    theme(chapter, name)
    contrasts = chapter.execute_script(CONTRAST)
    assert len(contrasts) >= 5
    assert min(contrasts) >= 7


def test_without_scripts_there_is_a_plain_picture(driver, tmp_path):
    source = (HTML / "book/adversarial_examples.html").read_text("utf-8")
    figure = re.search(r"<figure data-explore.*?</figure>", source, flags=re.DOTALL)[0]
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{figure}", "utf-8")
    plain = chrome(tmp_path / "profile", "--blink-settings=scriptEnabled=false")
    try:
        plain.get((tmp_path / "page.html").as_uri())
        picture = tmp_path / "picture.png"
        plain.save_screenshot(str(picture))
    finally:
        plain.quit()
    from PIL import Image

    colours = Image.open(picture).convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 5_000  # a photograph


@pytest.mark.parametrize("name", chapters())
def test_explorable_figures_stay_small(name):
    source = (HTML / f"book/{name}.html").read_text("utf-8")
    figures = re.findall(r"<figure data-explore.*?</figure>", source, flags=re.DOTALL)
    assert len(figures) >= 2
    assert max(len(figure.encode()) for figure in figures) <= 1_500_000


def article(name):
    """What a page says, read from its file: a busy machine's browser answers before it has all."""
    return BeautifulSoup((HTML / f"{name}.html").read_text("utf-8"), "html.parser").article


@pytest.mark.parametrize("name", chapters())
def test_the_results_page_lists_every_claim_and_table(name):
    page = article(f"book/{name}")
    marks = [mark for mark in page.select(".cell_output p > strong") if mark.text == "✓"]
    claims = [mark.next_sibling.text.strip() for mark in marks]
    captions = [caption.text.strip() for caption in page.select(".cell_output caption")]
    written = re.findall(r'caption=((?:\s*"[^"]+")+)', compared(name))
    recorded = ["".join(re.findall(r'"([^"]+)"', caption)) for caption in written]
    results = article("book/results")
    parts = [part.text for part in results.select("section section")]
    assert len(claims) >= 12
    assert set(recorded) & set(captions)
    for sentence in recorded:
        assert sentence in results.text
    for mark, sentence in zip(marks, claims, strict=True):
        _, _, kind = mark.find_next("span").text.partition(" · ")
        place = ("", "invariant", "recorded").index(kind) + 1
        assert [sentence in part for part in parts].index(True) == place


def compared(name):
    """The cells of a chapter that set a table beside the papers'."""
    source = (ROOT / f"book/{name}.md").read_text("utf-8")
    return "".join(re.findall(r"recorded\.compare\(.*?```", source, flags=re.DOTALL))


def test_no_launch_button_without_an_address(chapter):
    config = (ROOT / "_config.yml").read_text("utf-8")
    buttons = chapter.find_elements(By.CSS_SELECTOR, ".dropdown-launch-buttons")
    assert bool(buttons) == ('url: ""' not in config)


def test_the_page_fits_a_phone(chapter):
    chapter.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        width = chapter.execute_script("return document.querySelector('article').scrollWidth")
        assert width <= 390
    finally:
        chapter.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("chapter", chapters())
def test_a_chapter_is_saved_with_its_results_or_as_text(chapter):
    """As files: without ``download`` a browser would show them in a tab."""
    page = (HTML / f"book/{chapter}.html").read_text("utf-8")
    links = re.findall(r'<a href="\.\./(_sources/[^"]*)"( download)?', page)
    assert links == [(f"_sources/book/{chapter}{end}", " download") for end in (".ipynb", ".md")]
    notebook = nbformat.read(HTML / links[0][0], as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stills = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(stills) == len(re.findall(r"<figure (style|data-explore)=", page)) > 4
    assert not any("<IPython" in o.get("data", {}).get("text/plain", "") for o in outputs)
    assert all(len(still.data["text/plain"]) > 20 for still in stills)
    assert len([o for o in outputs if "minimax_claim" in o.get("metadata", {})]) >= 12
    text = (HTML / links[1][0]).read_text("utf-8")
    assert text == (ROOT / f"book/{chapter}.md").read_text("utf-8")


def test_a_page_is_not_endless(chapter):
    """At 1,280 pixels wide a chapter is at most 30,000 tall."""
    before = chapter.get_window_size()
    chapter.set_window_size(1280, 1000)
    try:
        assert chapter.execute_script("return document.body.scrollHeight") <= 30_000
    finally:
        chapter.set_window_size(before["width"], before["height"])
