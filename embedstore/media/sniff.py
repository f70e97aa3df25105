"""What a file is, by its first bytes, never by its name; and the names that media files usually have."""

from __future__ import annotations

import struct
import zlib

__all__ = ["MEDIA_SUFFIXES", "sniff_container", "stem_without_media_suffix"]

# Longest first, so that `.nii.gz` goes as one suffix.
MEDIA_SUFFIXES = (".nii.gz", ".dicom", ".jpeg", ".avi", ".mp4", ".m4v", ".mov", ".dcm", ".nii", ".png", ".jpg")

_ISO_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
# Still images in an ISO container (HEIF, AVIF): not video, and not decoded here.
_ISO_IMAGE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_NIFTI_MAGICS = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_NIFTI_HEADER_BYTES = 540


def stem_without_media_suffix(path: str) -> str:
    """Return ``path`` without a known media suffix, in any case; other names are returned as they are.

    Examples
    --------
    >>> stem_without_media_suffix("p1/a.AVI"), stem_without_media_suffix("camus/p1_4CH.nii.gz")
    ('p1/a', 'camus/p1_4CH')
    >>> stem_without_media_suffix("1.2.840.10008"), stem_without_media_suffix("p1/.avi")
    ('1.2.840.10008', 'p1/.avi')
    """
    text = str(path)
    lowered = text.lower()
    for suffix in MEDIA_SUFFIXES:
        if lowered.endswith(suffix):
            stem = text[: -len(suffix)]
            if stem and not stem.endswith(("/", "\\")):
                return stem
            break
    return text


def sniff_container(payload: bytes) -> str | None:
    """Return what the content is: ``avi``, ``mp4``, ``dicom``, ``nifti``, ``png``, ``jpeg``, or None.

    ``mp4`` stands for the whole ISO and QuickTime family, ``nifti`` for ``.nii`` and ``.nii.gz``.

    Examples
    --------
    >>> sniff_container(b"RIFF....AVI LIST"), sniff_container(b"#EXTM3U")
    ('avi', None)
    """
    if payload[:4] == b"RIFF" and payload[8:11] == b"AVI":
        return "avi"
    if payload[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if payload[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if _is_iso_media(payload):
        return "mp4"
    if _is_nifti(payload):
        return "nifti"
    if payload[128:132] == b"DICM" or _is_bare_dicom(payload):
        return "dicom"
    return None


def _is_iso_media(payload: bytes) -> bool:
    if payload[4:8] not in _ISO_FIRST_BOXES:
        return False
    return not (payload[4:8] == b"ftyp" and payload[8:12] in _ISO_IMAGE_BRANDS)


def _is_nifti(payload: bytes) -> bool:
    head = payload[:_NIFTI_HEADER_BYTES]
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(payload[:65536], _NIFTI_HEADER_BYTES)
        except zlib.error:
            return False
    if len(head) < 348:
        return False
    sizes = {struct.unpack(f"{order}i", head[:4])[0] for order in "<>"}
    return any(
        size in sizes and (head[344:348] if size == 348 else head[4:8]) in magics
        for size, magics in _NIFTI_MAGICS.items()
    )


def _is_bare_dicom(payload: bytes) -> bool:
    """Recognise a data set without the 128-byte preamble: it begins with an element of group 2 or 8."""
    if len(payload) < 64:
        return False
    group, element = struct.unpack("<HH", payload[:4])
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    if payload[4:6].isalpha() and payload[4:6].isupper():
        return True
    (length,) = struct.unpack("<I", payload[4:8])
    return bool(group == 0x0008 and length % 2 == 0 and length <= 256)
