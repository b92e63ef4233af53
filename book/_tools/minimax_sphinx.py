"""What the book needs of Sphinx beyond Jupyter Book.

- The execution cache is keyed by the package's source, the lock file and the run's environment,
  besides the notebook itself: a change in any of them executes the chapters again.
- ``{claims} KIND`` and ``{tables}`` list what the executed chapters claimed and measured.
- Chapters that the cache lacks are executed beside each other, one to a processor.
- Without a repository address there are no launch buttons; Thebe is never loaded.
- A chapter is read with the links of its text; notebooks have those of JupyterLab and Colab.
- From its page a chapter is saved as the executed notebook, or as its text.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import nbformat
import sync
from docutils import nodes
from docutils.parsers.rst import Directive
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from sphinx.application import Sphinx

ENVIRONMENT = ("MINIMAX_SCALE", "MINIMAX_SEED", "MINIMAX_DATA", "MINIMAX_DEVICE", "TORCH_HOME")


def execution_key(root: Path, environment: dict[str, str]) -> str:
    """Return the part of the cache's key that the notebooks' own text does not hold."""
    package = root / "src" / "minimax"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in [*sorted(files), root / "requirements.lock"]:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    digest.update(json.dumps([environment.get(name, "") for name in ENVIRONMENT]).encode())
    return digest.hexdigest()[:16]


def set_cache(app: Sphinx, config: Any) -> None:
    """Point the execution cache at the folder that belongs to this key."""
    root = Path(app.srcdir)
    key = execution_key(root, dict(os.environ))
    config.nb_execution_cache_path = str(root / "_build" / "execution" / key)


def execute_chapters(app: Sphinx) -> None:
    """Fill the execution cache: one chapter on each processor, each on one thread.

    Two chapters beside each other take less time than one after the other on two threads. One that
    fails is left to the build, which executes it again and shows where it failed.
    """
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    uris = [cache.add_nb_to_project(str(path)).uri for _, path in _notebooks(app)]

    def execute(uri: str) -> None:
        executor = load_executor("local-serial", cache)
        executor.run_and_cache(filter_uris=[uri], timeout=app.config.nb_execution_timeout)

    processes = min(os.cpu_count() or 1, 4)  # a chapter takes up to 2 GB
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPool(processes) as pool:
        pool.map(execute, uris, chunksize=1)


def read_text(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a chapter the links of its text instead of those for viewers of notebooks."""
    text = Path(app.srcdir) / f"{docname}.md"
    if text in sync.sources():
        source[0] = sync.paired(text, sync.stored(text.with_suffix(".ipynb")), viewers=False)


def set_buttons(app: Sphinx, config: Any) -> None:
    """Show the buttons that need the repository's address, or none of them while there is none."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options |= {"use_repository_button": True, "use_issues_button": True}
    else:
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Leave out the scripts of Thebe: we don't use it, and it would load code from elsewhere."""
    context["script_files"] = [
        script for script in context["script_files"]
        if "thebe" not in f"{script} {getattr(script, 'attributes', {}).get('body', '')}".lower()
    ]  # fmt: skip


