"""Files that are there whole or not at all.

Floor 0; called by recorded, game, chapters.
"""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` under another name and rename it: a killed process leaves no half of it.

    The other name is this call's own, so that two processes may write ``path`` at once, and it is
    gone if the disk is full. Raises OSError then.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
