"""What is recorded, and what of it is stale: ``python -m minimax.reproduce list`` shows it.

Floor 5; called by reproduce.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from minimax import recorded
from minimax.collapse import Cell, settings
from minimax.dcgan import DCGANS
from minimax.recorded.origin import ROOT, changed_since
from minimax.robust import SETTINGS


def listing() -> Iterator[str]:
    """Yield a line for each record: its name, date, commit, device, seeds, and why it is stale.

    Introduced in *How to use this book*.
    """
    for path in sorted(recorded.FOLDER.rglob("*.json")):
        name = path.relative_to(recorded.FOLDER).with_suffix("").as_posix()
        for row, record in _records(name, recorded.run(name) or {}):
            seeds = "seeds " + " ".join(map(str, record.get("seeds", ["–"])))
            copies = f" × {record['copies']} copies" if "copies" in record else ""
            origin = f"{record['date']}  {record['commit']}  {record['device']}"
            why = stale(row, record)
            yield f"{row:50} {origin}  {seeds}{copies}" + (f"  STALE: {why}" if why else "")


def _records(name: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the record, or those of its rows, each with its name."""
    if "date" in record:
        yield name, record
        return
    for key, part in record.items():
        yield from _records(f"{name} {key}", part)


def stale(name: str, record: Mapping[str, Any]) -> str:
    """Return which of its settings are others today, or "" if it would be played the same way.

    A chapter's settings are its calls of ``at_scale``; a time is stale once its chapter changed.
    Introduced in *How to use this book*.
    """
    if name.startswith("timings"):
        chapter = name.split()[1]
        return f"{chapter} changed" * changed_since(record["commit"], f"book/{chapter}.md")
    if name.endswith("/chapter"):
        source = ROOT / "book" / f"{name.removesuffix('/chapter')}.md"
        if not source.exists():  # without a clone nobody can tell
            return ""
        now = _bare(source.read_text("utf-8"))
        calls = (_call(_bare(line)) for line in record["settings"])
        return "; ".join(call for call in calls if call not in now)
    if "cell" in record:
        today = settings(Cell(**record["cell"]))
    else:
        today = DCGANS[name.removeprefix("dcgan/")] if name.startswith("dcgan/") else SETTINGS
    today = json.loads(json.dumps(today))  # a tuple is recorded as a list
    old = record.get("settings", {})
    return ", ".join(f"{key} {old[key]}" for key in old.keys() & today if old[key] != today[key])


def _call(line: str) -> str:
    """Return the call of ``at_scale`` in ``line``, or as much of it as stands there."""
    call = line[line.index("at_scale(") :]
    ends = (
        at for at in range(1, len(call) + 1) if call[:at].count("(") == call[:at].count(")") > 0
    )
    return call[: next(ends, len(call))]


def _bare(code: str) -> str:
    """Return ``code`` without spaces and line breaks, which say nothing of what is run."""
    return "".join(code.split())
