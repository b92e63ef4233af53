"""What a recorded run comes from: the commit, what no commit holds, and the device."""

import datetime
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
# What earlier runs wrote is no part of the code.
RECORDS = [f":(exclude,glob)src/minimax/recorded/**/*.{kind}" for kind in ("json", "safetensors")]


def origin() -> dict[str, Any]:
    """Return where a run that begins now comes from; the device may be another in the end.

    Introduced in *How to use this book*.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": device_used(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """Return the commit that the package is at, with "-dirty" if it has ``changes``.

    "unknown" without git, and where the repository that git finds is another one around the book.
    Introduced in *How to use this book*.
    """
    if not _in_its_repository():
        return "unknown"
    name = _git("describe", "--always", "--abbrev=10").strip()
    return name + "-dirty" if changes() else name


def changes() -> list[str]:
    """Return the files that differ from the commit, and those of src and book that it lacks.

    Introduced in *How to use this book*.
    """
    if not _in_its_repository():
        return []
    changed = _git("diff", "HEAD", "--name-only", "--", ".", *RECORDS)
    new = _git("ls-files", "--others", "--exclude-standard", "--", "src", "book", *RECORDS)
    return [*changed.splitlines(), *new.splitlines()]


def changed_since(commit: str, file: str) -> bool | None:
    """Return whether ``file`` has changed since ``commit``; None where git can't tell.

    Introduced in *How to use this book*.
    """
    commit = commit.removesuffix("-dirty")
    if not _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        return None
    return bool(_git("diff", "--name-only", commit, "--", file).strip())


def _in_its_repository() -> bool:
    top = _git("rev-parse", "--show-toplevel").strip()
    return bool(top) and Path(top) == ROOT.resolve() and bool(_git("ls-files", "src/minimax"))


def _git(*command: str) -> str:
    """Return what git says; "" if it fails or there is none."""
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *command], capture_output=True, encoding="utf-8", check=False
        ).stdout
    except FileNotFoundError:
        return ""


def checkpoint_folder(base: Path, what: str, settings: Mapping[str, Any]) -> Path:
    """Return the folder in ``base`` for the checkpoints of ``what``.

    Other settings have another folder, and so has another version: another commit, another torch,
    or other source files, which tells apart trees with changes and those of an unknown commit.
    Introduced in *How to use this book*.
    """
    version = [commit(), torch.__version__, dict(settings)]
    digest = hashlib.sha256(json.dumps(version, sort_keys=True, default=str).encode())
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return base / f"minimax-{what}-{digest.hexdigest()[:16]}"


def device_used() -> str:
    """Return the name of the device on which this process has computed: a GPU that was not is none.

    Introduced in *How to use this book*.
    """
    for index in range(torch.cuda.device_count()):
        if torch.cuda.max_memory_allocated(index) > 0:
            return torch.cuda.get_device_name(index)
    cores = torch.get_num_threads()
    return f"{cores} CPU core{'s' if cores > 1 else ''} ({platform.machine()})"


def processor() -> str:
    """Return the name of the machine's processor, as far as it is known.

    Introduced in *How to use this book*.
    """
    about = Path("/proc/cpuinfo")
    text = about.read_text("utf-8") if about.exists() else ""
    named = re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()
