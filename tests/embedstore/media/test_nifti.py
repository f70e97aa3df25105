import gzip
import struct
import sys
from typing import Any

import nibabel
import numpy as np
import pytest

from embedstore.errors import MediaError, MissingExtraError
from embedstore.media import DecodeLimits, probe_media, read_clip

RNG_SEED = 0


def sequence(n_frames: int = 6, height: int = 40, width: int = 60) -> np.ndarray:
    """(T, y, x) uint8 noise with a bright corner at the top left."""
    frames = np.random.default_rng(RNG_SEED).integers(0, 200, (n_frames, height, width), dtype=np.uint8)
    frames[:, :5, :8] = 255
    frames[:, -1, -1] = 0
    return frames


def encoded(
    volume: np.ndarray,
    *,
    zooms: tuple[float, ...] | None = None,
    units: tuple[str, str] | None = None,
    slope: float | None = None,
    packed: bool = False,
) -> bytes:
    image: Any = nibabel.Nifti1Image(volume, np.eye(4))
    if zooms is not None:
        image.header.set_zooms(zooms)
    if units is not None:
        image.header.set_xyzt_units(*units)
    content = image.to_bytes()
    if slope is not None:  # nibabel rescales by itself, so it is written into the bytes
        content = content[:112] + struct.pack("<ff", slope, 0.0) + content[120:]
    return gzip.compress(content, mtime=0) if packed else content


def reason_of(payload: bytes, **limits: int) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(payload, limits=DecodeLimits(**limits))
    assert probe_media(payload, limits=DecodeLimits(**limits)).problem_reason == caught.value.reason
    return caught.value.reason


def as_rgb(frames: np.ndarray) -> np.ndarray:
    return np.stack([frames] * 3, axis=-1)


@pytest.mark.parametrize("packed", [False, True])
def test_uint8_is_transposed_and_kept(packed: bool) -> None:
    frames = sequence()
    payload = encoded(frames.transpose(2, 1, 0), packed=packed)
    clip = read_clip(payload)
    assert np.array_equal(clip.frames, as_rgb(frames))
    assert (clip.record.n_decoded, clip.record.n_header_frames, clip.record.codec) == (6, 6, "uint8")
    probe = probe_media(payload)
    assert (probe.n_frames, probe.height, probe.width, probe.problem) == (6, 40, 60, None)


def test_a_still_and_a_sequence_with_a_single_slice() -> None:
    frames = sequence()
    assert np.array_equal(read_clip(encoded(frames[0].T)).frames, as_rgb(frames[:1]))
    volume = frames.transpose(2, 1, 0)[:, :, None, :]
    assert np.array_equal(read_clip(encoded(volume)).frames, as_rgb(frames))
    assert np.array_equal(read_clip(encoded(volume[:, :, :, :3])).frames, as_rgb(frames[:3]))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2", ">i2", "<u2", "<i4", "<i1"])
def test_other_types_get_one_scale_for_the_sequence(dtype: str) -> None:
    dim, bright = np.full((20, 30), 30), np.full((20, 30), 100)
    dim[0, 0], bright[0, 0] = -20, 107
    frames = np.stack([dim, bright]).astype(np.int64)
    if np.dtype(dtype).kind == "u":
        frames += 20
    header = nibabel.Nifti1Header(endianness=dtype[0])
    payload = nibabel.Nifti1Image(frames.transpose(2, 1, 0).astype(dtype), np.eye(4), header).to_bytes()
    found = read_clip(payload).frames
    scale = 255 / 127
    assert found.min() == 0
    assert found.max() == 255
    assert found[0, 5, 5].tolist() == [round(50 * scale)] * 3  # not stretched by itself
    assert found[1, 5, 5].tolist() == [round(120 * scale)] * 3


