import struct
import zlib

import cv2
import numpy as np
import pytest

from embedstore.errors import MediaError
from embedstore.media import DecodeLimits, probe_media, read_clip


def photo() -> np.ndarray:
    """(40, 60, 3) RGB with a red left and a blue right half."""
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    frame[:, :30] = (250, 10, 10)
    frame[:, 30:] = (10, 10, 250)
    return frame


def encoded(frame: np.ndarray, suffix: str) -> bytes:
    stored = frame[:, :, ::-1] if frame.ndim == 3 else frame
    return bytes(cv2.imencode(suffix, stored)[1].tobytes())


def reason_of(payload: bytes, **limits: int) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(payload, limits=DecodeLimits(**limits))
    return caught.value.reason


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 12)])
def test_a_still_is_a_clip_of_one_frame(suffix: str, tolerance: int) -> None:
    payload = encoded(photo(), suffix)
    clip = read_clip(payload)
    assert clip.frames.shape == (1, 40, 60, 3)
    assert np.abs(clip.frames[0, :, [5, 50]].astype(int) - photo()[:, [5, 50]].transpose(1, 0, 2)).max() <= tolerance
    assert (clip.record.n_decoded, clip.record.fps_header) == (1, None)
    probe = probe_media(payload)
    assert (probe.container, probe.n_frames, probe.height, probe.width) == (clip.record.container, 1, 40, 60)


def test_grey_and_deep_pngs() -> None:
    grey = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
    frames = read_clip(encoded(grey, ".png")).frames
    assert np.array_equal(frames[0], np.stack([grey] * 3, axis=-1))
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(read_clip(encoded(deep, ".png")).frames, frames)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_cut_still_is_truncated(suffix: str) -> None:
    payload = encoded(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), suffix)
    for part in (0.1, 0.5, 0.99):
        cut = payload[: int(len(payload) * part)]
        assert reason_of(cut) == "truncated"
        assert probe_media(cut).problem_reason == "truncated"


def test_a_wrong_checksum_is_corrupt() -> None:
    payload = bytearray(encoded(photo(), ".png"))
    payload[len(payload) // 2] ^= 1
    assert reason_of(bytes(payload)) == "corrupt"


def test_sizes_are_checked_before_decoding() -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    assert reason_of(huge) == "too-large"
    for suffix in (".png", ".jpg"):
        assert reason_of(encoded(photo(), suffix), max_frame_pixels=40 * 60 - 1) == "too-large"


def test_pixels_are_as_stored_whatever_exif_says() -> None:
    jpeg = encoded(photo(), ".jpg")
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn right
    exif = b"Exif\0\0" + turned
    tagged = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert np.array_equal(read_clip(tagged).frames, read_clip(jpeg).frames)
