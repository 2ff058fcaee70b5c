"""Generated sections of Markdown files, between two markers."""

from pathlib import Path

from hrm.files import written_beside


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def section(path: Path, name: str) -> str | None:
    """The text between the markers; None if the file has none."""
    parts = _split(path, name)
    return parts and parts[1].strip("\n")


def fill(path: Path, name: str, text: str) -> bool:
    """Put ``text`` between the markers; return whether the file has them."""
    parts = _split(path, name)
    if parts is None:
        return False
    begin, end = markers(name)
    with written_beside(path) as part:
        part.write_text(f"{parts[0]}{begin}\n{text.rstrip()}\n{end}{parts[2]}")
    return True


def _split(path: Path, name: str) -> tuple[str, str, str] | None:
    """The text before, between and after the markers."""
    begin, end = markers(name)
    head, found, rest = path.read_text().partition(begin)
    if not found:
        return None
    old, _, tail = rest.partition(end)
    return head, old, tail
