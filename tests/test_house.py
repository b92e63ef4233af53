"""The house: who imports whom, what arguments are called, and that the map of it is true."""

import ast
import importlib
import inspect
import re

import pytest
import torch

from conftest import ROOT
from minimax import chapters

HOUSE = ROOT / "src/minimax"
MAP = (HOUSE / "README.md").read_text("utf-8")
TOP = ("chapters", "listing", "reproduce")


def floors():
    """The rooms in the order of the picture, from the ground up, left to right."""
    lines = re.findall(r"^\d  (.*)$", MAP, flags=re.MULTILINE)
    return [re.split(r" {3,}", line)[0].split() for line in reversed(lines)]


EXPORTS = {
    "claims": ("claim", "table"),
    "scale": ("at_scale", "seed", "use_device"),
}  # of minimax/__init__
ROOMS = [room for floor in floors() for room in floor]


def imported(code, room=""):
    """Names of the package's rooms that ``code``, which lies in ``room``, imports anywhere."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            name = (node.module or "").split(".") if node.module else []
            if node.level:  # from . import x, in a room that is a folder; from .. import x
                name = ["minimax", *([room] if node.level == 1 else []), *name]
            if name[:1] == ["minimax"]:
                yield from name[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            yield from (part[1] for part in parts if part[0] == "minimax" and len(part) > 1)


def imports(path):
    yield from imported(path.read_text("utf-8"), room_of(path) if path.parent != HOUSE else "")


def room_of(path):
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def test_every_room_is_in_the_picture_and_says_what_it_is():
    found = {room_of(path) for path in HOUSE.rglob("*.py")} - {"__init__"}
    assert found == set(ROOMS) and len(ROOMS) == len(set(ROOMS))
    rooms = MAP.partition("## The path of an image")[0]
    described = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", rooms, flags=re.M)))
    assert found <= set(described)
    for path in HOUSE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
    for number, floor in enumerate(floors()):
        for room in floor:
            path = HOUSE / f"{room}.py" if (HOUSE / f"{room}.py").exists() else HOUSE / room
            path = path / "__init__.py" if path.is_dir() else path
            said = ast.get_docstring(ast.parse(path.read_text("utf-8"))).splitlines()[-1]
            (calls,) = re.findall(rf"^\| `{room}` \|.*\| (.*) \|$", MAP, flags=re.M)
            assert said == f"Floor {number}; called by {calls}.", path


def callers(room):
    """Who imports ``room``: the book, then rooms in their order; "most rooms" from seven on."""
    found = {room_of(path) for path in HOUSE.rglob("*.py") if room in imports(path)}
    rooms = [other for other in ROOMS if other in found - {room}]
    cells = (cell for chapter in chapters.chapters() for cell in chapters.code(chapter))
    used = {name for cell in cells for name in imported(cell)}
    book = ["the book"] if used & {room, *EXPORTS.get(room, ())} else []
    nobody = "the package itself" if "__init__" in found else "you"
    return ", ".join(book + (["most rooms"] if len(rooms) > 6 else rooms)) or nobody


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_says_who_calls_a_room(room):
    assert re.findall(rf"^\| `{room}` \|.*\| (.*) \|$", MAP, flags=re.M) == [callers(room)]


@pytest.mark.parametrize("path", sorted(HOUSE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    upwards = [other for other in imports(path) if ROOMS.index(other) > ROOMS.index(room)]
    assert not upwards, f"{room} imports {upwards}, which lie above it"


@pytest.mark.parametrize(
    "code",
    ["from minimax.reproduce import main", "from minimax import (\n  data,\n  reproduce as r)",
     "import minimax.reproduce", "def f():\n  from minimax import reproduce"],
)  # fmt: skip
def test_an_import_is_seen_however_it_is_written(code):
    assert "reproduce" in imported(code)
    relative = code.replace("from minimax.", "from ..").replace("from minimax ", "from .. ")
    assert "import minimax" in code or "reproduce" in imported(relative, "data")


def test_no_chapter_imports_the_command_line():
    for chapter in chapters.chapters():
        for code in chapters.code(chapter):
            assert not set(imported(code)) & set(TOP), chapter


def test_code_in_chapters_fits_the_page():
    wide = []
    for path in sorted((ROOT / "book").glob("*.md")):
        cells = re.findall(r"^```\{code-cell\}.*?^```$", path.read_text("utf-8"), re.M | re.S)
        lines = [line for cell in cells for line in cell.splitlines()]
        wide += [f"{path.name}: {line}" for line in lines if len(line) > 76]
    assert wide == []


# --- the vocabulary -----------------------------------------------------------------------------

TOOLS = (
    "evaluating statistics_held for_each_epsilon frozen gradient_of differentiable check_gradient"
).split()
WORDS = "eps alpha iterations learning_rate n_iter rng num_steps stepsize".split()


def table():
    """Default and functions of each name in the table of the map."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", MAP.partition("## The vocabulary")[2], flags=re.M)
    cells = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
    return {name: (parts[-2].strip("`"), parts[-1].split(", ")) for name, parts in cells.items()}


def functions():
    """The public functions whose arguments the table names."""
    modules = [f"attacks.{path.stem}" for path in (HOUSE / "attacks").glob("[a-z]*.py")]
    for name in [*modules, "defenses", "likelihood", "coverage", "evaluation"]:
        module = importlib.import_module(f"minimax.{name}")
        for function, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and function[0] != "_" and function not in TOOLS:
                yield value


def arguments():
    """Who takes each argument, and with which defaults."""
    where, defaults = {}, {}
    for function in functions():
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                where.setdefault(name, []).append(function.__name__)
                defaults.setdefault(name, set()).add(parameter.default)
    return where, defaults


def test_an_argument_of_several_functions_is_in_the_table_and_named_where_it_is():
    where, _ = arguments()
    shared = {name for name, users in where.items() if len(users) > 1}
    assert shared <= set(table())
    true = {name: sorted(where[name]) for name in table()}
    assert {name: users for name, (_, users) in table().items()} == true


def test_defaults_are_those_of_the_table():
    _, defaults = arguments()
    for name, (said, _) in table().items():
        if said == "own":
            assert len(defaults[name]) > 1, name
        else:
            empty = inspect.Parameter.empty
            found = {"–" if value is empty else repr(value) for value in defaults[name]}
            assert found == {said}, name


def test_words_that_mean_the_same_are_not_used():
    """In the whole package, in methods and private functions too."""
    allowed = {("certify", "alpha")}  # the paper's level of confidence
    used = set()
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                used |= {(node.name, one.arg) for one in given if one.arg in WORDS}
    assert used == allowed


def test_attacks_return_their_images_alone_or_first():
    """What takes an ε, or images and classes, is an attack."""
    for function in functions():
        signature = inspect.signature(function)
        takes = set(signature.parameters)
        result = signature.return_annotation
        attack = {"x", "y"} <= takes or {"x", "epsilon"} <= takes
        if function.__module__.startswith("minimax.attacks") and attack:
            fields = getattr(result, "_fields", ("images",))
            assert fields[0] == "images" and (result is torch.Tensor or len(fields) > 1), function
