"""What is recorded, and what of it is stale: ``python -m minimax.reproduce list`` shows it.

Floor 5; called by reproduce.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from minimax import collapse, dcgan, recorded, robust
from minimax.chapters import paper_settings
from minimax.recorded.origin import ROOT, changed_since


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

    A chapter's settings are what its calls of ``at_scale`` give at paper scale; a time is stale
    once its chapter changed. Introduced in *How to use this book*.
    """
    if name.startswith("timings"):
        chapter = name.split()[1]
        return f"{chapter} changed" * changed_since(record["commit"], f"book/{chapter}.md")
    old = record.get("settings", {})
    if name.endswith("/chapter"):
        chapter = name.removesuffix("/chapter")
        if not (ROOT / "book").exists():  # without a clone nobody can tell
            return ""
        if not (ROOT / "book" / f"{chapter}.ipynb").exists():
            return "the chapter is gone"
        before, now = Counter(old), Counter(paper_settings(chapter))
        gone = [f"paper={setting} is gone" for setting in (before - now).elements()]
        return "; ".join(
            gone + [f"paper={setting} is new" for setting in (now - before).elements()]
        )
    try:
        if "cell" in record:
            today = collapse.settings(collapse.Cell(**record["cell"]).checked())
        elif name.startswith("dcgan/"):
            today = dcgan.settings(name.removeprefix("dcgan/"))
        else:
            today = robust.SETTINGS if name == robust.RECORD else old
    except ValueError as error:  # no such method, table or data set any more
        return str(error)
    return recorded.difference({k: v for k, v in old.items() if k != "bf16"}, today)
