"""Which faults would the unit tests see? ``python tests/mutants.py`` makes each one and looks.

``mutants.toml`` lists them: a file, the text ``old`` in it, ``new`` in its place, and the test that
must fail then. Each is made in a copy of the package, so that the working tree stays as it is. One
that its test passes has survived; ``survives`` says why, where that is known. Not part of
``make test``.
"""

import argparse
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
OPTIONS = "-x -q -p no:xdist -p no:cacheprovider -o addopts=--strict-markers".split()
# What takes long to import and is no part of the package: once for all mutants.
HEAVY = "torchvision torchvision.transforms.v2 sklearn.svm scipy.stats matplotlib.pyplot foolbox"
HEAVY += " fastapi httpx nbclient hypothesis torch.optim torch.nn.utils.parametrizations"
Mutant = dict[str, Any]
ENOUGH = 0.95  # of the mutants have to be killed


def check(mutants: list[Mutant]) -> None:
    """Refuse a list in which two mutants have one name, or a text is not there exactly once."""
    names = Counter(mutant["name"] for mutant in mutants)
    for mutant in mutants:
        found = (ROOT / mutant["file"]).read_text("utf-8").count(mutant["old"])
        if found != 1 or names[mutant["name"]] != 1:
            raise SystemExit(f"{mutant['name']!r}: old is there {found} times, or the name twice")


def run(mutant: Mutant) -> str:
    """Return "killed", "survived", or what went wrong, in a process that was forked for it."""
    with tempfile.TemporaryDirectory(prefix="minimax-mutant-") as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src")
        path = Path(folder) / mutant["file"]
        path.write_text(path.read_text("utf-8").replace(mutant["old"], mutant["new"]), "utf-8")
        sys.path.insert(0, str(Path(folder) / "src"))
        os.environ["PYTHONPATH"] = sys.path[0]  # for what the tests start
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = pytest.main([*OPTIONS, mutant["test"]])
        package = sys.modules.get("minimax")
        own = package is not None and Path(package.__file__ or "").is_relative_to(folder)
    if code < 2 and not own:
        return "the package was not the mutant's"
    verdicts = {0: "survived", 1: "killed"}
    return verdicts.get(int(code), f"pytest ended with {code}: {said.getvalue()[-300:]}")


def verdicts_on(mutants: list[Mutant], jobs: int) -> list[str]:
    """Return the verdict on each of ``mutants``, ``jobs`` at a time."""
    forked = multiprocessing.get_context("fork")
    with forked.Pool(jobs, maxtasksperchild=1) as pool:
        return list(tqdm(pool.imap(run, mutants, chunksize=1), total=len(mutants)))


def main() -> None:
    """Run the mutants whose name or file has the words given, or all; print those not killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name or file has these words")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--baseline", action="store_true", help="first run all tests without them")
    arguments = parser.parse_args()
    mutants = tomllib.loads((ROOT / "tests/mutants.toml").read_text("utf-8"))["mutant"]
    check(mutants)
    chosen = [m for m in mutants if all(w in f"{m['name']} {m['file']}" for w in arguments.words)]
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY.split():
        importlib.import_module(name)
    verdicts = verdicts_on(chosen, arguments.jobs)
    tests = {mutant["test"]: mutant for mutant in chosen}
    unchanged = [mutant | {"name": test, "new": mutant["old"]} for test, mutant in tests.items()]
    sound = verdicts_on(unchanged, arguments.jobs) if arguments.baseline else []
    for mutant, verdict in zip(unchanged, sound, strict=False):
        if verdict != "survived":
            print(f"{mutant['name']} does not pass without a fault: {verdict}")
    for mutant, verdict in zip(chosen, verdicts, strict=True):
        if verdict != "killed":
            why = f" ({mutant['survives']})" if "survives" in mutant else ""
            print(f"{mutant['name']}: {verdict}{why}")
    killed = verdicts.count("killed") / max(1, len(chosen))
    print(f"{verdicts.count('killed')} of {len(chosen)} mutants killed, {killed:.1%}")
    odd = set(verdicts) - {"killed", "survived"} or set(sound) - {"survived"}
    sys.exit(killed < ENOUGH or bool(odd))


if __name__ == "__main__":
    main()
