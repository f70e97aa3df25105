"""The encoder round any clip tower: missing frames, steps and their cost, stills, windows that do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedstore.build.decode import DecodedClip, Prepared
from embedstore.build.encode import UnitEncoder
from embedstore.build.planned import PlannedClip
from embedstore.build.units import ClipVectors
from embedstore.errors import ContentError, UnknownNameError
from embedstore.spec import EncoderSpec, FrameSampling
from encoders.clip_encoder import ClipEncoder
from encoders.preprocess import Resize
from encoders.published_card import pixel_record

SIDE, FRAMES = 8, 4
MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]


class MeanTower(torch.nn.Module):
    """The mean of each channel over the window, and of each frame (or two) as steps; counts its second passes."""

    def __init__(self, *, frames_a_step: int = 1) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(1))
        self.frames_a_step = frames_a_step
        self.seen: list[torch.Tensor] = []
        self.n_second = 0

    def forward(self, windows, *, with_steps):
        self.seen.append(windows.clone())
        if not with_steps:
            return windows.mean(dim=(2, 3, 4)), None
        self.n_second += 1
        frames = windows.mean(dim=(3, 4)).transpose(1, 2)
        return windows.mean(dim=(2, 3, 4)), frames.unflatten(1, (-1, self.frames_a_step)).mean(dim=2)


def spec_of(sampling: FrameSampling, *, precision: str = "float32", vectors: str = "raw") -> EncoderSpec:
    steps = [Resize(height=SIDE, width=SIDE, interpolation="area")]
    record = pixel_record(steps, mean=MEAN, std=STD, vectors=vectors, scale=1)
    return EncoderSpec(
        name="means",
        unit="clip",
        preprocessing=record,
        sampling=sampling,
        pooling="mean",
        precision=precision,
        clip_dim=3,
        frame_dim=3,
    )


def encoder_of(sampling: FrameSampling, *, frame_kind: str = "tubelet", **fields) -> ClipEncoder:
    tower = MeanTower(frames_a_step=1 if frame_kind == "frame" else 2)
    spec = spec_of(sampling, **fields)
    return ClipEncoder(
        tower, spec=spec, device=torch.device("cpu"), n_frames=FRAMES, side=SIDE, frame_kind=frame_kind
    )


def frames_of(n_frames: int) -> np.ndarray:
    return np.random.default_rng(n_frames).integers(1, 256, (n_frames, 12, 16, 3), dtype=np.uint8)


def embedded(encoder: ClipEncoder, frames: np.ndarray, *, with_frames: bool = True) -> ClipVectors:
    """One clip as a build embeds it."""
    resolved = encoder.spec.sampling.resolve(n_frames=len(frames), fps=10.0)
    windows = []
    for window in resolved.windows:
        real = [frame for frame in window if frame >= 0]
        windows.append(encoder.preprocess(frames[real], n_missing=len(window) - len(real)))
    record = dict.fromkeys(["n_header_frames", "n_errors", "n_pts_gaps", "fps_header", "height", "width"])
    decoded = DecodedClip("0" * 64, {**record, "n_decoded": len(frames)}, 10.0, (), 0.0)
    unit = UnitEncoder(encoder, batch_size=3, with_frames=with_frames)
    unit.begin(0)
    clip = PlannedClip(clip_id="a", content_sha256=None, vector_key="k", action="encode")
    unit.add(clip, decoded, Prepared(np.stack(windows), resolved))
    return unit.finish().vectors[0]


def test_missing_frames_are_zero_after_scaling_and_black_frames_are_not() -> None:
    encoder = encoder_of(FrameSampling(f"consecutive:{FRAMES}", padding="zero"))
    assert encoder.input_shape == (FRAMES, SIDE + 1, SIDE, 3) and encoder.input_dtype == "uint8"
    frames = frames_of(3)
    frames[2] = 0
    window = encoder.preprocess(frames, n_missing=1)
    encoder.encode(window[None])
    seen = encoder._network.seen[0][0].numpy()
    assert seen.shape == (3, FRAMES, SIDE, SIDE)
    assert np.array_equal(seen[:, 3], np.zeros((3, SIDE, SIDE)))
    assert np.allclose(seen[:, 2, 0, 0], -np.array(MEAN) / STD)
    resized = Resize(height=SIDE, width=SIDE, interpolation="area")(frames[:1])[0]
    assert np.allclose(seen[:, 0], ((resized - np.array(MEAN)) / STD).transpose(2, 0, 1), atol=1e-6)


def test_other_paddings_need_no_mark() -> None:
    encoder = encoder_of(FrameSampling(f"consecutive:{FRAMES}", padding="repeat-last"))
    assert encoder.input_shape == (FRAMES, SIDE, SIDE, 3)
    with pytest.raises(ContentError, match="1 frames of a window are missing"):
        encoder.preprocess(frames_of(3), n_missing=1)
    with pytest.raises(ContentError, match=r"means takes \(B, 4, 8, 8, 3\) uint8 windows, got \(1, 3, 8, 8, 3\)"):
        encoder.encode(np.zeros((1, 3, SIDE, SIDE, 3), dtype=np.uint8))


def test_steps_are_computed_only_where_they_are_kept() -> None:
    encoder = encoder_of(FrameSampling(f"consecutive:{FRAMES}", n_windows=2, padding="repeat-last"))
    kept = embedded(encoder, frames_of(9))
    assert encoder._network.n_second == 3  # windows of the constant batch
    left = embedded(encoder, frames_of(9), with_frames=False)
    assert encoder._network.n_second == 3 and not encoder.with_steps
    assert left.frames is None and left.frame_rows == []
    assert np.array_equal(left.windows, kept.windows) and np.array_equal(left.clip, kept.clip)
    embedded(encoder, frames_of(9))
    assert encoder.with_steps and encoder._network.n_second == 6


def test_tubelets_stand_on_their_frames_of_every_window() -> None:
    encoder = encoder_of(FrameSampling(f"stride:2x{FRAMES}", n_windows=2, padding="zero"))
    made = embedded(encoder, frames_of(9))
    spans = [(row["frame_start"], row["frame_stop"], row["frame_kind"]) for row in made.frame_rows]
    assert spans == [(0, 3, "tubelet"), (4, 7, "tubelet"), (2, 5, "tubelet"), (6, 9, "tubelet")]
    assert [(row["frame_start"], row["frame_stop"]) for row in made.window_rows] == [(0, 7), (2, 9)]
    assert np.allclose(made.clip, made.windows.mean(axis=0)) and made.frames.shape == (4, 3)


def test_frames_alone_are_kept_once_though_windows_overlap() -> None:
    encoder = encoder_of(
        FrameSampling(f"consecutive:{FRAMES}", n_windows=3, padding="repeat-last"), frame_kind="frame"
    )
    frames = frames_of(6)
    made = embedded(encoder, frames)
    assert [row["frame"] for row in made.frame_rows] == [0, 1, 2, 3, 4, 5]
    assert {row["frame_kind"] for row in made.frame_rows} == {"frame"} and len(made.window_rows) == 3
    resized = Resize(height=SIDE, width=SIDE, interpolation="area")(frames)
    expected = ((resized - np.array(MEAN)) / STD).mean(axis=(1, 2))
    assert np.allclose(made.frames, expected, atol=1e-5)
    assert [row["frame"] for row in embedded(encoder, frames_of(2)).frame_rows] == [0, 1]


@pytest.mark.parametrize("padding", ["zero", "repeat-last", "loop", "palindrome"])
@pytest.mark.parametrize("rule", ["consecutive:4", "stride:2x4", "uniform:4"])
def test_a_still_is_repeated_and_marked(padding: str, rule: str) -> None:
    encoder = encoder_of(FrameSampling(rule, padding=padding))
    still = frames_of(1)
    made = embedded(encoder, still)
    assert made.index["n_padded"] == FRAMES - 1 and made.window_rows[0]["n_padded"] == FRAMES - 1
    clip = embedded(encoder, np.repeat(still, 8, axis=0))
    assert clip.index["n_padded"] == 0 and np.array_equal(made.clip, clip.clip)


@pytest.mark.parametrize(
    ("rule", "padding", "message"),
    [
        (
            "consecutive:5",
            "zero",
            "'consecutive:5' does not fit means, which takes windows of 4 frames; use",
        ),
        ("all", "zero", "'all' does not fit means"),
        ("keyframe:ed", "zero", "'keyframe:ed' does not fit means"),
        ("uniform:4", "none", "'uniform:4' of means does not say how short clips are filled"),
    ],
)
def test_windows_that_do_not_fit_are_refused(rule: str, padding: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        encoder_of(FrameSampling(rule, padding=padding))


def test_length_one_where_the_authors_normalise() -> None:
    sampling = FrameSampling("consecutive:4", padding="loop")
    raw, unit = encoder_of(sampling), encoder_of(sampling, vectors="l2")
    window = raw.preprocess(frames_of(4))[None]
    vector = raw.encode(window).vectors
    assert np.allclose(unit.encode(window).vectors, vector / np.linalg.norm(vector), atol=1e-6)


def test_a_custom_rule_keeps_the_padding() -> None:
    from embedstore.encoder import EncoderCard, Variant

    spec = spec_of(FrameSampling("consecutive:4", padding="zero"))
    card = EncoderCard(
        name="means",
        summary="",
        unit="clip",
        clip_dim=3,
        loader="none:none",
        preprocessing=spec.preprocessing,
        input_size=(3, FRAMES, SIDE, SIDE),
        variants={"published": Variant(spec.sampling)},
    )
    custom = card.spec(sampling=FrameSampling("stride:3x4"))
    assert custom.sampling == FrameSampling("stride:3x4", padding="zero") and custom.variant == "stride3x4"
    assert replace(spec, frame_dim=None).fingerprint != spec.fingerprint
