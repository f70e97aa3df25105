import struct
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from embedstore.errors import MediaError, MissingExtraError
from embedstore.media import DecodeLimits, probe_media, read_clip

EncodeVideo = Callable[..., bytes]
Pattern = Callable[..., np.ndarray]
FrameOrder = Callable[[np.ndarray], list[int]]
MAKES = [
    {"container": "avi", "codec": "mjpeg"},
    {"container": "avi", "codec": "mpeg4"},
    {"container": "avi", "codec": "rawvideo"},
    {"container": "mp4", "codec": "libx264", "options": {"crf": "12"}},
    {"container": "mp4", "codec": "libx264", "options": {"crf": "12", "bf": "3"}},
    {"container": "mp4", "codec": "mpeg4", "muxer": {"movflags": "frag_keyframe+empty_moov"}},
]


def noise(n_frames: int) -> np.ndarray:
    """Frames with much to encode, so that packets are large beside headers and index."""
    return np.random.default_rng(0).integers(0, 256, (n_frames, 48, 64, 3), dtype=np.uint8)


def reason_of(payload: bytes, limits: DecodeLimits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(payload, limits=limits or DecodeLimits())
    assert "\n" not in str(caught.value)
    return caught.value.reason


def frame_packets(avi: bytes) -> list[tuple[int, int]]:
    """Return (offset, size) of each video chunk of an AVI."""
    at, found = avi.index(b"movi") + 4, []
    while avi[at : at + 4] == b"00dc":
        (size,) = struct.unpack_from("<I", avi, at + 4)
        found.append((at + 8, size))
        at += 8 + size + (size & 1)
    return found


@pytest.mark.parametrize("make", MAKES, ids=lambda make: f"{make['container']}-{make['codec']}-{len(make)}")
def test_all_frames_in_order_and_colour(
    make: dict[str, object], pattern: Pattern, encode_video: EncodeVideo, frame_order: FrameOrder
) -> None:
    frames = pattern(20, 48, 64)
    payload = encode_video(frames, **make)
    clip = read_clip(payload)
    assert clip.frames.shape == frames.shape
    assert clip.frames.dtype == np.uint8
    assert clip.frame_numbers.tolist() == list(range(20))
    assert frame_order(clip.frames) == list(range(20))
    assert np.abs(clip.frames[:, 24, [12, 20, 36, 44]].astype(int) - frames[:, 24, [12, 20, 36, 44]]).max() < 40
    assert (clip.record.n_decoded, clip.record.n_errors, clip.record.n_pts_gaps) == (20, 0, 0)
    assert clip.record.n_header_frames in (20, None)
    probe = probe_media(payload)
    assert (probe.n_frames, probe.fps, probe.height, probe.width, probe.problem) == (20, 25.0, 48, 64, None)
    assert (probe.container, probe.codec) == (clip.record.container, clip.record.codec)


@pytest.mark.parametrize("make", MAKES[:5], ids=lambda make: f"{make['container']}-{make['codec']}-{len(make)}")
def test_pixels_are_those_of_opencv(
    make: dict[str, object], pattern: Pattern, encode_video: EncodeVideo, tmp_path: Path
) -> None:
    payload = encode_video(pattern(5, 48, 66), **make)
    path = tmp_path / "clip"
    path.write_bytes(payload)
    capture = cv2.VideoCapture(str(path))
    by_opencv = [capture.read()[1][:, :, ::-1] for _ in range(5)]
    capture.release()
    assert np.array_equal(read_clip(payload).frames, np.stack(by_opencv))


def test_grey_stays_grey(encode_video: EncodeVideo) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, None, :, None], (3, 48, 64, 3)).copy()
    frames = read_clip(encode_video(ramp, codec="ffv1")).frames
    assert np.array_equal(frames, ramp)
    mjpeg = read_clip(encode_video(ramp)).frames.astype(int)
    assert np.abs(mjpeg - ramp).max() <= 6
    assert mjpeg.min() <= 2  # full range, not 16..235
    assert mjpeg.max() >= 250


