"""The notebooks and texts as their viewers have them: JupyterLab, GitHub, Colab, VS Code.

Links are resolved by each viewer's rules; a chapter runs in a real JupyterLab, in the browser.
"""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import test_book
from conftest import ROOT
from minimax.chapters import chapters

driver = test_book.driver  # the fixture
MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.use(dollarmath_plugin).use(front_matter_plugin)
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("book/*.md"), *ROOT.glob("*.md"), *ROOT.glob(".github/*.md"),
                 ROOT / "src/minimax/README.md"]
)  # fmt: skip
HIDDEN = {"hide-input", "hide-cell", "remove-input"}


# --- links ----------------------------------------------------------------------------------------


class Marks(HTMLParser):
    """Ids, names and links of HTML."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.names, self.links = set(), set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.names.add(given.get("name"))
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


class Markdown:
    """Links and headings of Markdown, and the marks of the HTML in it."""

    def __init__(self, text):
        tokens = MARKDOWN.parse(text)
        self.parts = [part for token in tokens for part in [token, *(token.children or [])]]
        html = [part.content for part in self.parts if part.type in ("html_block", "html_inline")]
        self.marks = Marks("".join(html))
        attributes = [(part.attrs.get("href"), part.attrs.get("src")) for part in self.parts]
        self.links = [link for pair in attributes for link in pair if link] + self.marks.links
        pairs = itertools.pairwise(tokens)
        titles = [content for mark, content in pairs if mark.type == "heading_open"]
        self.headings = ["".join(part.content for part in title.children) for title in titles]


def written(path):
    """The Markdown of a text or of a notebook."""
    text = path.read_text("utf-8")
    return Markdown(cells_of(nbformat.reads(text, 4)) if path.suffix == ".ipynb" else text)


def cells_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def in_jupyterlab(heading):
    """JupyterLab's createHeaderId; it compares it with the fragment as a browser has it, quoted."""
    return heading.replace(" ", "-")


def on_a_page(heading):
    """What MyST and GitHub make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def tracked():
    """The files and folders that GitHub has."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return {*files, *(parent for file in files for parent in file.parents)}


def assert_outside(link):
    assert re.fullmatch(r"https://[\w.-]+\.\w+(/[^\s<>\"\\]*)?(?<![.,;:])", link), link


def assert_inside(link, path, tracked, of_heading):
    """``link`` in ``path`` leads to a file of the repository, and to a heading of it."""
    file, _, fragment = link.partition("#")
    target = (path.parent / unquote(file)).resolve() if file else path
    assert target in tracked, link
    if fragment:
        text = written(target)
        assert fragment in {*map(of_heading, text.headings), *text.marks.ids}, link


@pytest.mark.parametrize("name", chapters())
def test_links_of_a_notebook_lead_somewhere_in_jupyterlab_and_on_github(name, tracked):
    path = ROOT / f"book/{name}.ipynb"
    links = written(path).links
    assert len(links) > 3
    for link in links:
        if ":" in link.partition("#")[0]:
            assert_outside(link)
        else:
            assert_inside(link, path, tracked, in_jupyterlab)


@pytest.mark.parametrize("name", chapters())
def test_links_within_a_notebook_lead_to_an_id_in_vs_code_and_to_a_name_in_colab(name):
    text = written(ROOT / f"book/{name}.ipynb")
    for link in text.links:
        if link.startswith("#"):
            assert link[1:] in text.marks.ids & text.marks.names


@pytest.mark.parametrize("name", chapters())
def test_with_an_address_no_link_of_a_notebook_wants_the_files_beside_it(
    name, tracked, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "book/_tools"))
    sync, address = importlib.import_module("sync"), "https://github.com/someone/minimax"
    monkeypatch.setattr(sync, "address", lambda: address)
    path = ROOT / f"book/{name}.md"
    notebook = nbformat.reads(sync.paired(path, {}), 4)
    links = [link for link in Markdown(cells_of(notebook)).links if not link.startswith("#")]
    here = f"{address}/blob/main/"
    assert any(link.startswith(here) for link in links)
    for link in links:
        assert_outside(link)
        if link.startswith(here):
            assert_inside(link.removeprefix(here), ROOT / "README.md", tracked, in_jupyterlab)


