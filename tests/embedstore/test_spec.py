"""Frame sampling and fingerprints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.encoder import get_card
from embedstore.errors import MediaError, UnknownNameError
from embedstore.spec import EncoderSpec, FrameSampling

rules = st.one_of(
    st.builds("uniform:{}".format, st.integers(1, 40)),
    st.builds("linspace:{}".format, st.integers(1, 40)),
    st.just("all"),
    st.builds("consecutive:{}".format, st.integers(1, 40)),
    st.builds("stride:{}x{}".format, st.integers(1, 5), st.integers(1, 20)),
    st.builds("rate:{}x{}".format, st.integers(1, 60), st.integers(1, 20)),
)


@given(rules, st.integers(1, 200), st.floats(5, 120), st.integers(1, 4))
def test_picked_frames_exist_and_ascend(rule: str, n_frames: int, fps: float, n_windows: int) -> None:
    resolved = FrameSampling(rule, n_windows=n_windows).resolve(n_frames=n_frames, fps=fps)
    if not rule.startswith("linspace"):
        assert resolved.n_padded == 0
    for window in resolved.windows:
        assert window and list(window) == sorted(window)
        assert window[0] >= 0 and window[-1] < n_frames
    assert resolved.covered_s is not None and 0 <= resolved.covered_s <= (n_frames - 1) / fps + 1e-9


@given(st.integers(1, 60), st.integers(1, 200))
def test_uniform_takes_both_ends_evenly(wanted: int, n_frames: int) -> None:
    (window,) = FrameSampling(f"uniform:{wanted}").resolve(n_frames=n_frames, fps=None).windows
    assert len(set(window)) == len(window) == min(wanted, n_frames)
    if 1 < wanted <= n_frames:
        assert (window[0], window[-1]) == (0, n_frames - 1)
        steps = [after - before for before, after in zip(window, window[1:], strict=False)]
        assert max(steps) - min(steps) <= 1


@given(st.sampled_from(["repeat-last", "zero", "loop", "palindrome"]), st.integers(1, 30), st.integers(1, 16))
def test_padding_fills_every_window(padding: str, n_frames: int, wanted: int) -> None:
    sampling = FrameSampling(f"consecutive:{wanted}", padding=padding)  # type: ignore[arg-type]
    resolved = sampling.resolve(n_frames=n_frames, fps=30.0)
    assert [len(window) for window in resolved.windows] == [wanted]
    assert resolved.n_padded == max(0, wanted - n_frames)
    if padding == "zero":
        # A still is repeated: one frame and nothing would be no clip of it.
        assert resolved.windows[0].count(-1) == (resolved.n_padded if n_frames > 1 else 0)


def test_palindrome_goes_back_and_forth() -> None:
    sampling = FrameSampling("consecutive:8", padding="palindrome")
    assert sampling.resolve(n_frames=3, fps=None).windows == ((0, 1, 2, 1, 0, 1, 2, 1),)


def test_rate_picks_the_nearest_frame_by_time() -> None:
    resolved = FrameSampling("rate:10x4").resolve(n_frames=40, fps=33.0)
    assert resolved.windows == ((0, 3, 7, 10),)
    assert resolved.effective_hz == pytest.approx(3 * 33 / 10)


def test_several_windows_spread_over_the_clip() -> None:
    resolved = FrameSampling("consecutive:16", n_windows=4).resolve(n_frames=61, fps=None)
    assert [window[0] for window in resolved.windows] == [0, 15, 30, 45]
    assert len(FrameSampling("consecutive:16", n_windows=4).resolve(n_frames=10, fps=None).windows) == 1


def test_linspace_is_numpys_cut_to_whole_numbers() -> None:
    for n_frames in (1, 2, 7, 15, 16, 17, 31, 46, 60, 61, 176, 1002):
        for wanted in (1, 2, 16, 32):
            resolved = FrameSampling(f"linspace:{wanted}", padding="repeat-last").resolve(n_frames=n_frames, fps=None)
            expected = np.linspace(0, n_frames - 1, wanted).astype(int).tolist()
            assert resolved.windows == (tuple(expected),)
            assert resolved.n_padded == wanted - len(set(expected))


def test_key_frames() -> None:
    sampling = FrameSampling("keyframe:ed")
    assert sampling.resolve(n_frames=9, fps=None, key_frames={"ed": [4, 1]}).windows == ((1, 4),)
    for key_frames, reason in (({}, "no-key-frame"), ({"ed": [9]}, "key-frame-outside")):
        with pytest.raises(MediaError) as refused:
            sampling.resolve(n_frames=9, fps=None, key_frames=key_frames)
        assert refused.value.reason == reason


def test_rate_without_fps_is_refused() -> None:
    with pytest.raises(MediaError) as refused:
        FrameSampling("rate:8x16").resolve(n_frames=20, fps=None)
    assert refused.value.reason == "no-fps"


@pytest.mark.parametrize("rule", ["uniform", "uniform:0", "every:3", "stride:2", "rate:0x4", "uniform:16;all", ""])
def test_unknown_rules(rule: str) -> None:
    with pytest.raises(UnknownNameError, match="uniform:N"):
        FrameSampling(rule)


SPEC = EncoderSpec(name="x", clip_dim=4, weights_sha256="0" * 64)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "y"},
        {"variant": "stride2"},
        {"weights_sha256": "1" * 64},
        {"preprocessing": {"resize": 224}},
        {"preprocessing_revision": 2},
        {"sampling": FrameSampling("all")},
        {"sampling": FrameSampling(n_windows=2)},
        {"pooling": "mean"},
        {"precision": "bf16"},
        {"dtype": "float32"},
        {"clip_dim": 5},
        {"frame_dim": 4},
        {"unit": "clip"},
    ],
)
def test_everything_that_changes_a_vector_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert replace(SPEC, **change).fingerprint != SPEC.fingerprint


def test_spec_is_read_back_equal() -> None:
    assert EncoderSpec.from_dict(SPEC.to_dict()) == SPEC
    assert EncoderSpec.from_dict(SPEC.to_dict()).fingerprint == SPEC.fingerprint


@pytest.mark.parametrize(
    ("rule", "variant"),
    [("uniform:8", "uniform8"), ("stride:2x16", "stride2x16"), ("all", "all"), ("keyframe:ed", "keyframe-ed")],
)
def test_a_sampling_rule_names_its_variant(rule: str, variant: str) -> None:
    assert get_card("pixel-stats").spec(sampling=FrameSampling(rule)).title == f"pixel-stats@{variant}"
