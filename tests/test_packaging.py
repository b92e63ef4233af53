"""What describes the package agrees: its metadata, environment.yml, the lock file, the address."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jupyter_book.config import get_final_config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from sphinx_book_theme.header_buttons.launch import add_launch_buttons

from conftest import ROOT
from minimax.chapters import chapters

CONDA = {"torch": "pytorch-cpu", "lmdb": "python-lmdb", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
GROUPS = {
    name: [Requirement(line) for line in lines]
    for name, lines in {
        "core": PROJECT["dependencies"],
        **PROJECT["optional-dependencies"],
    }.items()
}
RANGES = [requirement for group in GROUPS.values() for requirement in group]


@pytest.fixture
def tool(monkeypatch):
    """Import one of the book's own tools."""
    monkeypatch.syspath_prepend(str(ROOT / "book/_tools"))
    return importlib.import_module


def pins():
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return found


def test_every_range_holds_the_pinned_version():
    pinned = pins()
    for requirement in RANGES:
        for version in pinned[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(version), (str(requirement), version)
    assert pinned["torch"] == ["2.14.1"]
    assert pinned["torchvision"] == ["0.29.2"]


def test_what_readme_leaves_out_for_cpus_is_torch_and_what_only_gpus_want():
    readme = (ROOT / "README.md").read_text("utf-8")
    pattern = re.compile(re.search(r"grep -vE '(.+?)' requirements.lock", readme)[1])
    left_out = {name for name in pins() if pattern.match(name)}
    wanted = {name for name in pins() if re.search("cuda|nvidia|triton", name)}
    assert left_out == wanted | {"torch", "torchvision"}
    for name in ("torch", "torchvision"):
        assert f"{name}=={pins()[name][0]}" in readme


def test_the_package_takes_ranges():
    for requirement in RANGES:
        assert "==" not in str(requirement.specifier)
        assert ">=" in str(requirement.specifier)
    assert next(str(r.specifier) for r in RANGES if r.name == "torch") == ">=2.8"


def environment(name):
    """The Python of a file for conda, its packages by range, and the lines for pip."""
    lines = yaml.safe_load((ROOT / name).read_text("utf-8"))["dependencies"]
    by_pip = [one for line in lines if isinstance(line, dict) for one in line["pip"]]
    python, pip, *rest = [line for line in lines if isinstance(line, str)]
    assert pip == "pip"
    named = rest + [line for line in by_pip if not line.startswith("-")]
    return python, {r.name: r.specifier for r in map(Requirement, named)}, by_pip


def expected(*groups):
    return {CONDA.get(r.name, r.name): r.specifier for name in groups for r in GROUPS[name]}


def test_environment_has_the_packages_of_chapters_and_pages_by_the_same_ranges():
    _, found, by_pip = environment("environment.yml")
    assert found == expected("core", "serve", "data", "record", "book")
    assert by_pip[-1] == "--editable ."


def test_binder_has_the_packages_of_chapters_alone():
    _, found, by_pip = environment(".binder/environment.yml")
    kernel = {name: expected("record", "book")[name] for name in ("ipykernel", "ipywidgets")}
    assert found == expected("core", "serve") | kernel
    assert by_pip == []
    mode = subprocess.run(
        ["git", "ls-files", "--stage", ".binder/postBuild"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert mode.startswith("100755"), "repo2docker runs it"
    commands = (ROOT / ".binder/postBuild").read_text("utf-8").splitlines()[1:]
    assert commands == ["set -euo pipefail", "python -m pip install --no-deps ."]


@pytest.mark.parametrize("name", ["environment.yml", ".binder/environment.yml"])
def test_conda_gets_one_version_of_python(name):
    """repo2docker reads ``python=3.11``, and takes a version of its own where it sees a range."""
    python, _, _ = environment(name)
    version = re.fullmatch(r"python=(3\.\d+)", python)
    assert version and version[1] in SpecifierSet(PROJECT["requires-python"])


# --- the workflow ---------------------------------------------------------------------------


@pytest.fixture
def workflow():
    """What GitHub runs, and when; YAML 1.1 reads the key ``on`` as true."""
    read = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text("utf-8"))
    return SimpleNamespace(on=read[True], jobs=read["jobs"])


def test_the_workflow_tries_both_ends_of_the_ranges(workflow):
    jobs = workflow.jobs
    matrix = jobs["versions"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert "if" not in jobs["versions"], "each push, and weekly"
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    least = {r.name: str(r.specifier).removeprefix(">=") for r in GROUPS["core"]}
    oldest = f"torch=={least['torch']}.* torchvision=={least['torchvision']}.*"
    assert matrix["include"] == [{"python": matrix["python"][0], "torch": oldest}]
    assert matrix["torch"] == ["torch torchvision"]
    steps = [step.get("run") for step in jobs["weekly"]["steps"]]
    assert {"make links", "make seeds", "make device", "make launch"} <= set(steps)


def test_the_workflow_runs_weekly_too(workflow):
    (when,) = workflow.on["schedule"]
    minute, hour, day, month, weekday = when["cron"].split()
    assert (day, month) == ("*", "*") and all(n.isdigit() for n in (minute, hour, weekday))
    assert {"push", "pull_request"} < set(workflow.on)
    assert workflow.jobs["weekly"]["if"] == "github.event_name == 'schedule'"


@pytest.mark.parametrize("job", ["test", "weekly"])
def test_the_workflow_keeps_the_wheels_of_the_lock(workflow, job):
    (python,) = [s["with"] for s in workflow.jobs[job]["steps"] if "setup-python" in str(s)]
    assert python["cache"] == "pip" and (ROOT / python["cache-dependency-path"]).exists()


@pytest.mark.parametrize("present", ["chromedriver google-chrome", "chromedriver chromium", ""])
def test_ci_installs_a_browser_only_where_there_is_none(tmp_path, present):
    """Ubuntu has no package chromium-driver; GitHub's machines have Chrome with its driver."""
    for name in (*present.split(), "sudo", "apt-get", "make"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n', "utf-8")
        program.chmod(0o755)
    for name in ("bash", "dirname", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        ["bash", ROOT / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "make test"
    assert ("apt-get" in done.stdout) == (not present)


# --- what no file holds ---------------------------------------------------------------------


def test_no_index_and_no_path_of_a_machine_in_any_file():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert len(listed) > 40
    bad = re.compile(rb"--(extra-)?index-url|find-links|/root/|/home/\w+/|/work/")
    for name in filter(None, listed):
        if Path(name) != Path(__file__).relative_to(ROOT):
            assert not bad.search((ROOT / name).read_bytes()), name


def test_text_is_read_and_written_as_utf_8_on_any_machine():
    """Without an encoding a file is read as the machine's locale has it."""
    paths = [path for part in ("src", "book/_tools", "benchmarks", "tests")
             for path in (ROOT / part).rglob("*.py")]  # fmt: skip
    bad = []
    for path in paths:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            words = {word.arg for word in call.keywords}
            given = len(call.args) + len(words & {"encoding", "data"})
            least = {"read_text": 1, "write_text": 2}.get(name, 0)
            text = isinstance(call.func, ast.Name) and name == "open" and "encoding" not in words
            if text:
                mode = call.args[1].value if len(call.args) > 1 else "r"
                text = "b" not in mode
            if given < least or text:
                bad.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert bad == []


# --- the repository's address ---------------------------------------------------------------

URL = "https://github.com/someone/minimax"


@pytest.fixture
def copy(tmp_path):
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_all_places_agree_with_the_one_that_counts(tool):
    found = tool("repository").addresses(ROOT)
    assert [path.name for path in found] == ["_config.yml", "CITATION.cff"]
    assert set(found.values()) == {tool("sync").address()}


def test_the_address_is_set_everywhere(copy, tool):
    repository = tool("repository")
    for url in (URL, "https://github.com/someone.else/mini-max"):
        repository.set_address(copy, url)
        assert set(repository.addresses(copy).values()) == {url}
        assert yaml.safe_load((copy / "_config.yml").read_text("utf-8"))["repository"]["url"] == url
        assert yaml.safe_load((copy / "CITATION.cff").read_text("utf-8"))["repository-code"] == url
    assert len(repository.addresses(copy)) == len(repository.addresses(ROOT))


@pytest.mark.parametrize("url", ["", "github.com/a/b", "https://github.com/a", "https://x.org/a/b"])
def test_a_bad_address_is_refused(url):
    command = [sys.executable, str(ROOT / "book/_tools/repository.py"), url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"URL is '{url}'" in done.stderr


def test_buttons_only_with_an_address(tool):
    set_buttons = tool("minimax_sphinx").set_buttons

    def options(url):
        config = SimpleNamespace(
            html_theme_options={"repository_url": url, "launch_buttons": {"colab_url": "c"}}
        )
        set_buttons(None, config)
        return config.html_theme_options

    assert options("") == {}
    assert options(URL)["launch_buttons"] == {"colab_url": "c"}
    assert options(URL)["use_repository_button"]


@pytest.mark.parametrize("chapter", chapters())
def test_buttons_open_a_notebook_of_the_repository(copy, tool, chapter):
    """The theme makes their addresses of the page's path and of what ``_config.yml`` says."""
    tool("repository").set_address(copy, URL)
    given = {"cli_config": {"latex_individualpages": False}, "sourcedir": ROOT}
    final, _ = get_final_config(user_yaml=copy / "_config.yml", **given)
    page, context = f"book/{chapter}", {"header_buttons": [], "page_source_suffix": ".ipynb"}
    context |= dict(zip(("github_user", "github_repo"), URL.split("/")[-2:], strict=True))
    context |= {"github_url": "https://github.com", "pagename": page, "sourcename": f"{page}.ipynb"}
    environment = SimpleNamespace(doc2path=lambda name: f"{name}.ipynb", metadata={page: {}})
    add_launch_buttons(SimpleNamespace(env=environment, config=final), page, "", context, None)
    (group,) = context["header_buttons"]
    found = {button["text"]: button["url"] for button in group["buttons"]}
    assert found == {
        "Binder": f"https://mybinder.org/v2/gh/someone/minimax/main?urlpath=lab/tree/{page}.ipynb",
        "Colab": f"https://colab.research.google.com/github/someone/minimax/blob/main/{page}.ipynb",
    }
    assert (ROOT / f"{page}.ipynb").exists()


# --- the execution cache --------------------------------------------------------------------


def test_the_cache_is_keyed_by_package_lock_file_and_environment(tmp_path, tool):
    key = tool("minimax_sphinx").execution_key
    package = tmp_path / "src/minimax/recorded"
    package.mkdir(parents=True)
    (package / "run.json").write_text("1", "utf-8")
    (tmp_path / "requirements.lock").write_text("a==1", "utf-8")
    keys = [key(tmp_path, {}), key(tmp_path, {})]
    assert keys[0] == keys[1]
    (package / "run.json").write_text("2", "utf-8")
    keys.append(key(tmp_path, {}))
    (package / "new.py").write_text("", "utf-8")
    keys.append(key(tmp_path, {}))
    (tmp_path / "requirements.lock").write_text("a==2", "utf-8")
    keys.append(key(tmp_path, {}))
    keys.append(key(tmp_path, {"MINIMAX_SCALE": "paper"}))
    keys.append(key(tmp_path, {"MINIMAX_SEED": "1"}))
    assert len(set(keys)) == len(keys) - 1


def test_a_clone_is_small():
    """The install cell clones the repository; GitHub shows a notebook up to a few hundred kB."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if (ROOT / name).is_file()}
    large = {".ipynb": 1_000_000}  # a megabyte, and two for what GitHub shows nobody
    assert not {n for n, size in sizes.items() if size > large.get(Path(n).suffix, 2_000_000)}
    assert 1_000_000 < sum(sizes.values()) < 12_000_000