@pytest.mark.parametrize("name", TEXTS)
def test_links_of_a_text_lead_somewhere(name, tracked):
    path = ROOT / name
    for link in written(path).links:
        if ":" in link.partition("#")[0]:
            assert_outside(link)
        else:
            assert_inside(link, path, tracked, on_a_page)


def test_links_of_the_pages_lead_somewhere():
    """Also those that the theme makes; Sphinx looks at those of the text alone."""
    built = test_book.HTML.resolve()
    pages = {
        path: Marks(path.read_text("utf-8"))
        for path in [*built.glob("*.html"), *built.glob("book/*.html")]
    }
    assert len(pages) > len(chapters()), "build the book first: make book"
    for page, marks in pages.items():
        for link in marks.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            file, _, fragment = link.partition("#")
            target = (page.parent / unquote(file.partition("?")[0])).resolve() if file else page
            assert target.exists(), (page.name, link)
            if fragment and target in pages:
                assert unquote(fragment) in pages[target].ids, (page.name, link)


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", chapters())
def test_hidden_code_is_folded_in_every_viewer_and_solutions_have_a_title(name):
    notebook = nbformat.read(ROOT / f"book/{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        jupyter = cell.metadata.get("jupyter", {})
        hidden = bool(tags & HIDDEN)
        assert jupyter.get("source_hidden", False) == hidden
        assert cell.metadata.get("cellView") == ("form" if hidden else None)
        assert jupyter.get("outputs_hidden", False) == ("solution" in tags)
        if "solution" in tags:
            assert cell.source.startswith("# @title Solution\n")
            assert set(cell.metadata["mystnb"].values()) == {"Solution"}


@pytest.mark.parametrize("name", chapters())
def test_solutions_have_their_title_on_the_page(name):
    html = (test_book.HTML / f"book/{name}.html").read_text("utf-8")
    notebook = nbformat.read(ROOT / f"book/{name}.ipynb", as_version=4)
    solutions = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
    titles = re.findall(r'<p class="collapsed admonition-title">(.*?)</p>', html)
    assert titles.count("Solution") == len(solutions)
    assert "Show code cell content" not in titles


@pytest.mark.parametrize("name", chapters())
def test_a_notebook_has_no_syntax_that_only_myst_knows(name):
    parts = written(ROOT / f"book/{name}.ipynb").parts
    for part, following in itertools.pairwise(parts):
        assert not (part.type == "fence" and part.info.startswith("{")), part.info
        if part.type == "text":
            assert not re.match(r":{3}|%|\+{3}|\(\S+\)=$", part.content), part.content
            role = following.type == "code_inline" and re.search(r"\{[\w:-]+\}$", part.content)
            assert not role, part.content


# --- a real JupyterLab ----------------------------------------------------------------------------

CHAPTER = "remedies"  # the quickest
PANEL = (
    "const panel = [...window.jupyterapp?.shell.widgets('main') ?? []].find(one => one.context);"
)


def scripted(driver, code, *arguments):
    """What ``code``, which knows the notebook as ``panel``, returns."""
    return driver.execute_script(PANEL + code, *arguments)


def opened(driver, address):
    driver.get(address)
    ready = "return Boolean(panel?.context.isReady && panel.sessionContext.isReady)"
    WebDriverWait(driver, 90).until(lambda d: scripted(d, ready))
    scripted(driver, "jupyterapp.shell.activateById(panel.id)")
    return driver


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of what JupyterLab shows, so that nothing is written here.

    Its links lead to the files beside it, also once the book has an address.
    """
    folder = tmp_path_factory.mktemp("home")
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    address = config["repository"]["url"]
    (folder / "book").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in chapters():
        text = (ROOT / f"book/{name}.ipynb").read_text("utf-8")
        text = text.replace(f"({address}/blob/main/", "(../") if address else text
        (folder / f"book/{name}.ipynb").write_text(text, "utf-8")
    (folder / f"book/{CHAPTER}.md").write_bytes((ROOT / f"book/{CHAPTER}.md").read_bytes())
    (folder / "src/minimax").mkdir(parents=True)
    shutil.copy(ROOT / "src/minimax/gans.py", folder / "src/minimax")
    return folder


@pytest.fixture(scope="module")
def server(home):
    """JupyterLab, started as README says, and its address of a notebook."""
    pytest.importorskip("jupyterlab")
    line = r"^\.venv/bin/jupyter lab (.*?)book/\w+\.ipynb$"
    options = re.search(line, (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)[1].split()
    own = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(home / kind) for kind in ("SETTINGS", "WORKSPACES")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    own |= {"MINIMAX_SCALE": "quick", "MINIMAX_DATA": ""}
    settings = home / "SETTINGS/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}', "utf-8")
    command = [sys.executable, "-m", "jupyterlab", *options, f"book/{CHAPTER}.ipynb",
               "--no-browser", "--ServerApp.port=0", "--IdentityProvider.token=", "--allow-root",
               "--expose-app-in-browser"]  # fmt: skip
    with (home / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=home, env=os.environ | own, stderr=log)
    try:
        wait = WebDriverWait(home / "RUNTIME", 60)
        (running,) = wait.until(lambda folder: list(folder.glob("jpserver-*.json")))
        told = json.loads(running.read_text("utf-8"))
        root = Path(told["root_dir"])
        yield lambda path: f"{told['url']}lab/tree/{path.relative_to(root).as_posix()}?reset"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def lab(driver, server, home):
    """The chapter in JupyterLab after Run All Cells, and whether all of them ran."""
    opened(driver, server(home / f"book/{CHAPTER}.ipynb"))
    driver.set_script_timeout(300)
    driver.ran = driver.execute_async_script(
        "const done = arguments[0];"
        "jupyterapp.commands.execute('notebook:run-all-cells').then(done, e => done(String(e)))"
    )
    return driver


def test_all_cells_run_in_jupyterlab_and_no_error_is_logged(lab):
    assert lab.ran is True
    assert [e["message"] for e in lab.get_log("browser") if e["level"] == "SEVERE"] == []


def test_hidden_code_and_solutions_are_folded_in_jupyterlab(lab):
    cells = scripted(
        lab,
        "return panel.content.widgets.filter(cell => cell.model.type === 'code').map(cell => ({"
        "  tags: cell.model.getMetadata('tags') ?? [],"
        "  code: cell.node.querySelector('.cm-content') !== null,"
        "  line: cell.node.querySelector('.jp-Placeholder-content')?.textContent}))",
    )
    assert sum("hide-input" in cell["tags"] for cell in cells) > 10
    for cell in cells:
        assert cell["code"] != bool(HIDDEN & set(cell["tags"])), cell
        if "solution" in cell["tags"]:
            assert cell["line"] == "# @title Solution"


def explorables(lab):
    found = lab.find_elements(By.CSS_SELECTOR, "figure[data-explore]")
    assert len(found) >= 2
    return found


def test_sliders_show_another_picture_in_jupyterlab(lab):
    for figure in explorables(lab):
        slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
        test_book.reveal(lab, slider)
        (before,) = test_book.shown(figure)
        left = int(slider.size["width"] / 2) - 20
        ActionChains(lab).move_to_element_with_offset(slider, -left, 0).click().perform()
        (after,) = test_book.shown(figure)
        assert after != before
        assert slider.get_attribute("value") < slider.get_attribute("max")


def test_arrow_keys_move_the_slider_and_not_the_notebook(lab):
    slider = explorables(lab)[0].find_element(By.CSS_SELECTOR, "input[type=range]")
    test_book.reveal(lab, slider)
    ActionChains(lab).click(slider).perform()
    for key, step in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_LEFT, -1), (Keys.ARROW_UP, 1)):
        before = int(slider.get_attribute("value"))
        ActionChains(lab).send_keys(key).perform()
        assert int(slider.get_attribute("value")) == before + step
        assert lab.switch_to.active_element == slider


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_figures_are_legible_in_both_themes_of_jupyterlab(lab, theme, tmp_path):
    lab.execute_async_script(
        "const [theme, done] = arguments;"
        "jupyterapp.commands.execute('apputils:change-theme', {theme}).then(done)", theme
    )  # fmt: skip
    light = theme.endswith("Light")
    WebDriverWait(lab, 20).until(
        lambda d: (
            d.execute_script("return document.body.dataset.jpThemeLight") == str(light).lower()
        )
    )
    contrasts = lab.execute_script(test_book.CONTRAST.replace(".cell_output", ".jp-OutputArea"))
    assert len(contrasts) >= 5
    assert min(contrasts) >= 7
    test_book.reveal(lab, explorables(lab)[0])
    lab.save_screenshot(str(tmp_path / f"{theme}.png"))


def test_links_lead_to_headings_in_jupyterlab(lab):
    links = [link for link in written(ROOT / f"book/{CHAPTER}.ipynb").links if link[0] == "#"]
    assert "#How-is-it-cured?" in links
    for link in sorted(set(links)):
        anchor = lab.find_element(By.CSS_SELECTOR, f'.jp-RenderedMarkdown p a[href="{link}"]')
        heading = f'[data-jupyter-id="{link[1:]}"]:not(a)'

        def arrives(_, anchor=anchor, heading=heading):
            # Twice, perhaps: cells get their height when they come into view.
            test_book.reveal(lab, anchor)
            anchor.click()
            return WebDriverWait(lab, 3).until(
                lambda d: scripted(
                    d,
                    "const box = panel.content.node.querySelector('.jp-WindowedPanel-outer')"
                    ".getBoundingClientRect();"
                    "const at = panel.content.node.querySelector(arguments[0])"
                    ".getBoundingClientRect();"
                    "return at.bottom > box.top && at.top < box.bottom", heading
                )
            )  # fmt: skip

        WebDriverWait(lab, 20).until(arrives)


def test_links_lead_to_files_in_jupyterlab(lab):
    test_book.reveal(lab, lab.find_element(By.LINK_TEXT, "gans.py"))
    lab.find_element(By.LINK_TEXT, "gans.py").click()
    title = "return jupyterapp.shell.currentWidget?.title.label"
    WebDriverWait(lab, 20).until(lambda d: d.execute_script(title) == "gans.py")


def test_in_an_untrusted_notebook_the_still_is_seen(lab, server, home):
    path = home / f"book/{CHAPTER}.ipynb"
    lab.execute_async_script(PANEL + "const done = arguments[0]; panel.context.save().then(done)")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nNobody signed this."
    other = path.with_name("untrusted.ipynb")
    nbformat.write(notebook, other)
    opened(lab, server(other))
    code = "panel.content.widgets.filter(cell => cell.model.type === 'code')"
    assert not scripted(lab, f"return {code}.some(cell => cell.model.trusted)")
    figures = lab.find_elements(By.CSS_SELECTOR, ".jp-OutputArea figure")
    assert figures
    for figure in figures:
        (still,) = figure.find_elements(By.CSS_SELECTOR, "img")
        assert still.is_displayed() and still.get_attribute("alt")
        assert figure.text == ""  # no labels without their picture


def test_jupytext_does_not_pair_the_notebooks():
    """JupyterLab would show a chapter's text in place of its notebook, and write to both."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert "formats" not in settings.get("jupytext", {})
