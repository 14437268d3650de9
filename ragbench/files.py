"""Files that are whole or absent: atomic writes, and hashes of what is there."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; results are meant to be read by colleagues.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_remembered(path: Path) -> str:
    """Return what `sha256_file` does; this process reads the file again only if it is another or was written since.

    For large files that are asked about many times, and whose damage is looked for elsewhere.
    """
    state = path.stat()
    return _sha256_at(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=512)
def _sha256_at(path: Path, state: tuple[int, ...]) -> str:
    return sha256_file(path)


def sha256_text(*parts: str) -> str:
    """Return the SHA-256 of several strings, each with its length, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_folder(
    folder: Path, patterns: tuple[str, ...] = ("**/*",), of_file: Callable[[Path], str] = sha256_file
) -> str:
    """Return one SHA-256 over the relative names and the contents of a folder's files that match `patterns`.

    Args:
        of_file: how a file's own SHA-256 is had: read each time, or `sha256_remembered`.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return sha256_text(*(part for path in files for part in (path.relative_to(folder).as_posix(), of_file(path))))
