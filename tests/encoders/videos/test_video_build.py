"""The video transformers through ``embedstore build``: windows, steps, short clips and stills in the tables."""

from __future__ import annotations

import numpy as np
from clip_files import moving_frames

from encoders.echojepa import ECHOJEPA_CARD

LENGTHS = {"long": 36, "short": 5, "still": 1}
# Of numbers that are stored as float16 and of means of them.
HALF = 2e-3


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= HALF * np.abs(expected).max())


def test_echojepa_keeps_two_windows_and_their_steps(video, load, embed_folder) -> None:
    weights = video("echojepa", depth=1)[0]
    built = embed_folder("echojepa", weights, LENGTHS)
    assert built.failures.num_rows == 0 and built.index["clip_id"].to_pylist() == list(LENGTHS)
    assert built.index["n_padded"].to_pylist() == [0, 13, 15]
    windows = built.window_index.to_pylist()
    assert [(row["clip_id"], row["frame_start"], row["frame_stop"], row["n_padded"]) for row in windows] == [
        ("long", 0, 31, 0),
        ("long", 5, 36, 0),
        ("short", 0, 5, 13),
        ("still", 0, 1, 15),
    ]
    rows = built.frame_index.to_pylist()
    spans = [(row["frame"], row["frame_start"], row["frame_stop"]) for row in rows]
    assert {row["frame_kind"] for row in rows} == {"tubelet"}
    assert [row["clip_id"] for row in rows] == ["long"] * 16 + ["short"] * 8 + ["still"] * 8
    assert spans[:8] == [(4 * step, 4 * step, 4 * step + 3) for step in range(8)]
    assert spans[8:16] == [(start + 5, start + 5, stop + 5) for start, _, stop in spans[:8]]
    assert spans[16:24] == [(0, 0, 3), *[(4, 4, 5)] * 7] and spans[24:] == [(0, 0, 1)] * 8
    # Steps are means of equally many tokens, so their mean is the window's vector; a clip is its windows' mean.
    steps, vectors, clips = built.frames[:], built.windows[:], built.clips[:]
    assert vectors.shape == (4, 1024) and near(steps.reshape(4, 8, 1024).mean(axis=1), vectors)
    assert near(clips[0], vectors[:2].mean(axis=0)) and np.array_equal(clips[1:], vectors[2:])
    # A still, which is stored without loss, gives what the encoder makes of it repeated.
    still = np.repeat(moving_frames(2, n_frames=1), 16, axis=0)
    encoder = load(ECHOJEPA_CARD, weights)
    assert near(vectors[3:], encoder.encode(encoder.preprocess(still)[None]).vectors)


def test_echo_vision_fm_without_frames(video, embed_folder) -> None:
    built = embed_folder("echo-vision-fm", video("echo-vision-fm", depth=1)[0], LENGTHS, "--no-frames")
    assert built.failures.num_rows == 0 and built.array("frames") is None
    windows = built.window_index.to_pylist()
    assert [(row["clip_id"], row["frame_start"], row["frame_stop"], row["n_padded"]) for row in windows] == [
        ("long", 0, 36, 0),
        ("short", 0, 5, 11),
        ("still", 0, 1, 15),
    ]
    assert np.array_equal(built.clips[:], built.windows[:]) and built.clips.shape == (3, 768)


def test_echofm_begins_short_clips_again(video, embed_folder) -> None:
    built = embed_folder("echofm", video("echofm", depth=1)[0], {"short": 30})
    (window,) = built.window_index.to_pylist()
    assert (window["frame_start"], window["frame_stop"], window["n_padded"]) == (0, 30, 2)
    spans = [(row["frame"], row["frame_start"], row["frame_stop"]) for row in built.frame_index.to_pylist()]
    assert spans == [*((4 * step, 4 * step, 4 * step + 4) for step in range(7)), (28, 0, 30)]
    assert near(built.frames[:].mean(axis=0), built.windows[:][0])
