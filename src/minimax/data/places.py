"""Where files lie, how they are fetched, and what is said when they can't be had.

A file counts as whole only after its checksum, or the loader that reads it, has said so: downloads
go to a temporary folder and are renamed when they are complete.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minimax.errors import refuse
from minimax.later import Later

utils = Later("torchvision.datasets.utils")
DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


class DataError(RuntimeError):
    """A data set can't be had, or a file of it is damaged; the message says what to do."""


@dataclass(frozen=True)
class Need:
    """What an error has to say of a data set: its name, its size, what stands in for it."""

    name: str
    size: str
    stand_in: str

    def missing(self, why: str) -> DataError:
        """Return the error for a data set that is in no place."""
        tried = ", ".join(str(place) for place in places())
        stand_in = f" Embedded stand-in: load({self.stand_in!r})." if self.stand_in else ""
        return DataError(
            f"Data set {self.name!r} ({self.size}) is not in {tried}, and {why}.{stand_in}"
        )

    def damaged(self, path: Path, why: object) -> DataError:
        """Return the error for a file that is there but not whole."""
        return DataError(
            f"Data set {self.name!r}: {path} is damaged ({why}). Replace or remove it."
        )


def cache() -> Path:
    """Return the folder where downloads are kept: MINIMAX_CACHE or the user's cache folder.

    Raises ValueError for a relative path, and where neither that nor a home folder is known.
    """
    if chosen := os.environ.get("MINIMAX_CACHE"):
        return _absolute("MINIMAX_CACHE", chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # a relative one is to be ignored, its specification says
        return Path(base) / "minimax"
    return _absolute("MINIMAX_CACHE", "~/.cache/minimax")


def places() -> list[Path]:
    """Return the folders that are searched, in order: MINIMAX_DATA, if set, then the cache.

    Raises ValueError for a relative MINIMAX_DATA, or one that names no folder: the stand-ins would
    be taken without a word.
    """
    given = os.environ.get("MINIMAX_DATA")
    if not given:
        return [cache()]
    folder = _absolute("MINIMAX_DATA", given)
    if not folder.is_dir():
        refuse("MINIMAX_DATA", given, "a folder that exists")
    return [folder, cache()]


def _absolute(variable: str, path: str) -> Path:
    """Return ``path``, refused if it is relative: a chapter runs in its own folder."""
    try:
        folder = Path(path).expanduser()
    except RuntimeError:
        refuse(variable, path, "a folder named in full: no home folder is known here")
    if not folder.is_absolute():
        refuse(variable, path, "an absolute path, the same for scripts and for chapters")
    return folder


def find(need: Need, relative: str) -> Path:
    """Return the first existing ``relative`` path of the places, or raise DataError."""
    for place in places():
        if (place / relative).exists():
            return place / relative
    raise need.missing(f"no download is known for {relative}: put it into the first of these")


def verified(need: Need, relative: str, md5: str, urls: list[str]) -> Path:
    """Return a file whose MD5 is ``md5``, from the places or downloaded from one of ``urls``.

    A file in the cache that fails its checksum is removed and fetched again; one in MINIMAX_DATA
    belongs to the user and is named in the DataError instead.
    """
    for place in places():
        path = place / relative
        if not path.exists():
            continue
        with reading(need, path):
            found = utils.calculate_md5(path)
        if found == md5:
            return path
        if place != cache():
            raise need.damaged(path, f"its MD5 is {found}, not {md5}")
        path.unlink()

    target = cache() / relative

    def fetch(folder: Path) -> Path:
        failures = []
        for url in urls:
            try:
                utils.download_url(url, str(folder), filename=target.name, md5=md5)
                return folder / target.name
            except (OSError, RuntimeError) as error:
                if disk_fault(error):
                    raise
                failures.append(f"{url}: {error}")
        raise need.missing(
            "the download failed (" + "; ".join(failures) + ")" + _unpacked(relative)
        )

    return whole(need, target, fetch)


def _unpacked(relative: str) -> str:
    """Return what to say of a file that is in one of the places, but without its compression."""
    for place in places():
        if relative.endswith(".gz") and (found := (place / relative).with_suffix("")).exists():
            return f"; {found} is there unpacked, but only {found.name}.gz can be checked"
    return ""


def disk_fault(error: Exception) -> bool:
    """Return whether ``error`` is the disk's fault, not the network's."""
    return isinstance(error, OSError) and error.errno in DISK


def whole(need: Need, target: Path, make: Callable[[Path], Path]) -> Path:
    """Let ``make`` fill a temporary folder, then rename what it returns to ``target``."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
            made = make(Path(folder))
            if target.is_dir():
                shutil.rmtree(target)
            made.replace(target)
    except OSError as error:
        raise DataError(
            f"Data set {need.name!r} ({need.size}) could not be kept at {target}: "
            f"{error.strerror or error}. Free some space, or set MINIMAX_CACHE to another folder."
        ) from error
    return target


@contextmanager
def reading(need: Need, path: Path) -> Iterator[None]:
    """Turn whatever a damaged ``path`` makes its reader raise into one DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # each format's reader has its own exceptions
        raise need.damaged(path, f"{type(error).__name__}: {error}") from error
