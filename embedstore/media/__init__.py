"""Pixels: video, DICOM, NIfTI and stills in, ``(K, H, W, 3)`` uint8 RGB frames and a decode record out.

Everything is read from bytes in memory, so that what was hashed is what is decoded; no reader opens a file, follows
a reference or talks to a network. The decoders (extra ``[media]``) are imported when a file first needs them.
"""

from __future__ import annotations

from embedstore.media.clip import Clip, DecodeLimits, DecodeRecord, MediaProbe
from embedstore.media.pool import JobFailure, WorkerPool
from embedstore.media.readers import probe_media, read_clip
from embedstore.media.sniff import MEDIA_SUFFIXES, sniff_container, stem_without_media_suffix

__all__ = [
    "MEDIA_SUFFIXES",
    "Clip",
    "DecodeLimits",
    "DecodeRecord",
    "JobFailure",
    "MediaProbe",
    "WorkerPool",
    "probe_media",
    "read_clip",
    "sniff_container",
    "stem_without_media_suffix",
]