def test_one_frame_is_a_still(pattern: Pattern, encode_video: EncodeVideo) -> None:
    for make in MAKES:
        clip = read_clip(encode_video(pattern(1, 48, 64), **make))
        assert clip.frames.shape == (1, 48, 64, 3)
        assert clip.record.n_pts_gaps == 0


def test_a_gap_in_time_is_counted(pattern: Pattern, encode_video: EncodeVideo) -> None:
    times = [0, 1, 2, 3, 7, 8, 9, 10]
    for make in MAKES[:2] + MAKES[3:4]:
        payload = encode_video(pattern(8, 48, 64), times=times, **make)
        record = read_clip(payload).record
        assert (record.n_decoded, record.n_pts_gaps, record.n_errors) == (8, 1, 0)
        assert probe_media(payload).n_frames == 8


def test_sound_alone_is_no_clip(encode_sound: Callable[[str], bytes]) -> None:
    for container in ("avi", "mp4"):
        assert reason_of(encode_sound(container)) == "no-video-stream"
        assert probe_media(encode_sound(container)).problem_reason == "no-video-stream"


@pytest.mark.parametrize("make", [MAKES[0], MAKES[1], MAKES[3], MAKES[5]], ids=lambda make: str(make["codec"]))
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_file_is_truncated(make: dict[str, object], part: float, encode_video: EncodeVideo) -> None:
    payload = encode_video(noise(60), **make)
    cut = payload[: int(len(payload) * part)]
    assert reason_of(cut) == "truncated"
    assert probe_media(cut).problem_reason == "truncated"


