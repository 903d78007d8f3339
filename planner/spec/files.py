"""Text of a file that a user names; what is no text file of a sane size is refused."""

import stat
from difflib import get_close_matches
from pathlib import Path

from planner.errors import SpecError
from planner.units import MIB

MAX_FILE_BYTES = 4 * MIB


def read_text(path: Path) -> str:
    """Read a UTF-8 file; SpecError says why not."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise SpecError(f"{path}: is a folder; name the file in it")
        if not stat.S_ISREG(mode):
            raise SpecError(f"{path}: is not a regular file; name a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; {_near(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{str(path)!r}: cannot be read: {reason}; check the path") from None
    if len(content) > MAX_FILE_BYTES:
        raise SpecError(
            f"{path}: is larger than {MAX_FILE_BYTES // MIB} MiB; name a configuration, not weights"
        )
    return _decode(path, content)


def _near(path: Path) -> str:
    """Offer the names that are there instead."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = get_close_matches(path.name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"look into {path.parent}"


def _decode(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SpecError(f"{path}:1: is UTF-16; save it as UTF-8")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise SpecError(f"{path}:{line}: is a binary file; name a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise SpecError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        ) from None
