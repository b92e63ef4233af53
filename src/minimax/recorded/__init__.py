"""Runs that were recorded with their origin, so that a quick run can stand beside them.

``python -m minimax.reproduce`` writes the files; nothing here is typed by hand. Each chapter has a
folder: ``chapter.json`` is its run at paper scale, the others are what it reads beside that.

Floor 2; called by the book, most rooms.
"""

import datetime
import html
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from filelock import FileLock
from IPython.display import display
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from minimax.claims import number, table
from minimax.files import write_whole
from minimax.recorded.origin import processor

FOLDER = Path(__file__).parent


def run(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """Return what is recorded under ``name`` ("dcgan/mnist"), or None if there is nothing yet.

    Raises ValueError if the record can't be read. Introduced in *Adversarial examples*.
    """
    path = (folder or FOLDER) / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"The recorded run {path} is damaged ({error}).") from error


def tensors(name: str) -> dict[str, Tensor]:
    """Return the tensors recorded under ``name``. Introduced in *Adversarial examples*.

    Raises FileNotFoundError if there are none, ValueError if they can't be read.
    """
    path = FOLDER / f"{name}.safetensors"
    try:
        here = torch.get_default_device()
        return {name: tensor.to(here) for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"The recorded tensors {path} are damaged ({error}).") from error


def write(name: str, record: Mapping[str, Any], folder: Path | None = None) -> None:
    """Record ``record`` under ``name``: whole, or not at all. Introduced in *DCGAN*."""
    _write(
        f"{name}.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(), folder
    )


def write_tensors(name: str, kept: Mapping[str, Tensor], folder: Path | None = None) -> None:
    """Record the tensors ``kept`` under ``name``. Introduced in *DCGAN*."""
    _write(f"{name}.safetensors", save(dict(kept)), folder)


def write_row(name: str, key: str, row: Mapping[str, Any], folder: Path | None = None) -> None:
    """Add ``row`` to the table recorded under ``name``, or put it in the place of an older one.

    Each row is a line of the file; several processes may write at once. Introduced in *Remedies
    for mode collapse*.
    """
    path = (folder or FOLDER) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        rows = (run(name, folder) or {}) | {key: row}
        lines = (
            f"{json.dumps(k)}: {json.dumps(rows[k], ensure_ascii=False)}" for k in sorted(rows)
        )
        _write(f"{name}.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode(), folder)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return which of the ``old`` settings are others in ``new``: "rounds 7, now 10"; or "".

    Introduced in *Remedies for mode collapse*.
    """
    new = json.loads(json.dumps(new))  # a tuple is recorded as a list
    keys = [key for key in sorted(old.keys() | new) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key, '–')}, now {new.get(key, '–')}" for key in keys)


def _write(name: str, data: bytes, folder: Path | None) -> None:
    path = (folder or FOLDER) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def head() -> None:
    """Display the day, the versions and the processor that execute a chapter now.

    What it takes stands above, written by the build. Introduced in *How to use this book*.
    """
    today, kernel = datetime.date.today().isoformat(), platform.python_version()
    show(f"Executed {today}: Python {kernel}, PyTorch {torch.__version__}, {processor()}.")


def show(sentence: str) -> None:
    """Display ``sentence`` as a paragraph. Introduced in *How to use this book*."""
    markup = f"<p>{html.escape(sentence)}</p>"
    display({"text/plain": sentence, "text/html": markup}, raw=True)


def compare(
    chapter: str, rows: Sequence[tuple[str, object, float | None]], *, caption: str, this_run: str
) -> None:
    """Show paper, recorded run and this run side by side, one row per quantity.

    ``rows`` are (what, the paper's figure as text or None, this run's number, or None where only
    the paper scale measures it); the recorded column has mean ± standard deviation over seeds of
    the paper-scale run of ``chapter``. ``this_run`` says what data this run used. Introduced in
    *Adversarial examples*.
    """
    record = run(f"{chapter}/chapter")
    values = record["measured"] if record else {}
    table(
        [
            {
                "": what,
                "paper": paper,
                "recorded (paper scale)": _spread(values.get(what)),
                f"this run ({this_run})": number(value),
            }
            for what, paper, value in rows
        ],
        caption=caption,
        measured={what: float(value) for what, _, value in rows if value is not None},
    )
    if record:
        show(provenance(record))


def provenance(*records: Mapping[str, Any]) -> str:
    """Return one sentence that says where a recorded run comes from, or several, taken together.

    Introduced in *Adversarial examples*.
    """

    def all_of(key: str) -> list[Any]:
        return sorted({one[key] for one in records if key in one})

    seeds = ", ".join(map(str, sorted({seed for one in records for seed in one.get("seeds", [])})))
    games = f", seeds {seeds}" if seeds else ""
    if copies := records[0].get("copies"):
        games = f", seed {seeds}, {copies} cop{'y' if copies == 1 else 'ies'}"
    commits = all_of("commit")
    return (
        f"Recorded {' and '.join(all_of('date'))} at commit{'s' * (len(commits) > 1)} "
        f"{', '.join(commits)} on {', '.join(all_of('device'))}{games}"
        f", {sum(one['seconds'] for one in records):.0f} s in all"
        f"{''.join(f', {note}' for note in all_of('note'))}."
    )


def _spread(values: Sequence[float] | None) -> str | None:
    if not values:
        return None
    if len(values) == 1:
        return number(values[0])
    return f"{number(mean(values))} ± {stdev(values):.2g} ({len(values)} seeds)"


__all__ = [
    "compare",
    "difference",
    "head",
    "provenance",
    "run",
    "tensors",
    "write",
    "write_row",
    "write_tensors",
]
