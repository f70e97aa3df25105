"""How clip encoders are fed besides the authors' way: the variants that several of them share."""

from __future__ import annotations

from collections.abc import Mapping

from embedstore.encoder import Variant
from embedstore.errors import UnknownNameError
from embedstore.spec import EncoderSpec, FrameSampling, Padding
from encoders.preprocess import CropAndScale, step_record
from encoders.resampling import BgrOrder

__all__ = ["benchmark_windows", "window_of", "window_variants"]

# BioMedIA-MBZUAI/CardioBench, src/embeddings.py: 16 frames from the first, central square, 10 % zoom, cubic.
_BENCHMARK = FrameSampling("consecutive:16", padding="repeat-last")
_BENCHMARK_ZOOM = 0.1


def window_variants(published: Variant, *, n_frames: int, padding: Padding) -> dict[str, Variant]:
    """Return the published way, and others that differ in which frames they take.

    Parameters
    ----------
    published : Variant
    n_frames : int
        Frames of a window.
    padding : str
        How short clips are filled, but under ``palindrome``.

    Examples
    --------
    >>> published = Variant(FrameSampling("consecutive:32", padding="loop"))
    >>> [title for title in window_variants(published, n_frames=32, padding="loop")]
    ['published', 'stride2', 'uniform32', 'palindrome']
    """
    return {
        "published": published,
        "stride2": Variant(
            FrameSampling(f"stride:2x{n_frames}", padding=padding),
            note="every second frame from the first, one window",
        ),
        f"uniform{n_frames}": Variant(
            FrameSampling(f"uniform:{n_frames}", padding=padding),
            note=f"{n_frames} frames spread over the clip, which is all seen, at a rate that follows its length",
        ),
        "palindrome": Variant(
            FrameSampling(f"consecutive:{n_frames}", padding="palindrome"),
            note="consecutive frames from the first; a short clip, such as half a heart beat, runs forwards and "
            "backwards until the window is full",
        ),
    }


def benchmark_windows(*, side: int) -> Mapping[str, Variant]:
    """Return the variant ``cardiobench``: the benchmark's frames and crop, for a model that takes 16 frames.

    Parameters
    ----------
    side : int
        Pixels a side of the model's frames.
    """
    crop = CropAndScale(height=side, width=side, zoom=_BENCHMARK_ZOOM, interpolation="cubic")
    return {
        "cardiobench": Variant(
            _BENCHMARK,
            preprocessing={"steps": [step_record(crop), step_record(BgrOrder())], "channels": "bgr"},
            note=f"as the CardioBench benchmark feeds frames: the first 16, central square, 10 % zoom, cubic to "
            f"{side}x{side}, blue first; its released code has no clip encoder",
        )
    }


def window_of(spec: EncoderSpec) -> tuple[int, int]:
    """Return frames of a window and pixels a side as a spec has them, for a model that takes any number.

    Raises
    ------
    UnknownNameError
        The sampling rule picks no fixed number of frames.

    Examples
    --------
    >>> sampling = FrameSampling("stride:2x16", padding="repeat-last")
    >>> steps = [{"step": "centre-crop", "height": 224, "width": 224}]
    >>> window_of(EncoderSpec(name="x", clip_dim=4, sampling=sampling, preprocessing={"steps": steps}))
    (16, 224)
    """
    rule = spec.sampling.rule if spec.sampling is not None else "none"
    number = rule.rpartition(":")[2].rpartition("x")[2]
    if not number.isdecimal():
        raise UnknownNameError(
            f"sampling {rule!r} gives {spec.title} no windows of one length; use e.g. consecutive:16 or uniform:16"
        )
    side = next(record["height"] for record in reversed(spec.preprocessing["steps"]) if "height" in record)
    return int(number), int(side)
