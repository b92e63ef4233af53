"""Brings each notebook in line with its text source: ``make sync``.

The text is the source. The code of each notebook begins with two generated cells: one installs the
package where it is missing, as on Colab, and one says what the chapter takes. In notebooks, hidden
code and solutions are folded for JupyterLab and Colab, and links are written as those viewers
resolve them; the pages are built with the links of the text. Outputs are stripped, except those of
cells tagged ``nbval-check-output`` and the first figure as a still, which GitHub shows: they are
kept while the cell's code is unchanged, and ``--execute`` renews them.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient

BOOK = Path(__file__).parents[1]
CHECKED = "nbval-check-output"
INSTALL = """REPOSITORY = "{address}"  # set by make repository
try:
    from minimax import recorded  # there is another package of that name
except ImportError as error:
    if not REPOSITORY:
        raise ImportError(
            f"This book's package minimax-book is not installed ({error}). "
            "Clone the book and run `pip install .` in its folder."
        ) from None
    import sys
    !{sys.executable} -m pip install --quiet "minimax-book[serve] @ git+{REPOSITORY}"
    if get_ipython().user_ns["_exit_code"]:
        raise ImportError("pip did not install it, and says why above.") from None
    sys.modules.pop("minimax", None)  # what was found before"""
HEAD = "from minimax import recorded\n\nrecorded.head()"
LINK = re.compile(r"\]\(([^()\s]+)\)")
TITLES = {"install": "The book's package", "solution": "Solution"}


