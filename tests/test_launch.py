"""The package and the chapters where readers start them: with pip, on Colab, on Binder.

What takes minutes and gigabytes is marked ``launch``: ``make launch``, and once a week.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from packaging.requirements import Requirement

from conftest import ROOT
from minimax.chapters import chapters

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INDEX_NAMES = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def notebook(chapter):
    return nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)


def install_cell(cells):
    return next(cell for cell in cells if cell.cell_type == "code")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository of one commit that holds what git tracks here, as it lies in the tree."""
    folder = tmp_path_factory.mktemp("clone")
    for name in run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        run("git", *who, *command, cwd=folder)
    return folder


# --- the install cell -----------------------------------------------------------------------


def test_the_install_cell_is_short_folded_and_the_same_everywhere():
    cells = [install_cell(notebook(chapter).cells) for chapter in chapters()]
    assert len(cells) == 10
    assert len({cell.source for cell in cells}) == 1
    assert len(cells[0].source.splitlines()) <= 15
    for cell in cells:
        assert cell.metadata["cellView"] == "form"
        assert cell.metadata["jupyter"]["source_hidden"]
        assert "hide-cell" in cell.metadata["tags"]


RUN_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()

def system(line):
    print(shell.var_expand(line))
    sys.path.insert(0, {src!r})
    shell.user_ns["_exit_code"] = {code}

shell.system = system
shell.run_cell({cell!r}).raise_error()
from minimax import recorded
print(recorded.__file__)
"""


@pytest.mark.parametrize("address", ["", "https://github.com/someone/minimax"])
def test_the_install_cell_is_not_content_with_another_package_of_that_name(
    python, tmp_path, address
):
    (tmp_path / "minimax").mkdir()
    (tmp_path / "minimax/__init__.py").write_text("", "utf-8")
    cell = install_cell(notebook("dcgan").cells).source
    cell = re.sub('REPOSITORY = ".*?"', f'REPOSITORY = "{address}"', cell)
    code = RUN_CELL.format(src=str(ROOT / "src"), cell=cell, code=0)
    done = python(code, PYTHONPATH=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython"))
    if address:
        assert done.returncode == 0, done.stdout + done.stderr
        pip, file = done.stdout.splitlines()
        wanted = f'-m pip install --quiet "minimax-book[serve] @ git+{address}"'
        assert pip == f"{sys.executable} {wanted}"
        assert Path(file) == ROOT / "src/minimax/recorded/__init__.py"
        code = RUN_CELL.format(src=str(ROOT / "src"), cell=cell, code=1)
        failed = python(code, PYTHONPATH=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython"))
        assert "ImportError: pip did not install it, and says why above." in failed.stderr
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: This book's package minimax-book is not installed")
        assert "Clone the book and run `pip install .` in its folder." in last


# --- without extras -------------------------------------------------------------------------

# No module of the package but the server imports these; the names on the index are the same.
OPTIONAL = [
    Requirement(line).name for extra in ("serve", "data", "record") for line in EXTRAS[extra]
]
WITHOUT = f"""
import pkgutil, runpy, sys
sys.modules |= dict.fromkeys({OPTIONAL}, None)
"""


EVERYTHING = """
import minimax
for module in pkgutil.walk_packages(minimax.__path__, "minimax."):
    if module.name not in ("minimax.attacks.serve", "minimax.reproduce"):
        __import__(module.name)
