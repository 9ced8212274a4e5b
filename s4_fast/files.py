"""Files that are whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def refuse_existing(path: Path, force: bool) -> None:
    """Raise where nothing may be written.

    Raises:
        FileExistsError: it exists, and not ``force``.
        OSError: its folder does not exist, or it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if os.path.lexists(path) and not force:
        raise FileExistsError(f"{path} exists")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")


@contextmanager
def writing(path: Path, force: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` when the block ends without an error, and is gone otherwise.

    Whoever finds it under its name finds all of it, after a power failure too. A link of that name is replaced, and
    what it points to stays. Devices, pipes and what is in ``/dev`` or ``/proc`` are written through.

    Raises:
        OSError: as ``refuse_existing``; or it cannot be written.
    """
    refuse_existing(path, force)
    if _is_stream(path):
        with path.open("wb") as file:
            yield file
        return
    # A name that nobody can guess, and that is no longer than the file system takes.
    part = path.with_name(f".{secrets.token_hex(16)}.part")
    try:
        with part.open("xb") as file:  # with the permissions of the umask, and no file or link that is there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename in (str(part), part):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, content: bytes | str, force: bool = True) -> None:
    """Write ``content``, text as UTF-8, by ``writing``."""
    with writing(path, force) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _is_stream(path: Path) -> bool:
    return (path.exists() and not path.is_file()) or path.absolute().parts[1:2] in (("dev",), ("proc",))
