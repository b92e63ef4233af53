"""Brings each notebook in line with its text source: ``make sync``.

The text is the source. Outputs are stripped, except those of cells tagged ``nbval-check-output``,
which are kept while the cell's code is unchanged; ``--execute`` renews them.
"""

import argparse
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).parents[1]
CHECKED = "nbval-check-output"


def sources() -> list[Path]:
    """Return the text of every chapter that has code."""
    texts = {path: path.read_text("utf-8") for path in sorted(BOOK.glob("*.md"))}
    return [path for path, text in texts.items() if "\njupytext:" in text[:200]]


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
    """Return the outputs of the checked cells, without what changes from run to run."""
    found = {}
    for cell in notebook.cells:
        if CHECKED in cell.metadata.get("tags", []):
            for output in cell.outputs:
                output.pop("execution_count", None)
            found[cell.source] = cell.outputs
    return found


def paired(source: Path, kept: dict[str, list]) -> str:
    """Return the notebook that belongs to ``source``, with the outputs ``kept``, as text."""
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:03d}"  # not random: the same text gives the same notebook
        if cell.cell_type == "code":
            cell.outputs = kept.get(cell.source, [])
            cell.execution_count = 1 if cell.outputs else None  # nbval wants outputs to have one
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
