"""Runs that were recorded with their provenance, so that a quick run can stand beside them.

``python -m minimax.reproduce`` writes the files; nothing here is typed by hand.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from IPython.display import HTML, display
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minimax.claims import number, table

FOLDER = Path(__file__).parent


def run(name: str) -> dict[str, Any] | None:
    """Return the recorded run ``name`` with its provenance, or None if there is none yet.

    Raises ValueError if the record can't be read. Introduced in *Adversarial examples*.
    """
    path = FOLDER / f"{name}.json"
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
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"The recorded tensors {path} are damaged ({error}).") from error


def run_time(chapter: str) -> None:
    """Display what a quick run of ``chapter`` takes, as it was last measured.

    Introduced in *How to use this book*.
    """
    timings = (run("timings") or {}).get(chapter, {})
    parts = []
    for device, title in (("cpu", "two CPU cores"), ("gpu", "a GPU")):
        one = timings.get(device)
        text = "not measured yet"
        if one:
            fetched = f"{one['downloads_mb']} MB" if one["downloads_mb"] else "nothing"
            text = (
                f"{one['seconds']:.0f} s, {one['memory_gb']:.1f} GB of memory, downloads {fetched}"
            )
            text += f" (measured {one['date']})"
        parts.append(f"on {title}: <strong>{html.escape(text)}</strong>")
    display(HTML(f"<p>Quick scale {'; '.join(parts)}.</p>"))


def compare(
    chapter: str, rows: Sequence[tuple[str, object, float | None]], *, caption: str, this_run: str
) -> None:
    """Show paper, recorded run and this run side by side, one row per quantity.

    ``rows`` are (what, the paper's figure as text or None, this run's number, or None where only
    the paper scale measures it); the recorded column has mean ± standard deviation over seeds of
    the paper-scale run of ``chapter``. ``this_run`` says what data this run used. Introduced in
    *Adversarial examples*.
    """
    record = run(chapter)
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
        display(HTML(f"<p>{html.escape(provenance(record))}</p>"))


def provenance(record: Mapping[str, Any]) -> str:
    """Return one sentence that says where a recorded run comes from.

    Introduced in *Adversarial examples*.
    """
    seeds = ", ".join(str(seed) for seed in record.get("seeds", []))
    games = f", seeds {seeds}" if seeds else ""
    if copies := record.get("copies"):
        games = f", seed {seeds}, {copies} cop{'y' if copies == 1 else 'ies'}"
    return (
        f"Recorded {record['date']} at commit {record['commit']} on {record['device']}{games}"
        f", {record['seconds']:.0f} s in all."
    )


def _spread(values: Sequence[float] | None) -> str | None:
    if not values:
        return None
    if len(values) == 1:
        return number(values[0])
    return f"{number(mean(values))} ± {stdev(values):.2g} ({len(values)} seeds)"


__all__ = ["compare", "provenance", "run", "run_time", "tensors"]
