from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedstore.errors import MediaError
from embedstore.media import DecodeLimits, probe_media, read_clip

EncodeVideo = Callable[..., bytes]
Pattern = Callable[..., np.ndarray]
FrameOrder = Callable[[np.ndarray], list[int]]


@pytest.fixture
def twenty(pattern: Pattern, encode_video: EncodeVideo) -> bytes:
    return encode_video(pattern(20, 48, 64), container="mp4", codec="libx264", options={"bf": "2"})


class Asked:
    """A selection that remembers what it was told."""

    def __init__(self, choose: Callable[[int], Sequence[int]]) -> None:
        self.choose = choose
        self.told: list[int] = []

    def __call__(self, n_frames: int) -> Sequence[int]:
        self.told.append(n_frames)
        return self.choose(n_frames)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 19), max_size=25))
def test_selected_frames_are_those_of_the_whole_clip(numbers: list[int], twenty: bytes) -> None:
    whole, some = read_clip(twenty), read_clip(twenty, select=numbers)
    assert some.frame_numbers.tolist() == sorted(set(numbers))
    assert np.array_equal(some.frames, whole.frames[sorted(set(numbers))])
    assert some.record == whole.record


def test_a_selection_is_asked_once_when_the_count_is_right(twenty: bytes, frame_order: FrameOrder) -> None:
    for n_expected in (None, 20):
        select = Asked(lambda n_frames: [0, n_frames // 2, n_frames - 1])
        clip = read_clip(twenty, select=select, n_expected=n_expected)
        assert select.told == [20]
        assert frame_order(clip.frames) == clip.frame_numbers.tolist() == [0, 10, 19]


@pytest.mark.parametrize("n_expected", [1, 12, 19, 21, 400])
def test_a_wrong_expectation_is_corrected(n_expected: int, twenty: bytes, frame_order: FrameOrder) -> None:
    select = Asked(lambda n_frames: list(range(0, n_frames, max(n_frames // 6, 1))))
    clip = read_clip(twenty, select=select, n_expected=n_expected)
    assert select.told == [n_expected, 20]
    assert frame_order(clip.frames) == clip.frame_numbers.tolist() == list(range(0, 20, 3))


def test_no_second_pass_where_the_frames_are_there(twenty: bytes, frame_order: FrameOrder) -> None:
    select = Asked(lambda n_frames: [0, 1, 2, 5] if n_frames == 25 else [1, 5])
    clip = read_clip(twenty, select=select, n_expected=25)
    assert select.told == [25, 20]
    assert frame_order(clip.frames) == clip.frame_numbers.tolist() == [1, 5]


def test_a_selection_may_refuse_until_the_true_count_is_known(twenty: bytes) -> None:
    def choose(n_frames: int) -> Sequence[int]:
        if n_frames < 15:
            raise MediaError("key frame outside", reason="key-frame-outside")
        return [14]

    assert read_clip(twenty, select=choose, n_expected=10).frame_numbers.tolist() == [14]
    with pytest.raises(MediaError) as caught:
        read_clip(twenty, select=lambda n_frames: choose(n_frames - 10))
    assert caught.value.reason == "key-frame-outside"


def test_an_expectation_does_not_size_what_is_kept(twenty: bytes) -> None:
    assert len(read_clip(twenty, n_expected=10**12).frames) == 20
    assert len(read_clip(twenty, n_expected=3).frames) == 20


def test_frames_that_are_not_there(twenty: bytes) -> None:
    with pytest.raises(MediaError, match="frame 20 was asked for") as caught:
        read_clip(twenty, select=[3, 20])
    assert caught.value.reason == "frame-outside"
    with pytest.raises(ValueError, match="start from 0"):
        read_clip(twenty, select=[-1])


def test_an_empty_selection_counts_frames(twenty: bytes) -> None:
    clip = read_clip(twenty, select=[])
    assert clip.frames.shape == (0, 48, 64, 3)
    assert clip.record.n_decoded == 20


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty-file"), (b"id,ef\n" * 99, "not-media"), (b"\x00" * 4096, "not-media")]
)
def test_what_is_no_media_says_so(content: bytes, reason: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_clip(content)
    assert caught.value.reason == reason
    probe = probe_media(content)
    assert (probe.container, probe.problem, probe.problem_reason) == (None, str(caught.value), reason)


def test_a_large_file_is_refused_unread(twenty: bytes) -> None:
    limits = DecodeLimits(max_file_bytes=len(twenty) - 1)
    assert probe_media(twenty, limits=limits).problem_reason == "too-large"
    with pytest.raises(MediaError) as caught:
        read_clip(twenty, limits=limits)
    assert caught.value.reason == "too-large"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=20))
def test_any_damage_gives_frames_or_a_reason(flips: list[tuple[int, int]], twenty: bytes) -> None:
    payload = bytearray(twenty)
    for at, mask in flips:
        payload[at % len(payload)] ^= mask
    probe_media(bytes(payload))
    try:
        clip = read_clip(bytes(payload))
    except MediaError as error:
        assert error.reason in {
            *("not-media", "no-video-stream", "corrupt", "truncated", "unsupported", "too-large"),
        }
    else:
        assert clip.frames.shape[0] == clip.record.n_decoded >= 1
