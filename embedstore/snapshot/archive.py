"""Archives of a snapshot: ZIP files, stored, sorted, without times, so that equal snapshots are equal bytes.

Nothing is compressed, so nothing can expand. Members stand one after the other from the first byte to the central
directory, which ends the file; `open_archive` reads that form alone. A general ZIP reader accepts what it refuses:
members that overlap, a directory that says other than the members, bytes between them, links, comments.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from embedstore.disk import storage_errors
from embedstore.errors import HostileInputError, UnknownNameError
from embedstore.files import HashingFile, write_file
from embedstore.folders import confirm_names
from embedstore.layout import STAGING_PREFIX
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_FILES, SIDE_FILES, SentSnapshot
from embedstore.snapshot.paths import check_paths, path_name

__all__ = ["Member", "archive_names", "find_parts", "open_archive", "write_archives"]

_BLOCK_BYTES = 1 << 20
_LIMIT32 = 0xFFFFFFFF
_LIMIT16 = 0xFFFF
# APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_EXTRA64 = struct.Struct("<2H3Q")
_LOCAL_EXTRA64 = struct.Struct("<2H2Q")
_VERSION, _DATE = 45, 0x21  # ZIP64; 1 January 1980, the first day that ZIP has
_MODE = 0o100644 << 16
_UNIX = 3 << 8
_MAX_DIRECTORY_BYTES = 512 << 20


@dataclass(frozen=True)
class Member:
    """A file inside an archive: its path, where its bytes begin, how many they are."""

    path: str
    offset: int
    size: int


# -- writing ------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, handle: HashingFile) -> None:
        self._handle = handle
        self._central: list[bytes] = []

    def add(self, path: str, source: Path) -> None:
        """Add a file: its checksum is computed first, so that the archive is written from front to back."""
        size, crc = _crc_of(source)
        name = path.encode("ascii")
        offset = self._handle.tell()
        head = (_VERSION, 0, 0, 0, _DATE, crc, _LIMIT32, _LIMIT32, len(name))
        self._handle.write(_LOCAL.pack(b"PK\3\4", *head, _LOCAL_EXTRA64.size) + name)
        self._handle.write(_LOCAL_EXTRA64.pack(1, 16, size, size))
        with source.open("rb", buffering=0) as opened:
            while block := opened.read(_BLOCK_BYTES):
                self._handle.write(block)
        fields = (_EXTRA64.size, 0, 0, 0, _MODE, _LIMIT32)
        self._central.append(
            _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, *head, *fields)
            + name
            + _EXTRA64.pack(1, 24, size, size, offset)
        )

    def finish(self) -> None:
        start, directory = self._handle.tell(), b"".join(self._central)
        count = len(self._central)
        self._handle.write(directory)
        end64 = self._handle.tell()
        self._handle.write(
            _END64.pack(b"PK\6\6", 44, _UNIX | _VERSION, _VERSION, 0, 0, count, count, len(directory), start)
        )
        self._handle.write(_LOCATOR.pack(b"PK\6\7", 0, end64, 1))
        self._handle.write(_END.pack(b"PK\5\6", 0, 0, _LIMIT16, _LIMIT16, _LIMIT32, _LIMIT32, 0))


def _crc_of(path: Path) -> tuple[int, int]:
    crc = size = 0
    with storage_errors(path, "read"), path.open("rb", buffering=0) as handle:
        while block := handle.read(_BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return size, crc


def archive_names(target: Path) -> list[Path]:
    """Return the main archive and the parts of an earlier export that lie beside it.

    Raises
    ------
    UnknownNameError
        The target is not called ``.zip``.
    """
    if target.suffix != ".zip":
        raise UnknownNameError(f"an archive is called NAME.zip, got {target.name!r}; a folder needs no --archive")
    return [target, *find_parts(target)]


def find_parts(main: Path) -> list[Path]:
    """Return the parts that lie beside a main archive: ``NAME.ENCODER.zip`` beside ``NAME.zip``."""
    return sorted(
        path for path in main.parent.glob(f"{main.stem}.*.zip") if path != main and not path.name.startswith(".")
    )


def write_archives(folder: Path, snapshot: SentSnapshot, target: Path, *, split_bytes: int) -> list[Path]:
    """Write a snapshot's folder as one archive, or above ``split_bytes`` as one an encoder beside a small main one.

    Returns
    -------
    list of Path
        The main archive first.

    Raises
    ------
    UnknownNameError
        One encoder alone is larger than ``split_bytes``.
    """
    overhead = _LOCAL.size + _CENTRAL.size + _LOCAL_EXTRA64.size + _EXTRA64.size + 2 * 200
    sizes = {file.path: file.size + overhead for file in snapshot.files}
    main = [DOCUMENT_FILE, *SIDE_FILES]
    parts: dict[Path, list[str]] = {target: [*main, *sizes]}
    if sum(sizes.values()) > split_bytes:
        parts = {target: [*main, *(file.path for file in snapshot.files if file.encoder is None)]}
        for file in snapshot.files:
            if file.encoder is not None:
                name = path_name(file.encoder.replace("@", "."))
                parts.setdefault(target.with_name(f"{target.stem}.{name}.zip"), []).append(file.path)
        for part, paths in parts.items():
            size = sum(sizes.get(path, 0) for path in paths)
            if size > split_bytes:
                raise UnknownNameError(
                    f"{part.name} would have {size} bytes, more than {split_bytes}; export a folder"
                )
    made: list[tuple[Path, Path]] = []
    for part, paths in parts.items():
        temporary = folder.parent / f"{STAGING_PREFIX}{part.name}"
        with write_file(temporary, named=part) as handle:
            writer = _Writer(handle)
            for path in sorted(paths):
                writer.add(path, folder / path)
            writer.finish()
        made.append((temporary, part))
    # The main archive last: where it can be seen, its parts are there.
    for temporary, part in reversed(made):
        with storage_errors(part, "write"):
            if part.exists():
                raise UnknownNameError(f"{part} is already there; name another target")
            temporary.rename(part)
        confirm_names(part)
    return list(parts)


# -- reading ------------------------------------------------------------------------------------------------


def _refuse(path: Path, what: str) -> HostileInputError:
    return HostileInputError(f"{path.name} is no archive of a snapshot: {what}")


def open_archive(path: Path, handle: BinaryIO) -> dict[str, Member]:
    """Return the members of an archive, by path, from its strict form.

    Raises
    ------
    HostileInputError
        It is no ZIP file of that form, or a member's path may not be.
    """
    size = handle.seek(0, os.SEEK_END)
    tail = _END64.size + _LOCATOR.size + _END.size
    if size < tail:
        raise _refuse(path, "it is too short")
    handle.seek(size - tail)
    ending = handle.read(tail)
    end64 = _END64.unpack(ending[: _END64.size])
    locator = _LOCATOR.unpack(ending[_END64.size : -_END.size])
    count, directory_bytes, start = end64[7], end64[8], end64[9]
    expected = _END64.pack(
        b"PK\6\6", 44, _UNIX | _VERSION, _VERSION, 0, 0, count, count, directory_bytes, start
    ) + _LOCATOR.pack(b"PK\6\7", 0, size - tail, 1)
    if ending != expected + _END.pack(b"PK\5\6", 0, 0, _LIMIT16, _LIMIT16, _LIMIT32, _LIMIT32, 0):
        raise _refuse(path, "its end is not that of an archive that embedstore wrote")
    if count > MAX_FILES or directory_bytes > _MAX_DIRECTORY_BYTES or start + directory_bytes != size - tail:
        raise _refuse(path, "it holds too many files, or other bytes beside them")
    assert locator[2] == size - tail
    handle.seek(start)
    members = list(_members(path, handle.read(directory_bytes), count))
    _require_contiguous(path, handle, members, start)
    check_paths(member.path for member in members)
    return {member.path: member for member in members}


def _members(path: Path, directory: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise _refuse(path, "its directory is cut off")
        fields = _CENTRAL.unpack_from(directory, at)
        name_bytes = directory[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
        extra_at = at + _CENTRAL.size + fields[10]
        at = extra_at + _EXTRA64.size
        if at > len(directory):
            raise _refuse(path, "its directory is cut off")
        tag, length, size, packed, offset = _EXTRA64.unpack_from(directory, extra_at)
        plain = (b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE)
        is_plain = (
            fields[:7] == plain
            and fields[8:10] == (_LIMIT32, _LIMIT32)
            and fields[11:] == (_EXTRA64.size, 0, 0, 0, _MODE, _LIMIT32)
            and (tag, length) == (1, 24)
            and size == packed
        )
        if not is_plain:
            raise _refuse(path, "a member is compressed, encrypted, a link, or otherwise not a plain stored file")
        try:
            name = name_bytes.decode("ascii")
        except UnicodeDecodeError as error:
            raise _refuse(path, "a member has a name beyond ASCII") from error
        yield Member(name, offset, size)
    if at != len(directory):
        raise _refuse(path, "its directory holds more than its members")


def _require_contiguous(path: Path, handle: BinaryIO, members: Sequence[Member], start: int) -> None:
    """Members stand one after the other, as the directory says, and fill the file up to the directory.

    The offsets of the directory are of headers; `read_member` skips them.
    """
    at = 0
    for position, member in enumerate(members):
        if member.offset != at:
            raise _refuse(path, f"member {position} does not begin where the one before ends")
        handle.seek(at)
        head = handle.read(_LOCAL.size + len(member.path) + _LOCAL_EXTRA64.size)
        crc = head[14:18]
        plain = _LOCAL.pack(
            b"PK\3\4", _VERSION, 0, 0, 0, _DATE, 0, _LIMIT32, _LIMIT32, len(member.path), _LOCAL_EXTRA64.size
        )
        expected = plain[:14] + crc + plain[18:] + member.path.encode()
        if head != expected + _LOCAL_EXTRA64.pack(1, 16, member.size, member.size):
            raise _refuse(path, f"member {position} is not what the directory says")
        at += len(head) + member.size
    if at != start:
        raise _refuse(path, "other bytes stand between its members and its directory")


def data_offset(member: Member) -> int:
    """Return where a member's bytes begin."""
    return member.offset + _LOCAL.size + len(member.path) + _LOCAL_EXTRA64.size


def listed_in(archives: Mapping[Path, Mapping[str, Member]]) -> dict[str, Path]:
    """Return which archive holds each path.

    Raises
    ------
    HostileInputError
        A path stands in two archives.
    """
    found: dict[str, Path] = {}
    for archive, members in archives.items():
        for name in members:
            if name in found:
                raise HostileInputError(f"{name} stands in {found[name].name} and in {archive.name}")
            found[name] = archive
    return found
