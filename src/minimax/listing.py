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
            yield f"{row:50} {origin}  {seeds}{copies}" + (f"  {why}" if why else "")


def _records(name: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the record, or those of its rows, each with its name."""
    if "date" in record:
        yield name, record
        return
    for key, part in record.items():
        yield from _records(f"{name} {key}", part)


def stale(name: str, record: Mapping[str, Any]) -> str:
    """Return which of the settings that it keeps are others today: "STALE: …", "" or "?: why not".

    A chapter's settings are what its calls of ``at_scale`` give at paper scale; a time is stale
    once its chapter changed. Introduced in *How to use this book*.
    """
    name, _, row = name.partition(" ")
    chapter = row.split()[0] if name == "timings" else name.removesuffix("/chapter")
    if name == "timings" or name.endswith("/chapter"):
        if not (ROOT / "book").exists():
            return "?: there is no clone to compare with"
        if not (ROOT / "book" / f"{chapter}.ipynb").exists():
            return "STALE: the chapter is gone"
    if name == "timings":
        changed = changed_since(record["commit"], f"book/{chapter}.md")
        if changed is None:
            return "?: its commit is not in this clone"
        return "STALE: the chapter changed" if changed else ""
    old = record.get("settings", {})
    if name.endswith("/chapter"):
        before, now = Counter(old), Counter(paper_settings(chapter))
        others = [f"paper={setting} is gone" for setting in (before - now).elements()]
        others += [f"paper={setting} is new" for setting in (now - before).elements()]
        return f"STALE: {'; '.join(others)}" if others else ""
    try:
        if "cell" in record:
            old = collapse.recorded_settings(record)
            today = collapse.settings(collapse.Cell(**record["cell"]))
        elif name.startswith("dcgan/"):
            today = dcgan.settings(name.removeprefix("dcgan/"))
        else:
            today = robust.SETTINGS_OF.get(name, old)
    except ValueError as error:  # no such method, table or data set any more
        return f"STALE: {error}"
    differs = recorded.difference({k: v for k, v in old.items() if k != "bf16"}, today)
    return f"STALE: {differs}" if differs else ""
