"""Sizes and completeness of JPEG, JPEG 2000 and PNG codestreams, read from their own markers before decoding.

A decoder allocates by what the codestream declares, and some return a grey remainder for one that was cut.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

__all__ = ["codestream_size", "is_whole_jpeg", "png_chunks"]

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# Start of frame markers, ITU-T T.81 table B.1 (C4, C8, CC are no frames), and JPEG-LS's (ITU-T T.87).
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# In entropy-coded data FF is followed by 00 or a restart marker (JPEG-LS: by a byte below 80).
_NEXT_MARKER = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])", re.DOTALL)


def _jpeg_segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, start of its segment) in order; stops where the stream ends or makes no sense."""
    at = 2
    while at + 2 <= len(stream):
        if stream[at] != 0xFF:
            return
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == _EOI:
            yield marker, b""
            return
        if at + 2 > len(stream):
            return
        (length,) = struct.unpack_from(">H", stream, at)
        yield marker, stream[at + 2 : at + min(length, 16)]
        at += length
        if marker == _SOS:
            found = _NEXT_MARKER.search(stream, at)
            if found is None:
                return
            at = found.start(1) - 1


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG, JPEG-LS or JPEG 2000 codestream, None where its headers do not say.

    Examples
    --------
    >>> codestream_size(bytes.fromhex("ff4fff51002f0000 00000140000000f0 0000000000000000".replace(" ", "")))
    (240, 320)
    """
    if stream[:2] == b"\xff\xd8":
        size = None
        for marker, segment in _jpeg_segments(stream):
            if marker in _SOF and len(segment) >= 5:
                size = struct.unpack_from(">HH", segment, 1)
            if marker == _SOS:  # the headers are whole
                return size if size and all(size) else None  # height 0: a DNL marker will say
        return None
    at = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(stream) < at + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", stream, at + 8)
    return bottom - top, right - left


def is_whole_jpeg(stream: bytes) -> bool:
    """Say whether a JPEG stream runs on to its end marker."""
    return any(marker == _EOI for marker, _ in _jpeg_segments(stream))


def png_chunks(stream: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield (type, content, whether its checksum holds) of each whole chunk of a PNG (W3C PNG, 5.3)."""
    at = 8
    while at + 12 <= len(stream):
        (length,) = struct.unpack_from(">I", stream, at)
        if at + 12 + length > len(stream):
            return
        kind, content = stream[at + 4 : at + 8], stream[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", stream, at + 8 + length)
        yield kind, content, zlib.crc32(kind + content) == checksum
        at += 12 + length
