"""Reading text and JSON, and checking that files have not changed."""

import codecs
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrm.errors import InputError


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins with ``head``: UTF-8, unless a byte order mark says UTF-16."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decode(data: bytes) -> str:
    """The bytes of a text file as text, without the byte order mark of Windows tools.

    Raises:
        UnicodeDecodeError: ``data`` is not text.
    """
    return data.decode(encoding_of(data))


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """The sorted matches in ``folder``, without hidden names such as the ``._name`` in archives from a Mac."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(decode(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:  # ValueError: also for a number of thousands of digits
        raise InputError(f"{path} is not JSON: {error}") from None


def checksum(path: Path) -> dict[str, int]:
    """``bytes`` and ``crc32`` of a file, for :func:`require_unchanged`."""
    crc32 = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc32, size = zlib.crc32(block, crc32), size + len(block)
    return {"bytes": size, "crc32": crc32}


def require_unchanged(path: Path, expected: Mapping[str, int]) -> None:
    """Check a file against the :func:`checksum` taken when it was written.

    Raises:
        InputError: the file is missing or has changed.
    """
    size = path.stat().st_size if path.is_file() else None
    if size != expected["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes"
        raise InputError(f"{path.name} {state}, expected {expected['bytes']}")
    if checksum(path)["crc32"] != expected["crc32"]:
        raise InputError(f"the contents of {path.name} have changed since it was written")
