"""Checkpoints of a game: tensors as safetensors, what they belong to as JSON beside them.

Each file is written under another name and renamed, the JSON last: a checkpoint whose JSON is there
is whole. The last two are kept.
"""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from minimax.files import write_whole

KEEP = 2
FORMAT = "minimax game 1"


@dataclass
class Checkpoint:
    """The state of a game after ``round`` rounds."""

    path: Path
    round: int
    tensors: dict[str, Tensor]


def save(folder: Path, now: int, game: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Keep ``tensors``, the state after ``now`` rounds of ``game``; drop the oldest checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    data = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        "round": now,
        "game": game,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path = folder / f"round-{now:08d}.json"
    write_whole(path.with_suffix(".safetensors"), data)
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    for old in _paths(folder)[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def newest(folder: Path, game: dict[str, Any]) -> Checkpoint | None:
    """Return the newest checkpoint of ``game`` in ``folder``, or None if there is none.

    One that is damaged, or of another game, is named in a warning and the one before it is taken.
    Raises ValueError if the folder holds nothing but checkpoints of other games.
    """
    foreign = None
    for path in reversed(_paths(folder)):
        try:
            return _read(path, game)
        except _Refused as error:
            warnings.warn(f"The checkpoint {path} is refused: {error}.", stacklevel=3)
            if isinstance(error, _Foreign):
                foreign = f"The checkpoint {path} is refused: {error}; name another folder."
    if foreign:
        raise ValueError(foreign)
    return None


def rounds_kept(folder: Path) -> list[int]:
    """Return the rounds of the checkpoints in ``folder``, in order."""
    return [int(path.stem.removeprefix("round-")) for path in _paths(folder)]


def _paths(folder: Path) -> list[Path]:
    found = folder.glob("round-*.json") if folder.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"round-\d{8}", path.stem))


class _Refused(Exception):
    """A checkpoint can't be used."""


class _Foreign(_Refused):
    """A checkpoint belongs to another game."""


def _read(path: Path, game: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint at ``path``; raise _Refused, and say why, if it is none of ``game``."""
    try:
        record = json.loads(path.read_bytes())
        data = path.with_suffix(".safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise _Refused(f"it can't be read ({error})") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _Refused(f"its format is not {FORMAT!r}")
    if record.get("game") != game:
        raise _Foreign(f"it belongs to another game: {_difference(record.get('game'), game)}")
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise _Refused(f"its tensors are damaged or cut short ({len(data)} bytes)")
    # Cloned: tensors that lie unaligned in the file's bytes crash the fused optimisers.
    tensors = {name: tensor.clone() for name, tensor in from_bytes(data).items()}
    return Checkpoint(path, record["round"], tensors)


def _difference(theirs: Any, ours: Any, where: str = "") -> str:
    """Say in what two fingerprints differ first."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        for key in ours:
            if theirs[key] != ours[key]:
                return _difference(theirs[key], ours[key], f"{where} {key}")
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            if one != other:
                return _difference(one, other, f"{where} {index + 1}")
    return f"{where.strip() or 'it'} is {theirs!r} there and {ours!r} here"
