"""Files that are whole or absent."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def refuse_existing(path: Path, force: bool) -> None:
    """Raise where nothing may be written.

    Raises:
        FileExistsError: it exists, and not ``force``.
        OSError: its folder does not exist, or it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")


def write(path: Path, content: bytes, force: bool) -> None:
    """Write a file under another name, and move it: whoever finds it under its own finds all of it."""
    refuse_existing(path, force)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:  # no file or link of that name that is there
            file.write(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
