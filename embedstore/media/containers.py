"""The outer structure of AVI and MP4 files, walked without a decoder: is the file whole, how large a frame it claims.

A decoder does not say that a file was cut short: it stops, and the frame count of the header may be missing or wrong.
The sizes of the outermost chunks say it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Layout", "walk_avi", "walk_mp4"]

_UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)  # left by recorders that stream, or that died before patching the header
_MAX_LISTS = 64
_SIZE_PATH = (b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_MDIA_DEPTH = 2  # where the children of mdia are looked at


@dataclass(frozen=True)
class Layout:
    """What the structure of a file says.

    Attributes
    ----------
    declared_bytes : int
        Bytes that the file should have, at least.
    is_cut : bool
        Whether it has fewer.
    frame_size : (int, int) or None
        Height and width that the header claims, before any decoder saw it.
    is_fragmented : bool
        Whether an MP4 is a chain of fragments, of which none says how many follow.
    """

    declared_bytes: int
    is_cut: bool
    frame_size: tuple[int, int] | None = None
    is_fragmented: bool = False


def walk_avi(payload: bytes) -> Layout:
    """Walk the RIFF chunks of an AVI file (Microsoft AVI RIFF File Reference; OpenDML adds further RIFF chunks)."""
    at, declared = 0, 0
    while payload[at : at + 4] == b"RIFF" and at + 8 <= len(payload):
        (size,) = struct.unpack_from("<I", payload, at + 4)
        if size in _UNKNOWN_RIFF_SIZES:
            break
        declared = at + 8 + size
        at = declared + (size & 1)
    return Layout(max(declared, 1), declared > len(payload) + 1, _avi_frame_size(payload))


def _avi_frame_size(payload: bytes) -> tuple[int, int] | None:
    """Return the size in the first video stream's BITMAPINFOHEADER; a negative height means top-down."""
    header_end = min(len(payload), 1 << 20)
    at, seen, is_video = 12, 0, False
    while at + 8 <= header_end and seen < _MAX_LISTS:
        kind, (size,) = payload[at : at + 4], struct.unpack_from("<I", payload, at + 4)
        seen += 1
        if kind == b"LIST":
            if payload[at + 8 : at + 12] == b"movi":
                return None
            at += 12
            continue
        if kind == b"strh":
            is_video = payload[at + 8 : at + 12] == b"vids"
        if kind == b"strf" and is_video and at + 20 <= len(payload):
            width, height = struct.unpack_from("<ii", payload, at + 12)
            return abs(height), abs(width)
        at += 8 + size + (size & 1)
    return None


def _boxes(payload: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of the content, declared end) of the boxes from ``at``; the last may end past ``end``."""
    while at + 8 <= end:
        (size,) = struct.unpack_from(">I", payload, at)
        kind, content = payload[at + 4 : at + 8], at + 8
        if size == 1 and at + 16 <= end:
            (size,) = struct.unpack_from(">Q", payload, at + 8)
            content = at + 16
        elif size == 0:
            size = end - at
        if at + size < content:
            return
        yield kind, content, at + size
        at += size


def walk_mp4(payload: bytes) -> Layout:
    """Walk the boxes of an ISO or QuickTime file (ISO/IEC 14496-12, 4.2)."""
    declared, frame_size, is_fragmented = 1, None, False
    for kind, content, declared in _boxes(payload, 0, len(payload)):
        is_fragmented = is_fragmented or kind == b"moof"
        if kind == b"moov":
            frame_size = _mp4_frame_size(payload, content, min(declared, len(payload)))
    return Layout(declared, declared > len(payload), frame_size, is_fragmented)


def _mp4_frame_size(payload: bytes, at: int, end: int, *, depth: int = 0) -> tuple[int, int] | None:
    """Return the size in the first visual sample entry below moov (ISO/IEC 14496-12, 8.5.2 and 12.1.3)."""
    for kind, content, box_end in _boxes(payload, at, end):
        if kind == b"hdlr" and depth == _MDIA_DEPTH and payload[content + 8 : content + 12] != b"vide":
            return None  # the rest of this mdia describes something else than pictures
        if kind != _SIZE_PATH[depth]:
            continue
        if kind == b"stsd":
            if content + 44 > min(box_end, end):
                return None
            width, height = struct.unpack_from(">HH", payload, content + 8 + 32)
            return height, width
        found = _mp4_frame_size(payload, content, min(box_end, end), depth=depth + 1)
        if found is not None:
            return found
    return None