sys.argv = ["reproduce", "--help"]
runpy.run_module("minimax.reproduce", run_name="__main__")
"""


def test_without_extras_the_package_works(python):
    done = python(WITHOUT + EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert "collapse" in done.stdout


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("serve", "from minimax.attacks.serve import LabelServer"),
        ("data", "from minimax.data import load; load('lsun_bedroom', split='test')"),
        ("record", "from minimax import chapters; chapters.execute('dcgan', {})"),
        ("record", "from minimax import reproduce; reproduce.main(['list'])"),
    ],
)
def test_what_needs_an_extra_says_so_in_one_sentence(python, tmp_path, extra, code):
    (tmp_path / "bedroom_val_lmdb").mkdir()
    done = python(WITHOUT + code, MINIMAX_DATA=str(tmp_path))
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    said = re.fullmatch(
        r"ModuleNotFoundError: .+ needs the package (\w+): pip install 'minimax-book\[(\w+)\]'\.",
        last,
    )
    assert said, done.stderr
    assert said[2] == extra and said[1] in OPTIONAL


# --- pip ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(clone, tmp_path_factory):
    """What ``pip install`` is given: a clone, an sdist, and a wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    build = "import sys; from setuptools.build_meta import build_sdist as build; build(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=clone)
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    run(*pip, "--wheel-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return {"clone": clone, "sdist": sdist, "wheel": wheel}


@pytest.mark.parametrize("kind", ["clone", "sdist", "wheel"])
def test_pip_brings_everything_and_the_package_works_from_another_folder(sources, kind, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps")
    run(*pip, "--target", target, sources[kind])
    tracked = run("git", "ls-files", cwd=ROOT / "src/minimax").stdout.split()
    found = [path for path in (target / "minimax").rglob("*") if path.is_file()]
    found = {path.relative_to(target / "minimax").as_posix() for path in found}
    assert {name for name in found if not name.endswith(".pyc")} == set(tracked)
    assert {"py.typed", "README.md", "recorded/dcgan/mnist.safetensors"} <= found

    def python(*command):
        environment = os.environ | {"PYTHONPATH": str(target)}
        return run(sys.executable, *command, cwd=elsewhere, env=environment).stdout

    use = "import minimax; from minimax import dcgan, reproduce; dcgan.recorded_dcgan('mnist')"
    said = python("-c", f"{use}; reproduce.main(['list']); print(minimax.__file__)")
    assert "dcgan/mnist" in said
    assert said.splitlines()[-1] == str(target / "minimax/__init__.py")
    assert "--rounds" in python("-m", "minimax.reproduce", "dcgan", "--help")


# --- Colab and Binder -----------------------------------------------------------------------


def made(folder, python, *packages):
    """The Python of a new environment in ``folder`` with these packages."""
    run(python, "-m", "venv", folder)
    found = folder / "bin/python"
    run(found, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(found, "-m", "pip", "install", "--quiet", *packages)
    return found


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python with Colab's packages: in the environment MINIMAX_COLAB, or in one made here."""
    if given := os.environ.get("MINIMAX_COLAB"):
        return Path(given) / "bin/python"
    python = shutil.which("python3.12")  # which may be a shim that leads to nothing
    if not python or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.fail("Colab's Python is python3.12, and there is none that runs on this machine.")
    return made(
        tmp_path_factory.mktemp("colab"), python, "--requirement", ROOT / "tests/launch/colab.txt"
    )


@pytest.fixture(scope="module")
def binder(clone, tmp_path_factory):
    """A Python with the packages of .binder, at the versions of the lock, and what postBuild adds.

    Which versions conda would take is not tested: only that these packages are enough.
    """
    text = (ROOT / ".binder/environment.yml").read_text("utf-8")
    _python, _pip, *lines = yaml.safe_load(text)["dependencies"]
    names = [Requirement(line).name for line in lines]
    names = [INDEX_NAMES.get(name, name) for name in names]
    folder = tmp_path_factory.mktemp("binder")
    found = made(folder, sys.executable, "--constraint", ROOT / "requirements.lock", *names)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(clone / ".binder/postBuild", cwd=clone, env=os.environ | {"PATH": path})
    return found


def freeze(python):
    return set(run(python, "-m", "pip", "freeze").stdout.splitlines())


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run all cells of a notebook by a Python in an empty folder; return its text on stderr."""
    for name in ("MINIMAX_DATA", "MINIMAX_SEED", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINIMAX_SCALE", "quick")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")  # bars are written to stderr
    for name in ("MINIMAX_CACHE", "TORCH_HOME", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    (tmp_path / "alone").mkdir()

    def run_all(cells, python):
        monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        spec = tmp_path / "jupyter/kernels/reader/kernel.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        argv = f'["{python}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
        spec.write_text(f'{{"argv": {argv}, "display_name": "", "language": "python"}}', "utf-8")
        where = {"metadata": {"path": tmp_path / "alone"}}
        # Colab and JupyterLab know no tag that says a cell is not to be executed.
        options = {"timeout": 600, "resources": where, "skip_cells_with_tag": ""}
        NotebookClient(cells, kernel_name="reader", **options).execute()
        outputs = [output for cell in cells.cells for output in cell.get("outputs", [])]
        return "".join(output.text for output in outputs if output.get("name") == "stderr")

    return run_all


def test_colabs_versions_lie_in_the_ranges_of_the_package():
    lines = (ROOT / "tests/launch/colab.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    asked = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["serve"]]]
    assert {"ipython", "torch", "joblib", "fastapi"} <= {one.name for one in asked} & set(pinned)
    for one in asked:
        if one.name in pinned:
            assert one.specifier.contains(pinned[one.name]), f"Colab has {pinned[one.name]}: {one}"


@pytest.mark.launch
@pytest.mark.parametrize("chapter", chapters())
def test_on_colab_a_chapter_runs_alone_twice_and_changes_no_package(
    chapter, clone, colab, execute, capsys
):
    run(colab, "-m", "pip", "uninstall", "--quiet", "--yes", "minimax-book")
    before, cells = freeze(colab), notebook(chapter)
    install = install_cell(cells.cells)
    install.source = re.sub('REPOSITORY = ".*?"', f'REPOSITORY = "file://{clone}"', install.source)
    for time_of in ("run all", "restart, run all"):
        began = time.perf_counter()
        assert execute(cells, colab) == ""
        assert install.outputs == []
        with capsys.disabled():
            print(f"\n{chapter}, {time_of}: {time.perf_counter() - began:.0f} s")
    after = freeze(colab)
    assert before <= after
    assert [line.split()[0] for line in after - before] == ["minimax-book"]


@pytest.mark.launch
def test_on_binder_the_listed_packages_are_enough(binder, execute):
    installed = {re.split("[= @]", line)[0].lower() for line in freeze(binder)}
    assert "minimax-book" in installed
    assert not installed & {Requirement(line).name for line in EXTRAS["test"]}
    assert not installed & {"jupyter-book", "sphinx", "jupytext", "nbclient"}
    assert execute(notebook("black_box_and_physical_attacks"), binder) == ""