def test_missing_values_are_black_and_a_constant_is_black() -> None:
    frames = np.ones((2, 20, 30), dtype=np.float32)
    assert not read_clip(encoded(frames.T)).frames.any()
    frames[0, :10], frames[1, 3, 3] = np.nan, 5
    found = read_clip(encoded(frames.T)).frames
    assert found[0, 2, 2].tolist() == [0, 0, 0]
    assert found[1, 3, 3].tolist() == [255, 255, 255]


def test_a_negative_slope_inverts() -> None:
    frames = sequence()
    assert np.array_equal(read_clip(encoded(frames.transpose(2, 1, 0), slope=-2.0)).frames, 255 - as_rgb(frames))
    assert np.array_equal(read_clip(encoded(frames.transpose(2, 1, 0), slope=2.0)).frames, as_rgb(frames))


def test_pixels_are_made_square() -> None:
    frames = np.zeros((2, 40, 60), dtype=np.uint8)
    frames[:, :20] = 200  # the upper half
    payload = encoded(frames.transpose(2, 1, 0), zooms=(0.3, 0.15, 1.0), units=("mm", "sec"))
    clip = read_clip(payload)
    assert clip.frames.shape == (2, 40, 120, 3)
    assert clip.frames[0, 5, 100].tolist() == [200] * 3
    assert clip.frames[0, 35, 100].tolist() == [0] * 3
    probe = probe_media(payload)
    assert (probe.height, probe.width, probe.spacing_x_mm, probe.spacing_y_mm) == (40, 120, 0.15, 0.15)
    tall = read_clip(encoded(frames.transpose(2, 1, 0), zooms=(0.2, 0.3, 1.0), units=("mm", "sec")))
    assert tall.frames.shape == (2, 60, 60, 3)


def test_nearly_square_pixels_stay() -> None:
    frames = sequence()
    payload = encoded(frames.transpose(2, 1, 0), zooms=(0.3, 0.312, 1.0), units=("mm", "unknown"))
    assert np.array_equal(read_clip(payload).frames, as_rgb(frames))
    probe = probe_media(payload)
    assert (probe.spacing_x_mm, probe.spacing_y_mm) == (0.3, 0.312)
    in_metres = encoded(frames.transpose(2, 1, 0), zooms=(3e-4, 3e-4, 1.0), units=("meter", "unknown"))
    assert probe_media(in_metres).spacing_x_mm == pytest.approx(0.3)
    assert probe_media(encoded(frames.transpose(2, 1, 0))).spacing_x_mm is None  # 1 by 1 without a unit is unset


@pytest.mark.parametrize(
    ("zooms", "units", "fps"),
    [
        ((0.3, 0.3, 0.025), ("mm", "sec"), 40.0),
        ((0.3, 0.3, 20.0), ("mm", "msec"), 50.0),
        ((0.3, 0.3, 1.0), ("mm", "sec"), None),  # a step that nobody set
        ((0.3, 0.3, 0.025), ("mm", "unknown"), None),
    ],
)
def test_frame_rate(zooms: tuple[float, ...], units: tuple[str, str], fps: float | None) -> None:
    payload = encoded(sequence().transpose(2, 1, 0), zooms=zooms, units=units)
    assert probe_media(payload).fps == (None if fps is None else pytest.approx(fps))
    with_slice = encoded(sequence().transpose(2, 1, 0)[:, :, None], zooms=(*zooms[:2], 1.0, zooms[2]), units=units)
    assert probe_media(with_slice).fps == probe_media(payload).fps


def test_colour_layouts() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)  # (T, y, x, 3)
    rows_first = encoded(np.ascontiguousarray(colour.transpose(1, 2, 0, 3)))
    assert np.array_equal(read_clip(rows_first).frames, colour)
    vector = encoded(np.ascontiguousarray(colour.transpose(2, 1, 0, 3)[:, :, :, None, :]))
    assert np.array_equal(read_clip(vector).frames, colour)
    for names in ("RGB", "RGBA"):
        dtype = np.dtype([(name, "u1") for name in names])
        voxels = np.empty((30, 20, 4), dtype=dtype)
        for at, name in enumerate(names):
            voxels[name] = colour.transpose(2, 1, 0, 3)[..., at] if at < 3 else 255
        clip = read_clip(encoded(voxels))
        assert np.array_equal(clip.frames, colour)
        assert clip.record.codec == {"RGB": "rgb24", "RGBA": "rgba32"}[names]


