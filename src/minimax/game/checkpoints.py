"""Checkpoints of a game: tensors as safetensors, what they belong to as JSON beside them.

Each file is written under another name and renamed, the JSON last: a checkpoint whose JSON is there
is whole. The last two are kept.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from minimax.errors import Words, refuse
from minimax.files import write_whole
from minimax.game.parallel import is_first

KEEP = 2
FORMAT = "minimax game 2"
State = dict[str, Tensor]


@dataclass
class Checkpoint:
    """The state of a game after ``round`` rounds, whose batches had the shapes ``batch``."""

    path: Path
    round: int
    batch: list[list[int]]
    tensors: State


class Folder:
    """The folder in which the checkpoints of ``game``, a fingerprint, are kept.

    As a context it holds a lock: a second game that wants the folder is refused. Raises ValueError
    for a folder that can't be made or written.
    """

    def __init__(self, path: str | Path, game: dict[str, Any]) -> None:
        self.path, self.game = Path(path), json.loads(json.dumps(game))
        self.lock = FileLock(self.path / ".lock", timeout=0)
        self.own: list[Path] = []  # what this run has written or taken up: only that is dropped
        self.damaged: set[Path] = set()

    def __enter__(self) -> "Folder":
        if not is_first():
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            for partial in self.path.glob("round-*.partial"):  # of a run that was killed
                partial.unlink()
        except Timeout:
            refuse("checkpoint", str(self.path), "a folder that no other running game uses")
        except (OSError, NotImplementedError) as error:
            refuse("checkpoint", str(self.path), f"a folder that can be written ({error})")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lock.release()

    def save(self, now: int, batch: Sequence[Tensor], tensors: State) -> None:
        """Keep ``tensors``, the state after ``now`` rounds; drop the oldest that is ours.

        If that fails, on a full disk for example, a warning says so and nothing half-written stays.
        What belongs to another game is left alone.
        """
        path = self.path / f"round-{now:08d}.json"
        if path.exists() and path not in {*self.own, *self.damaged}:
            text = (
                f"The checkpoint {path} belongs to another game and is left: name another folder."
            )
            warnings.warn(text, stacklevel=3)
            return
        whole = torch.contiguous_format
        data = to_bytes(
            {k: t.detach().cpu().clone(memory_format=whole) for k, t in tensors.items()}
        )
        record = {
            "format": FORMAT,
            "round": now,
            "batch": _shapes(batch),
            "game": self.game,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            path.unlink(missing_ok=True)  # a damaged one: it must not speak for the new tensors
            write_whole(path.with_suffix(".safetensors"), data)
            write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
        except OSError as error:
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            text = f"The checkpoint {path} could not be written ({error}); the game goes on."
            warnings.warn(text, stacklevel=3)
            return
        self.own = [*self.own, path]
        for old in self.own[:-KEEP]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        self.own = self.own[-KEEP:]

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint of the game, or None if there is none.

        One that is damaged, or of another game, is named in a warning and the one before it is
        taken. Raises ValueError if the folder holds nothing but checkpoints of other games.
        """
        foreign, found = None, None
        for path in reversed(_paths(self.path)):
            try:
                checkpoint = self._read(path)
            except _Refused as error:
                if found is None:
                    warnings.warn(f"The checkpoint {path} is refused: {error}.", stacklevel=3)
                if isinstance(error, _Foreign):
                    foreign = f"The checkpoint {path} is refused: {error}; name another folder."
                else:
                    self.damaged.add(path)
                continue
            self.own = [path, *self.own]
            found = found or checkpoint
        if foreign and found is None:
            raise ValueError(foreign)
        return found

    def compare(self, found: Checkpoint, batch: Sequence[Tensor]) -> None:
        """Refuse ``batch`` unless it has the shapes of those that led to ``found``."""
        if (shapes := _shapes(batch)) != found.batch:
            got = Words(f"giving shapes {shapes}")
            refuse("batches", got, f"giving {found.batch}, as in {found.path}; name another folder")

    def rounds(self) -> list[int]:
        """Return the rounds of this game's checkpoints, in order."""
        return [int(path.stem.removeprefix("round-")) for path in self.own]

    def _read(self, path: Path) -> Checkpoint:
        """Return the checkpoint at ``path``; raise _Refused, and say why, if it is no good."""
        try:
            record = json.loads(path.read_bytes())
            data = path.with_suffix(".safetensors").read_bytes()
        except (OSError, ValueError) as error:
            raise _Refused(f"it can't be read ({error})") from None
        if not isinstance(record, dict):
            raise _Refused("it is no record")
        if record.get("format") != FORMAT:
            raise _Foreign(f"its format is {record.get('format')!r}, not {FORMAT!r}")
        if record.get("game") != self.game:
            theirs = _difference(record.get("game"), self.game)
            raise _Foreign(f"it belongs to another game: {theirs}")
        if hashlib.sha256(data).hexdigest() != record.get("sha256"):
            raise _Refused(f"its tensors are damaged or cut short ({len(data)} bytes)")
        # Cloned: tensors that lie unaligned in the file's bytes crash the fused optimisers.
        tensors = {name: tensor.clone() for name, tensor in from_bytes(data).items()}
        return Checkpoint(path, record["round"], record["batch"], tensors)


def _shapes(batch: Sequence[Tensor]) -> list[list[int]]:
    return [list(part.shape) for part in batch]


def _paths(folder: Path) -> list[Path]:
    found = folder.glob("round-*.json") if folder.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"round-\d{8}", path.stem))


class _Refused(Exception):
    """A checkpoint can't be used."""


class _Foreign(_Refused):
    """A checkpoint belongs to another game."""


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
