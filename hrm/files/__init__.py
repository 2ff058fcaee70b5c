"""Files and folders: written whole or not at all, refused early, read with errors that name them."""

from hrm.files.locking import lock
from hrm.files.reading import checksum, decode, encoding_of, read_json, require_unchanged, visible
from hrm.files.targets import require_file, require_new, require_writable
from hrm.files.writing import discard, folder_written_beside, write_json, written_beside

__all__ = [
    "checksum",
    "decode",
    "discard",
    "encoding_of",
    "folder_written_beside",
    "lock",
    "read_json",
    "require_file",
    "require_new",
    "require_unchanged",
    "require_writable",
    "visible",
    "write_json",
    "written_beside",
]