@pytest.mark.parametrize("shape", [(30,), (30, 20, 5, 7), (30, 1, 5), (1, 20, 5), (30, 20, 5, 2, 3)])
def test_shapes_without_a_meaning_are_refused(shape: tuple[int, ...]) -> None:
    assert reason_of(encoded(np.zeros(shape, dtype=np.uint8))) == "unsupported"


def test_types_without_a_meaning_are_refused() -> None:
    assert reason_of(encoded(np.zeros((30, 20, 2), dtype=np.complex64))) == "unsupported"
    anisotropic = encoded(np.zeros((30, 20, 2), dtype=np.uint8), zooms=(100.0, 0.1, 1.0), units=("mm", "sec"))
    assert reason_of(anisotropic) == "unsupported"


def test_a_header_of_a_pair_follows_no_file() -> None:
    content = bytearray(encoded(sequence().transpose(2, 1, 0)))
    content[344:348] = b"ni1\0"
    assert reason_of(bytes(content)) == "unsupported"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_file_is_truncated(packed: bool, part: float) -> None:
    payload = encoded(sequence(n_frames=30).transpose(2, 1, 0), packed=packed)
    assert reason_of(payload[: int(len(payload) * part)]) == "truncated"


def test_a_file_that_lost_one_frame_in_thirty_is_read() -> None:
    frames = sequence(n_frames=30)
    clip = read_clip(encoded(frames.transpose(2, 1, 0))[:-1])
    assert np.array_equal(clip.frames, as_rgb(frames[:29]))
    assert (clip.record.n_decoded, clip.record.n_header_frames) == (29, 30)


def test_a_damaged_gzip_stream_is_corrupt() -> None:
    payload = bytearray(encoded(sequence().transpose(2, 1, 0), packed=True))
    payload[-8] ^= 1  # the checksum
    assert reason_of(bytes(payload)) == "corrupt"


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = encoded(np.zeros((1000, 1000, 60), dtype=np.uint8), packed=True)
    assert len(bomb) < 100_000
    assert reason_of(bomb, max_expanded_bytes=10_000_000) == "too-large"
    assert reason_of(bomb, max_frame_pixels=999_999) == "too-large"
    assert reason_of(bomb, max_frames=59) == "too-large"


def test_more_bytes_than_the_header_says_are_not_unpacked() -> None:
    frames = sequence()
    content = encoded(frames.transpose(2, 1, 0))
    payload = gzip.compress(content + bytes(50_000_000), mtime=0)
    assert np.array_equal(read_clip(payload, limits=DecodeLimits(max_expanded_bytes=100_000)).frames, as_rgb(frames))


def test_absurd_headers_are_refused() -> None:
    content = encoded(sequence().transpose(2, 1, 0))
    for shape, reason in (((32767, 32767, 32767), "too-large"), ((30, -5, 4), "corrupt"), ((30, 20, 0), "corrupt")):
        changed = content[:40] + struct.pack("<4h", 3, *shape) + content[48:]
        assert reason_of(changed) == reason
    assert reason_of(content[:70] + struct.pack("<h", 12345) + content[72:]) == "corrupt"  # a data type
    assert (
        reason_of(content[:108] + struct.pack("<f", float("nan")) + content[112:]) == "corrupt"
    )  # where voxels begin


def test_members_of_a_gzip_file_are_joined() -> None:
    frames = sequence()
    content = encoded(frames.transpose(2, 1, 0))
    joined = gzip.compress(content[:5000], mtime=0) + gzip.compress(content[5000:], mtime=0)
    assert np.array_equal(read_clip(joined).frames, as_rgb(frames))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = encoded(sequence().transpose(2, 1, 0))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"embedstore\[media\]"):
        read_clip(payload)
