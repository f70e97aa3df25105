"""PNG and JPEG stills through OpenCV; pixels as they are stored, without an EXIF rotation."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from embedstore.errors import MediaError
from embedstore.media.clip import DecodeLimits, MediaProbe
from embedstore.media.codestream import codestream_size, is_whole_jpeg, png_chunks
from embedstore.media.source import Frame, Tally, as_rgb, load_decoder

__all__ = ["StillSource", "probe_still"]

_MAX_SIDE = 2**31


class StillSource:
    """A PNG or JPEG in memory: a clip of one frame.

    Raises
    ------
    MediaError
        ``truncated``, ``corrupt`` or ``too-large``.
    """

    n_header_frames: int | None = None
    fps: float | None = None
    n_found = 1
    n_held = 1

    def __init__(self, payload: bytes, *, container: str, limits: DecodeLimits) -> None:
        self.container = container
        self.codec = container
        self._payload = payload
        size = _png_size(payload) if container == "png" else codestream_size(payload)
        if size is None or not all(0 < side < _MAX_SIDE for side in size):
            whole = container == "png" or is_whole_jpeg(payload)
            raise MediaError(f"the {container} header is damaged", reason="corrupt" if whole else "truncated")
        self._size = size
        limits.check_frame(*size)
        self._check_structure()

    def _check_structure(self) -> None:
        if self.container == "jpeg":
            if not is_whole_jpeg(self._payload):
                raise MediaError("the jpeg ends before its end marker", reason="truncated")
            return
        kinds = []
        for kind, _, is_intact in png_chunks(self._payload):
            if not is_intact and kind[:1].isupper():  # a capital: without this chunk there is no image
                raise MediaError(
                    f"the checksum of the png's {kind.decode('latin-1')!r} chunk is wrong", reason="corrupt"
                )
            kinds.append(kind)
            if kind == b"IEND":
                return
        raise MediaError("the png ends before its last chunk", reason="truncated")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._size

    def frames(self, tally: Tally) -> Iterator[Callable[[], Frame]]:
        """Decode the one frame; see `embedstore.media.source.FrameSource.frames`."""
        cv2 = load_decoder("cv2", "opencv-python-headless", what="reading PNG and JPEG")
        encoded = np.frombuffer(self._payload, dtype=np.uint8)
        try:
            pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            pixels = None
        if pixels is None or pixels.shape[:2] != self._size:
            tally.n_errors += 1
            return
        if pixels.dtype == np.uint16:  # PNG defines 65535 as white
            pixels = np.rint(pixels / 257.0).astype(np.uint8)
        frame = as_rgb(pixels) if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
        yield lambda: frame


def _png_size(payload: bytes) -> tuple[int, int] | None:
    if payload[12:16] != b"IHDR" or len(payload) < 24:
        return None
    width, height = struct.unpack_from(">II", payload, 16)
    return height, width


def probe_still(payload: bytes, *, container: str, limits: DecodeLimits) -> MediaProbe:
    """Return the size, from the header.

    Raises
    ------
    MediaError
        As `StillSource`.
    """
    height, width = StillSource(payload, container=container, limits=limits).size
    return MediaProbe(container=container, codec=container, n_frames=1, height=height, width=width)