def sources() -> list[Path]:
    """Return the text of every chapter that has code, in the order of the table of contents."""
    toc = yaml.safe_load((BOOK.parent / "_toc.yml").read_text("utf-8"))
    files = [BOOK.parent / entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    paths = [file.with_suffix(".md") for file in files if file.suffix == ".ipynb"]
    return [path for path in paths if path.exists()]


def address() -> str:
    """Return the repository's address, "" if none is set."""
    settings = yaml.safe_load((BOOK.parent / "_config.yml").read_text("utf-8"))
    return settings["repository"]["url"]


def title(source: Path) -> str:
    """Return the title of a chapter."""
    return re.search(r"^# (.*)$", source.read_text("utf-8"), re.MULTILINE)[1]


def stored(path: Path) -> dict[str, list]:
    """Return the outputs that the notebook at ``path`` holds, by the code of their cell."""
    if not path.exists():
        return {}
    return outputs(nbformat.read(path, as_version=4))


def renewed(source: Path) -> dict[str, list]:
    """Return the outputs that the chapter has when it is executed now."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": BOOK}}).execute()
    return outputs(notebook)


def outputs(notebook: nbformat.NotebookNode) -> dict[str, list]:
    """Return the outputs to keep by the code of their cell: of the checked, and the first still."""
    found, pictured = {}, False
    for cell in notebook.cells:
        stills = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if CHECKED in cell.metadata.get("tags", []):
            for output in cell.outputs:
                output.pop("execution_count", None)
            found[bare(cell.source)] = cell.outputs
        elif stills and not pictured:
            data = {kind: stills[0].data[kind] for kind in ("image/png", "text/plain")}
            found[bare(cell.source)] = [nbformat.v4.new_output("display_data", data)]
            pictured = True
    return found


# --- the generated cells ----------------------------------------------------------------------


@cache
def introduced() -> dict[str, str]:
    """Return the title of the chapter that introduces each public name of the package."""
    found = {}
    for path in (BOOK.parent / "src/minimax").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                words = " ".join((ast.get_docstring(node) or "").split())
                if said := re.search(r"Introduced in \*(.*?)\*", words):
                    found[node.name] = said[1]
    return found


def uses(source: Path) -> list[str]:
    """Return the titles of the earlier chapters that introduce what ``source`` uses or links to."""
    text, names = source.read_text("utf-8"), set()
    for line in re.findall(r"^from minimax[\w.]* import (\([^)]*\)|.*)$", text, re.M):
        names |= set(re.findall(r"\w+", line))
    names |= set(re.findall(r"\b(?:gans|figures|recorded|stabilisers)\.(\w+)", text))
    from_there = {introduced().get(name) for name in names}
    chapters = sources()
    earlier = chapters[: chapters.index(source)]
    return [title(p) for p in earlier if title(p) in from_there or f"]({p.stem}.ipynb" in text]


def takes(source: Path) -> str:
    """Return what a chapter takes and which earlier ones it uses, as Markdown."""
    told = []
    for device, title in (("cpu", "two CPU cores"), ("gpu", "a GPU")):
        if one := timings(source).get(device):
            fetched = f"{one['downloads_mb']} MB" if one["downloads_mb"] else "nothing"
            memory = f"{one['memory_gb']:.1f} GB of memory, downloads {fetched}"
            told.append(f"on {title}: {one['seconds']:.0f} s, {memory} (measured {one['date']})")
        else:
            told.append(f"on {title}: not measured yet")
    lines = [f"Quick scale {'; '.join(told)}. No GPU is needed."]
    if used := uses(source):
        lines.append(f"Uses or refers to: {', '.join(used)}.")
    return "\n\n".join(lines)


def head(source: Path) -> list[nbformat.NotebookNode]:
    """Return what stands before the code of a chapter: what it takes, the install cell, the date.

    What it takes is text, so that it is read before anything runs.
    """
    install = nbformat.v4.new_code_cell(INSTALL.replace("{address}", address()))
    today = nbformat.v4.new_code_cell(HEAD)
    install.metadata["tags"], today.metadata["tags"] = ["hide-cell", "install"], ["remove-input"]
    return [nbformat.v4.new_markdown_cell(takes(source)), install, today]


def timings(source: Path) -> dict[str, dict]:
    """Return what was measured when a chapter was last timed, by the kind of device."""
    path = BOOK.parent / "src/minimax/recorded/timings.json"
    return json.loads(path.read_text("utf-8")).get(source.stem, {}) if path.exists() else {}


def slow(source: Path) -> dict[str, float]:
    """Return the seconds of the cells of a chapter that were slow when it was last timed."""
    return timings(source).get("cpu", {}).get("slow", {})


def bare(code: str) -> str:
    """Return the code of a cell without the lines that are generated here."""
    return re.sub(r"\A(# (@title .*|takes about .*)\n)+", "", code)


def dressed(cell: nbformat.NotebookNode, seconds: dict[str, float]) -> None:
    """Fold a cell that is tagged as hidden, and say before a slow one how long it takes."""
    tags, lines = cell.metadata.get("tags", []), []
    for tag, text in TITLES.items():
        if tag in tags:
            lines.append(f"# @title {text}")
            cell.metadata["mystnb"] = dict.fromkeys(("code_prompt_show", "code_prompt_hide"), text)
    if {"hide-input", "hide-cell", "remove-input"} & set(tags):
        cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata["cellView"] = "form"
    if "solution" in tags:
        cell.metadata["jupyter"]["outputs_hidden"] = True
    if taken := seconds.get(hashlib.sha256(cell.source.encode()).hexdigest()[:12]):
        lines.append(f"# takes about {taken:.0f} s on two cores")
    cell.source = "\n".join([*lines, cell.source])


# --- links ------------------------------------------------------------------------------------


def headings(text: str) -> list[str]:
    """Return the headings of Markdown ``text``, without those inside code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor that a page gives to ``heading``, as MyST and GitHub do."""
    return re.sub(r"[^\w\- ]", "", plain(heading).lower()).replace(" ", "-")


def anchor(heading: str) -> str:
    """Return the fragment that leads to ``heading`` in JupyterLab.

    It compares a fragment with its headings as it stands: quoted is only what a browser quotes,
    and parentheses, which end a link in Markdown.
    """
    return quote(plain(heading).replace(" ", "-"), safe="!$&'*+,/:;=?@")


def plain(heading: str) -> str:
    """Return ``heading`` without Markdown's marks."""
    return re.sub(r"[*`]|\[(.*?)\]\(.*?\)", r"\1", heading)


def for_viewers(text: str, source: Path, repository: str) -> str:
    """Return Markdown ``text`` of ``source`` with links that JupyterLab, GitHub and Colab resolve.

    Anchors are JupyterLab's. With an address of the repository, links to its files are absolute,
    because Colab opens a notebook without the files beside it.
    """

    def rewritten(found: re.Match[str]) -> str:
        path, mark, fragment = found[1].partition("#")
        if re.match(r"\w+:", found[1]):
            return found[0]
        target = source if not path else (source.parent / path).resolve()
        if mark and target.suffix in (".ipynb", ".md"):
            lines = headings(target.with_suffix(".md").read_text("utf-8"))
            matching = [line for line in lines if slug(line) == fragment]
            fragment = anchor(matching[0]) if matching else fragment
        if path and repository:
            path = f"{repository}/blob/main/{target.relative_to(BOOK.parent.resolve())}"
        return f"]({path}{mark}{fragment})"

    return LINK.sub(rewritten, text)


def with_anchors(text: str, wanted: set[str]) -> str:
    """Return ``text`` with an anchor above each heading that is ``wanted``.

    Colab's headings have none, it looks for names; those of VS Code are in lower case, it looks for
    ids.
    """

    def marked(found: re.Match[str]) -> str:
        name = anchor(found[2])
        mark = f'<a id="{name}" name="{name}"></a>\n\n' if name in wanted else ""
        return mark + found[0]

    return re.sub(r"^(#+) +(.*?)\s*$", marked, text, flags=re.MULTILINE)


# --- the notebook -----------------------------------------------------------------------------


def paired(source: Path, kept: dict[str, list], *, viewers: bool = True) -> str:
    """Return the notebook that belongs to ``source``, with the outputs ``kept``, as text.

    The build of the pages reads it with ``viewers=False``: with the links of the text.
    """
    notebook = jupytext.read(source)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells[first:first] = head(source)
    seconds, repository = slow(source), address()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:03d}"  # not random: the same text gives the same notebook
        if cell.cell_type == "code":
            cell.outputs = kept.get(cell.source, [])
            cell.execution_count = 1 if cell.outputs else None  # nbval wants outputs to have one
            dressed(cell, seconds)
        elif viewers:
            cell.source = for_viewers(cell.source, source, repository)
    if viewers:
        texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        links = {link for cell in texts for link in LINK.findall(cell.source)}
        wanted = {anchor(h) for cell in texts for h in headings(cell.source)}
        wanted = {name for name in wanted if f"#{name}" in links}
        for cell in texts:
            cell.source = with_anchors(cell.source, wanted)
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return nbformat.writes(nbformat.from_dict(notebook), version=4) + "\n"


def main() -> int:
    """Write the notebooks; with ``--check``, only say which ones differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    parser.add_argument("--execute", action="store_true", help="renew the checked outputs as well")
    arguments = parser.parse_args()
    differing = []
    for source in sources():
        path = source.with_suffix(".ipynb")
        text = paired(source, renewed(source) if arguments.execute else stored(path))
        if not path.exists() or path.read_text("utf-8") != text:
            differing.append(path.name)
            if not arguments.check:
                path.write_text(text, "utf-8")
    print("In step." if not differing else ("Out of step: " if arguments.check else "Written: ")
          + ", ".join(differing))  # fmt: skip
    return int(arguments.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