def test_the_last_bytes_may_be_missing(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = encode_video(pattern(60, 48, 64))
    offset, size = frame_packets(payload)[-1]
    clip = read_clip(payload[: offset + size])  # the index is gone, all frames are there
    assert (clip.record.n_decoded, clip.record.n_header_frames) == (60, 60)
    offset, size = frame_packets(payload)[-2]
    assert read_clip(payload[: offset + size]).record.n_decoded == 59


def test_header_counts_are_not_believed(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(pattern(10, 48, 64)))
    for count in (0, 3, 15, 2**31 - 1):
        struct.pack_into("<I", payload, payload.index(b"avih") + 8 + 16, count)
        struct.pack_into("<I", payload, payload.index(b"strh") + 8 + 32, count)
        record = read_clip(bytes(payload)).record
        assert record.n_decoded == 10
        assert record.n_header_frames == (count or None)
        assert probe_media(bytes(payload)).n_frames == 10


def test_a_cut_stream_without_a_count_is_found_by_its_bytes(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(pattern(40, 48, 64)))
    for tag, at in ((b"avih", 16), (b"strh", 32)):
        struct.pack_into("<I", payload, payload.index(tag) + 8 + at, 0)
    assert reason_of(bytes(payload[: len(payload) // 2])) == "truncated"


def test_a_damaged_packet_is_counted_and_its_frame_kept(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(pattern(40, 48, 64)))
    offset, size = frame_packets(bytes(payload))[20]
    payload[offset + size * 3 // 4 : offset + size - 2] = b"\xff\x00" * ((size - 2 - size * 3 // 4) // 2 + 1)
    payload = payload[: len(payload)]
    record = read_clip(bytes(payload)).record
    assert record.n_errors >= 1
    assert record.n_decoded in (39, 40)


def test_many_lost_packets_are_corrupt(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(pattern(40, 48, 64)))
    for offset, size in frame_packets(bytes(payload))[10:20]:
        payload[offset : offset + size] = bytes(size)
    assert reason_of(bytes(payload)) == "corrupt"
    assert probe_media(bytes(payload)).problem is None  # found by decoding only


def test_damage_in_a_predicted_stream_is_corrupt(encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(noise(40), container="mp4", codec="libx264"))
    start, end = payload.index(b"mdat") + 4, payload.index(b"moov") - 4
    for at in np.random.default_rng(0).integers(start + (end - start) // 4, end, 200):
        payload[at] ^= 0x55
    assert reason_of(bytes(payload)) == "corrupt"


def test_an_absurd_size_is_refused_before_decoding(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = bytearray(encode_video(pattern(3, 48, 64)))
    struct.pack_into("<ii", payload, payload.index(b"strf") + 8 + 4, 65535, -65535)
    assert reason_of(bytes(payload)) == "too-large"
    assert probe_media(bytes(payload)).problem_reason == "too-large"


def test_limits_hold_for_the_size_in_the_codestream(pattern: Pattern, encode_video: EncodeVideo) -> None:
    limits = DecodeLimits(max_frame_pixels=48 * 64 - 1)
    for make in MAKES:
        assert reason_of(encode_video(pattern(3, 48, 64), **make), limits) == "too-large"
    lying = bytearray(encode_video(pattern(3, 48, 64)))
    struct.pack_into("<ii", lying, lying.index(b"strf") + 8 + 4, 16, 16)
    assert reason_of(bytes(lying), limits) in ("too-large", "corrupt")


def test_limits_hold_for_counts_and_totals(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = encode_video(pattern(10, 48, 64))
    assert reason_of(payload, DecodeLimits(max_frames=9)) == "too-large"
    limits = DecodeLimits(max_total_pixels=3 * 48 * 64)
    assert reason_of(payload, limits) == "too-large"
    assert len(read_clip(payload, select=[0, 4, 9], limits=limits).frames) == 3


def test_an_unknown_codec_is_unsupported(pattern: Pattern, encode_video: EncodeVideo) -> None:
    payload = encode_video(pattern(3, 48, 64)).replace(b"MJPG", b"QQQQ")
    assert reason_of(payload) == "unsupported"


def test_a_changing_frame_size_is_unsupported(pattern: Pattern, encode_video: EncodeVideo) -> None:
    small, large = (encode_video(pattern(4, height, 64), codec="mjpeg") for height in (48, 80))
    first, other = frame_packets(small), frame_packets(large)
    body = b""
    for source, chunks in ((small, first), (large, other)):
        for offset, size in chunks:
            body += b"00dc" + struct.pack("<I", size) + source[offset : offset + size] + b"\0" * (size & 1)
    start = small.index(b"movi") - 8
    spliced = small[:start] + b"LIST" + struct.pack("<I", len(body) + 4) + b"movi" + body
    spliced = spliced[:4] + struct.pack("<I", len(spliced) - 8) + spliced[8:]
    assert reason_of(spliced) == "unsupported"


def test_text_in_an_avi_shell_is_refused() -> None:
    text = b"Patient;EF\n1;55\n" * 100
    assert reason_of(b"RIFF" + struct.pack("<I", len(text) + 4) + b"AVI " + text) == "corrupt"
    assert reason_of(text) == "not-media"


def test_playlists_are_not_followed() -> None:
    for text in (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        assert reason_of(text * 20) == "not-media"


def test_decoding_says_nothing(encode_video: EncodeVideo, capfd: pytest.CaptureFixture[str]) -> None:
    payload = bytearray(encode_video(noise(40), codec="mpeg4"))
    for offset, size in frame_packets(bytes(payload))[2:30]:
        payload[offset + 20 : offset + size] = b"\xa5" * (size - 20)
    probe_media(bytes(payload))
    reason_of(bytes(payload))
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named(
    pattern: Pattern, encode_video: EncodeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = encode_video(pattern(2, 48, 64))
    monkeypatch.setitem(sys.modules, "av", None)
    for read in (read_clip, probe_media):
        with pytest.raises(MissingExtraError, match=r"embedstore\[media\]"):
            read(payload)
