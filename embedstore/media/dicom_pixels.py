"""DICOM pixel data to RGB frames: fragments counted here, decoded by GDCM (JPEG family) or pydicom (RLE, native)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import MediaError
from embedstore.media.clip import DecodeLimits
from embedstore.media.codestream import codestream_size
from embedstore.media.dicom import (
    DICOM_ERRORS,
    DicomHeader,
    frame_rate,
    frame_times,
    load_pydicom,
    pydicom_quiet,
    tag_value,
)
from embedstore.media.source import Frame, Tally, ValueRange, as_rgb, load_decoder

__all__ = ["DicomSource"]

_ITEM = 0xFFFEE000
_RLE = "1.2.840.10008.1.2.5"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
# First bytes of a compressed frame: JPEG and JPEG-LS (SOI), JPEG 2000 codestream (SOC SIZ), JP2 signature box.
_FRAME_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_MAX_HEADER_FRAMES = 2**31


class DicomSource:
    """The pixel data of a DICOM file in memory.

    Raises
    ------
    MediaError
        ``no-pixels``, ``unsupported`` (naming transfer syntax or photometric interpretation), ``corrupt`` or
        ``too-large``.
    """

    container = "dicom"

    def __init__(self, payload: bytes, *, header: DicomHeader, limits: DecodeLimits) -> None:
        self._limits = limits
        self._tags = header.tags
        self._syntax = header.transfer_syntax
        self.codec = str(self._syntax.keyword or self._syntax)
        if header.pixels_at is None:
            raise MediaError("the DICOM file has no pixel data", reason="no-pixels")
        with pydicom_quiet():
            self.fps = frame_rate(self._tags)
            self._options = self._read_options()
        limits.check_frame(*self.size)
        self._decoder, self._plugin = self._find_decoder()
        pixels = memoryview(payload)[header.pixels_at :]
        if self._syntax.is_encapsulated:
            if header.pixels_length is not None:
                raise MediaError("compressed DICOM pixel data are not in fragments", reason="corrupt")
            self._encoded = _compressed_frames(pixels)
            self._n_found = len(self._encoded)
        else:
            length = len(pixels) if header.pixels_length is None else min(header.pixels_length, len(pixels))
            self._native = pixels[:length]
            self._n_found = length * 8 // self._frame_bits()
            self._options |= {"number_of_frames": self._n_found, "pixel_vr": header.pixels_vr}
        limits.check_count(self._n_found)

    # -- what the tags say ----------------------------------------------------------------------------------

    def _integer(self, keyword: str, *, low: int, high: int, default: int | None = None) -> int:
        found = tag_value(self._tags, keyword)
        try:
            number = int(found if found is not None or default is None else default)
        except (ValueError, TypeError, OverflowError) as error:
            raise MediaError(f"the DICOM tag {keyword} is absent or no number", reason="corrupt") from error
        if not low <= number <= high:
            raise MediaError(f"the DICOM tag {keyword} is {number}", reason="corrupt")
        return number

    def _read_options(self) -> dict[str, Any]:
        self.n_header_frames: int | None = None
        if tag_value(self._tags, "NumberOfFrames") is not None:
            self.n_header_frames = self._integer("NumberOfFrames", low=0, high=_MAX_HEADER_FRAMES)
        interpretation = str(tag_value(self._tags, "PhotometricInterpretation") or "").strip(" \0")
        samples = self._integer("SamplesPerPixel", low=1, high=4, default=1)
        expected = 3 if interpretation in _COLOURS else 1
        if interpretation not in (*_GREY, *_COLOURS, "PALETTE COLOR"):
            raise MediaError(
                f"DICOM pixels with {interpretation or 'no'} photometric interpretation are not read",
                reason="unsupported",
            )
        if samples != expected:
            raise MediaError(f"DICOM {interpretation} pixels have {samples} samples a pixel", reason="corrupt")
        allocated = self._integer("BitsAllocated", low=1, high=32)
        if allocated not in (1, 8, 16, 32):
            raise MediaError(f"DICOM pixels of {allocated} bits are not read", reason="unsupported")
        options: dict[str, Any] = {
            "rows": self._integer("Rows", low=1, high=65535),
            "columns": self._integer("Columns", low=1, high=65535),
            "samples_per_pixel": samples,
            "photometric_interpretation": interpretation,
            "bits_allocated": allocated,
            "bits_stored": self._integer("BitsStored", low=1, high=allocated, default=allocated),
            "pixel_representation": self._integer("PixelRepresentation", low=0, high=1, default=0),
            "pixel_keyword": "PixelData",
            "number_of_frames": 1,
        }
        if samples > 1:
            options["planar_configuration"] = self._integer("PlanarConfiguration", low=0, high=1, default=0)
        return options

    def _find_decoder(self) -> tuple[Any, str]:
        pydicom = load_pydicom()
        if not self._syntax.is_encapsulated:
            plugin = ""
        elif self._syntax == _RLE:
            plugin = "pydicom"
        elif self._syntax == _JPEG_EXTENDED and self._options["bits_stored"] > 8:
            raise MediaError("DICOM JPEG of 12-bit samples is not read", reason="unsupported")
        else:
            gdcm = load_decoder("gdcm", "python-gdcm", what="decoding compressed DICOM")
            gdcm.Trace.WarningOff()
            gdcm.Trace.ErrorOff()
            plugin = "gdcm"
        try:
            decoder = pydicom.pixels.get_decoder(self._syntax)
        except NotImplementedError as error:
            name = self._syntax.name
            raise MediaError(f"the DICOM transfer syntax {name} is not read", reason="unsupported") from error
        return decoder, plugin

    def _frame_bits(self) -> int:
        options = self._options
        samples = 2 if options["photometric_interpretation"] == "YBR_FULL_422" else options["samples_per_pixel"]
        return int(options["rows"] * options["columns"] * samples * options["bits_allocated"])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._options["rows"], self._options["columns"]

    @property
    def n_found(self) -> int:
        """Whole frames in the pixel data."""
        return self._n_found

    @property
    def n_held(self) -> int:
        """Frames that are there, or that Number of Frames, which a multi-frame file must state, says."""
        return max(self._n_found, self.n_header_frames or 1)

    # -- pixels ---------------------------------------------------------------------------------------------

    def frames(self, tally: Tally) -> Iterator[Callable[[], Frame]]:
        """Decode all frames; see `embedstore.media.source.FrameSource.frames`.

        Values that are not 8-bit are brought to 0..255 by one scale for the sequence, from its smallest to its
        largest value, which takes a pass of its own.
        """
        scale = ValueRange()
        if self._is_deep:
            for index in range(self._n_found):
                values, _ = self._decode(index) or (None, "")
                if values is not None:
                    scale.widen(values)
        table = self._palette()
        for index in range(self._n_found):
            decoded = self._decode(index)
            if decoded is None:
                tally.n_errors += 1
                continue
            yield partial(self._to_rgb, *decoded, scale=scale, table=table)
        tally.times.extend(frame_times(self._tags, self._n_found))

    @property
    def _is_deep(self) -> bool:
        options = self._options
        is_palette = options["photometric_interpretation"] == "PALETTE COLOR"
        return not is_palette and (options["bits_allocated"] > 8 or options["pixel_representation"] == 1)

    def _decode(self, index: int) -> tuple[npt.NDArray[Any], str] | None:
        """Return the values as stored, (H, W) or (H, W, 3), and their photometric interpretation."""
        pydicom = load_pydicom()
        options = dict(self._options)
        if self._syntax.is_encapsulated:
            encoded = b"".join(self._encoded[index])
            # The decoder allocates by the codestream, and ends the process on some that make no sense.
            if self._plugin == "gdcm" and codestream_size(encoded) != self.size:
                return None
            source, index = pydicom.encaps.encapsulate([encoded]), 0
        else:
            source = self._native
        try:
            with pydicom_quiet():
                values, meaning = self._decoder.as_array(
                    source, index=index, raw=True, decoding_plugin=self._plugin, **options
                )
        except ImportError as error:
            raise MediaError(f"DICOM {self._syntax.name} has no decoder here", reason="unsupported") from error
        except DICOM_ERRORS:
            return None
        return values, str(meaning["photometric_interpretation"])

    def _palette(self) -> Frame | None:
        """Return the colour of every pixel value, (2 ** bits, 3), or None where colours are not by palette."""
        if self._options["photometric_interpretation"] != "PALETTE COLOR":
            return None
        allocated = self._options["bits_allocated"]
        if allocated > 16 or self._options["pixel_representation"] == 1:
            raise MediaError(f"DICOM palette colour of {allocated} bits is not read", reason="unsupported")
        every = np.arange(2**allocated, dtype=np.uint8 if allocated <= 8 else np.uint16)
        try:
            with pydicom_quiet():
                colours = load_pydicom().pixels.apply_color_lut(every[np.newaxis], self._tags)[0]
        except DICOM_ERRORS as error:
            raise MediaError("the DICOM colour palette cannot be read", reason="corrupt") from error
        if colours.dtype != np.uint8 and colours.max(initial=0) > 255:
            colours = colours >> 8  # 16-bit entries; some writers fill them with 8-bit values
        return np.asarray(colours, dtype=np.uint8)

    def _to_rgb(
        self, values: npt.NDArray[Any], interpretation: str, *, scale: ValueRange, table: Frame | None
    ) -> Frame:
        if table is not None:
            return np.asarray(table[values])
        if self._is_deep:
            frame = scale.to_bytes(values)
        else:
            full = 2 ** self._options["bits_stored"] - 1
            frame = values if full == 255 else np.rint(np.minimum(values, full) * (255.0 / full)).astype(np.uint8)
        if interpretation == "MONOCHROME1":
            frame = 255 - frame
        if interpretation in _GREY:
            return as_rgb(frame)
        if interpretation in ("YBR_FULL", "YBR_FULL_422"):
            cv2 = load_decoder("cv2", "opencv-python-headless", what="converting DICOM colours")
            # JPEG's YCbCr (ITU-T T.871, full range); OpenCV takes the chroma planes in the order Cr, Cb.
            return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame[:, :, [0, 2, 1]]), cv2.COLOR_YCrCb2RGB))
        return np.ascontiguousarray(frame)


def _compressed_frames(pixels: memoryview) -> list[list[memoryview]]:
    """Return the whole fragments of each frame (DICOM PS3.5 A.4); one that the end of the file cuts is left out.

    A frame of the JPEG family may lie in several fragments, and begins where a codestream begins, whatever offset
    table or frame count the file has; a run-length coded one has one fragment.
    """
    frames: list[list[memoryview]] = []
    at, is_offset_table = 0, True
    while at + 8 <= len(pixels):
        group, element, length = struct.unpack_from("<HHI", pixels, at)
        tag, at = (group << 16) | element, at + 8
        if tag != _ITEM or at + length > len(pixels):
            break
        fragment = pixels[at : at + length]
        at += length
        if is_offset_table:
            is_offset_table = False
        elif frames and _starts_frame(frames[0][0]) and not _starts_frame(fragment):
            frames[-1].append(fragment)
        elif length:
            frames.append([fragment])
    return frames


def _starts_frame(fragment: memoryview) -> bool:
    return bytes(fragment[:8]).startswith(_FRAME_STARTS)