def offer_text(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Offer the text of a chapter beside its notebook."""
    if pagename not in dict(_notebooks(app)):
        return
    url = f"{context['pathto']('_sources', 1)}/{pagename}.md"
    button = {"type": "link", "url": url, "text": ".md", "icon": "fas fa-file",
              "tooltip": "Download the text", "label": "download-text-button"}  # fmt: skip
    for group in context["header_buttons"]:
        if group.get("label") == "download-buttons":
            group["buttons"][0]["tooltip"] = "Download the executed notebook"
            group["buttons"].insert(1, button)


def write_downloads(app: Sphinx, error: Exception | None) -> None:
    """Put the executed notebooks and their texts where the pages' buttons point, as files to save.

    Without ``download`` a browser shows them in a tab. The stills for viewers without SVG are taken
    out of the pages, which show the figures themselves.
    """
    if error or app.builder.name != "html" or app.config.nb_execution_mode != "cache":
        return
    cache, built = get_cache(app.config.nb_execution_cache_path), Path(app.outdir)
    link = re.compile(r'(<a href="[^"]*_sources/[^"]*")(?! download)')
    for document, path in _notebooks(app):
        text = path.with_suffix(".md")
        notebook = nbformat.reads(sync.paired(text, sync.stored(path)), as_version=4)
        _, executed = cache.merge_match_into_notebook(notebook)
        nbformat.write(executed, built / "_sources" / f"{document}.ipynb")
        (built / "_sources" / f"{document}.md").write_bytes(text.read_bytes())
        page = built / f"{document}.html"
        html = re.sub("<template><img .*?</template>", "", page.read_text("utf-8"))
        page.write_text(link.sub(r"\1 download", html), "utf-8")


def records(app: Sphinx, kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (document, title, record) for each claim or table of the executed chapters."""
    cache = get_cache(app.config.nb_execution_cache_path)
    for document, path in _notebooks(app):
        title = app.env.titles[document].astext()
        _, executed = cache.merge_match_into_notebook(nbformat.read(path, as_version=4))
        for cell in executed.cells:
            for output in cell.get("outputs", []):
                if record := output.get("metadata", {}).get(kind):
                    yield document, title, record


def _notebooks(app: Sphinx) -> list[tuple[str, Path]]:
    """Return the documents that are notebooks, in the order of the table of contents."""
    paths = [path.with_suffix(".ipynb") for path in sync.sources()]
    return [(path.relative_to(app.srcdir).with_suffix("").as_posix(), path) for path in paths]


class Listing(nodes.General, nodes.Element):
    """Stands where a list of claims or tables will be, once all chapters have been executed."""


class ListingDirective(Directive):
    """Puts a placeholder into the page and has it read again in every build."""

    optional_arguments = 1  # the kind of claims

    def run(self) -> list[nodes.Node]:
        """Return the placeholder."""
        self.state.document.settings.env.note_reread()
        of = {"of": f"minimax_{self.name.removesuffix('s')}", "kind": "".join(self.arguments)}
        return [Listing(**of)]


def fill_listings(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace each placeholder by what the chapters' outputs hold."""
    for listing in list(doctree.findall(Listing)):
        found: list[nodes.Node] = []
        previous = None
        for document, title, record in records(app, listing["of"]):
            if record.get("kind", "") != listing["kind"]:
                continue
            if document != previous:
                uri = app.builder.get_relative_uri(docname, document)
                link = nodes.reference("", title, refuri=uri, internal=True)
                found.append(nodes.paragraph("", "", nodes.strong("", "", link)))
                previous = document
            if "statement" in record:
                if not isinstance(found[-1], nodes.enumerated_list):
                    found.append(nodes.enumerated_list(enumtype="arabic"))
                found[-1].append(claim_item(record))  # type: ignore[attr-defined]
            else:
                found.append(table_node(record))
        listing.replace_self(found or [nodes.paragraph("", "None yet.")])


def claim_item(record: dict[str, Any]) -> nodes.list_item:
    """Return one claim with its evidence."""
    evidence = ", ".join(f"{k.replace('_', ' ')} = {v}" for k, v in record["evidence"].items())
    text = [nodes.Text(record["statement"] + " "), nodes.emphasis("", f"({evidence})")]
    return nodes.list_item("", nodes.paragraph("", "", *text))


def table_node(record: dict[str, Any]) -> nodes.table:
    """Return one "paper, recorded, this run" table."""
    group = nodes.tgroup(cols=len(record["columns"]))
    group.extend(nodes.colspec(colwidth=1) for _ in record["columns"])
    for part, rows in ((nodes.thead(), [record["columns"]]), (nodes.tbody(), record["rows"])):
        for row in rows:
            entries = [nodes.entry("", nodes.paragraph("", cell)) for cell in row]
            part.append(nodes.row("", *entries))
        group.append(part)
    ids = [nodes.make_id(record["caption"])]
    return nodes.table("", nodes.title("", record["caption"]), group, ids=ids)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_node(Listing)
    app.add_directive("claims", ListingDirective)
    app.add_directive("tables", ListingDirective)
    app.connect("config-inited", set_cache, priority=100)
    app.connect("config-inited", set_buttons, priority=100)
    app.connect("builder-inited", execute_chapters)
    app.connect("source-read", read_text)
    app.connect("doctree-resolved", fill_listings)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", offer_text, priority=900)
    app.connect("build-finished", write_downloads)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
