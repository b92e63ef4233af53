"""Lint, formatting, types, and the size of the package."""

import ast
import re
import subprocess
import sys

import pytest

from conftest import ROOT

INTERNAL = (  # not called from chapters
    "errors files later places mixtures signs faces "
    "chapters reproduce arena side engine checkpoints"
).split()
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "src", "tests", "benchmarks", "book/_tools"],
        ["mypy", "--cache-dir", "_build/mypy"],
    ],
    ids=["lint", "format", "types"],
)
def test_tools(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_stays_small():
    assert max(len(path.read_text("utf-8").splitlines()) for path in SOURCES) <= 500
    assert sum(code_lines(path) for path in SOURCES) < 7200  # for ten chapters


def code_lines(path):
    """Count the lines that are neither blank nor comment nor docstring."""
    text = path.read_text("utf-8")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    words = [node.body[0] for node in documented if ast.get_docstring(node)]
    inside = {line for word in words for line in range(word.lineno, word.end_lineno + 1)}
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.split("#")[0].strip()) for at, line in lines if at not in inside)


def test_nothing_is_pickled():
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert "import pickle" not in text, path
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, path
        for call in re.findall(r"np\.load\([^)]*\)", text):
            assert "allow_pickle=False" in call, path


def test_public_functions_are_typed_and_say_which_chapter_introduces_them():
    texts = (path.read_text("utf-8") for path in (ROOT / "book").glob("*.md"))
    titles = {re.search(r"^# (.*)$", text, re.MULTILINE)[1] for text in texts}
    missing = []
    for path in SOURCES:
        if path.stem in INTERNAL:
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                doc = " ".join((ast.get_docstring(node) or "").split())
                said = re.search(r"Introduced in \*(.*?)\*", doc)
                if said is None or said[1] not in titles:
                    missing.append(f"{path.name}: {node.name}")
    assert missing == []
