"""The chapters as notebooks: in step with their text, short cells, and true for other seeds.

nbval executes them as they are: ``book`` is among the paths of pytest.
"""

import json
import re
import statistics
import subprocess
import sys

import jupytext
import nbformat
import pytest

from conftest import ROOT
from minimax.chapters import _name, chapters, execute


@pytest.fixture(params=chapters())
def cells(request):
    path = ROOT / "book" / f"{request.param}.ipynb"
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_text_and_notebook_are_in_step():
    command = [sys.executable, str(ROOT / "book/_tools/sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_sync_sees_a_difference_and_keeps_checked_outputs(tmp_path):
    (tmp_path / "book/_tools").mkdir(parents=True)
    files = "book/_tools/sync.py book/adversarial_examples.md book/adversarial_examples.ipynb"
    for name in f"_toc.yml _config.yml {files}".split():
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    text = tmp_path / "book/adversarial_examples.md"
    changed = text.read_text("utf-8").replace("SEED = seed()", "SEED = seed() + 0")
    text.write_text(changed, "utf-8")

    def sync(*arguments):
        command = [sys.executable, str(tmp_path / "book/_tools/sync.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    assert sync("--check").returncode == 1
    assert sync().returncode == 0
    assert sync("--check").returncode == 0
    before, after = (
        nbformat.read(folder / "book/adversarial_examples.ipynb", as_version=4)
        for folder in (ROOT, tmp_path)
    )
    assert any("seed() + 0" in cell.source for cell in after.cells)
    outputs = [[c.get("outputs") for c in notebook.cells] for notebook in (before, after)]
    assert outputs[0] == outputs[1]


def test_cells_are_short(cells):
    sizes = [len(lines(cell)) for cell in cells]
    assert statistics.median(sizes) <= 6
    assert max(sizes) <= 40


def test_stored_are_the_outputs_that_nbval_compares_and_one_still(cells):
    checked = [cell for cell in cells if "nbval-check-output" in tags(cell)]
    pictured = [cell for cell in cells if cell.outputs and cell not in checked]
    assert checked and len(pictured) == 1
    (still,) = pictured[0].outputs
    assert set(still.data) == {"image/png", "text/plain"} and len(still.data["image/png"]) < 2e5
    for cell in cells:
        assert bool(cell.outputs) == (cell in checked + pictured)
        assert cell.execution_count == (1 if cell.outputs else None)


def test_the_template(cells):
    source = "\n".join(cell.source for cell in cells)
    solutions = [cell for cell in cells if "solution" in tags(cell)]
    assert source.count("claim(") >= 12
    assert source.count("figures.explore(") >= 2
    assert "recorded.compare(" in source
    assert len(solutions) >= 4
    assert all("hide-cell" in tags(cell) and "claim(" in cell.source for cell in solutions)
    assert (
        cells[1].source == "from minimax import recorded\n\nrecorded.head()"
    )  # the first installs
    assert "plt.show" not in source  # a figure leaves a cell through figures.show alone


def told_before(chapter):
    """The text above a chapter's first code."""
    cells = nbformat.read(ROOT / f"book/{chapter}.ipynb", as_version=4).cells
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    return cells[first - 1].source


def test_the_head_names_the_earlier_chapters_that_introduce_what_is_used():
    def named(chapter):
        return re.findall(r"Uses or refers to: (.*)\.", told_before(chapter))

    assert named("adversarial_examples") == []
    assert named("defenses") == ["Adversarial examples"]
    before = "Adversarial examples, Black-box and physical attacks, Defenses"
    assert named("evaluating_defenses") == [before]
    assert "Defenses" not in named("dcgan")[0] and "The minimax game" in named("dcgan")[0]


@pytest.mark.parametrize("chapter", chapters())
def test_what_a_chapter_takes_is_read_before_anything_runs(chapter):
    """GitHub shows no output of it, Colab runs nothing before it is asked to."""
    timings = json.loads((ROOT / "src/minimax/recorded/timings.json").read_text("utf-8"))
    one = timings[chapter]["cpu"]
    cpu, rest = told_before(chapter).split("; on a GPU: ")
    nothing = f"{one['memory_gb']:.1f} GB of memory, downloads nothing"
    assert cpu == (
        f"Quick scale on two CPU cores: {one['seconds']:.0f} s, {nothing} (measured {one['date']})"
    )
    assert rest.startswith("not measured yet. No GPU is needed.")


def test_what_was_timed_is_still_there():
    """Renewed by ``python -m minimax.reproduce``, command ``timings``."""
    timings = json.loads((ROOT / "src/minimax/recorded/timings.json").read_text("utf-8"))
    assert set(timings) == set(chapters())
    for chapter, devices in timings.items():
        text = jupytext.read(ROOT / f"book/{chapter}.md")
        there = {_name(cell.source) for cell in text.cells}
        for one in devices.values():
            assert set(one["slow"]) <= there, f"{chapter} was timed with another slow cell"


@pytest.mark.seeds
@pytest.mark.parametrize("seed", [2])
@pytest.mark.parametrize("chapter", chapters())
def test_claims_hold_for_other_seeds(chapter, seed, tmp_path):
    """``make book`` runs the chapters under seed 0, ``make test`` (with nbval) under seed 1."""
    environment = {"MINIMAX_SEED": str(seed), "MINIMAX_DATA": str(tmp_path)}
    notebook, *_ = execute(chapter, {"MINIMAX_SCALE": "quick"} | environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    claims = [o for o in outputs if "minimax_claim" in o.get("metadata", {})]
    assert len(claims) >= 12


def test_recorded_runs_name_where_they_come_from():
    for path in (ROOT / "src/minimax/recorded").rglob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        records = record.values() if path.stem == "timings" else [record]
        for one in records:
            for part in [one] if "date" in one else one.values():
                assert {"date", "commit", "device", "torch", "seconds"} <= set(part), path
