"""What can change a vector, and nothing else: `FrameSampling` and `EncoderSpec`.

The fingerprint of a spec is half of the cache key; batch size, device and worker count are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from embedstore.errors import MediaError, UnknownNameError
from embedstore.identity import digest_json

__all__ = ["EncoderSpec", "FrameSampling", "ResolvedFrames"]

Padding = Literal["none", "repeat-last", "zero", "loop", "palindrome"]
_PADDINGS = ("none", "repeat-last", "zero", "loop", "palindrome")
MISSING_FRAME = -1
_MAX_FRAMES = 100_000

_RULES = {
    "all": re.compile(r"all"),
    "uniform": re.compile(r"uniform:(\d+)"),
    "linspace": re.compile(r"linspace:(\d+)"),
    "consecutive": re.compile(r"consecutive:(\d+)"),
    "stride": re.compile(r"stride:(\d+)x(\d+)"),
    "rate": re.compile(r"rate:(\d+(?:\.\d+)?)x(\d+)"),
    "keyframe": re.compile(r"keyframe:([a-z]+)"),
}
_GRAMMAR = "uniform:N, linspace:N, all, consecutive:N, stride:SxN, rate:HZxN, keyframe:ROLE"


@dataclass(frozen=True, kw_only=True)
class ResolvedFrames:
    """Which frames of one clip a rule picks.

    Attributes
    ----------
    windows : tuple of tuple of int
        Frame numbers of each window, in order; -1 stands for a frame that is missing and padded with zeros.
        Frame encoders have one window whose frames are the rows.
    n_padded : int
        How many positions repeat a frame, or are missing, because the clip is too short.
    covered_s : float or None
        Seconds from the first to the last frame picked, None where fps is not known.
    effective_hz : float or None
        Frames picked per second within a window, None for a single frame or where fps is not known.
    """

    windows: tuple[tuple[int, ...], ...]
    n_padded: int
    covered_s: float | None
    effective_hz: float | None

    @property
    def frames(self) -> tuple[int, ...]:
        """The distinct frame numbers to decode, ascending."""
        return tuple(sorted({index for window in self.windows for index in window if index >= 0}))

    @property
    def digest(self) -> str:
        """SHA-256 of the windows: the part of a vector key that follows a corrected key frame or fps."""
        return digest_json([list(window) for window in self.windows])


@dataclass(frozen=True)
class FrameSampling:
    """A rule that picks frames, how many windows it is applied to, and what is done with short clips.

    Parameters
    ----------
    rule : str
        ``uniform:N`` (N frames spread evenly from first to last), ``linspace:N`` (the same, but places between
        frames are cut off and not rounded, and a short clip's frames are repeated evenly), ``all``,
        ``consecutive:N``, ``stride:SxN`` (N frames, every S-th), ``rate:HZxN`` (N frames at HZ per second of the
        clip's time, nearest frame) or ``keyframe:ROLE`` (the frames that the manifest's key-frame table gives that
        role).
    n_windows : int
        Windows a clip. One window starts at the first frame; the starts of several are spread evenly from the
        first frame to the last start that fits.
    padding : {"none", "repeat-last", "zero", "loop", "palindrome"}
        ``none`` takes what there is; the others fill a window to N. A still image is repeated under each of them:
        one frame and N - 1 times nothing would be no clip of it.

    Raises
    ------
    UnknownNameError
        The rule is not in the grammar.

    Examples
    --------
    >>> FrameSampling("stride:2x4").resolve(n_frames=30, fps=30.0).windows
    ((0, 2, 4, 6),)
    >>> FrameSampling("uniform:4").resolve(n_frames=10, fps=None).windows
    ((0, 3, 6, 9),)
    """

    rule: str = "uniform:16"
    n_windows: int = field(default=1, kw_only=True)
    padding: Padding = field(default="none", kw_only=True)

    def __post_init__(self) -> None:
        kind, numbers = self._parse()
        if any(number <= 0 or number > _MAX_FRAMES for number in numbers):
            raise UnknownNameError(
                f"sampling rule {self.rule!r} needs numbers from 1 to {_MAX_FRAMES}; rules: {_GRAMMAR}"
            )
        if self.n_windows < 1 or self.padding not in _PADDINGS:
            raise UnknownNameError(f"sampling {self.rule!r} got windows {self.n_windows}, padding {self.padding!r}")

    def _parse(self) -> tuple[str, list[float]]:
        for kind, pattern in _RULES.items():
            match = pattern.fullmatch(self.rule)
            if match:
                if kind == "keyframe":
                    return kind, []
                return kind, [float(group) for group in match.groups()]
        raise UnknownNameError(f"unknown sampling rule {self.rule!r}; rules: {_GRAMMAR}")

    def resolve(
        self, *, n_frames: int, fps: float | None, key_frames: Mapping[str, Sequence[int]] | None = None
    ) -> ResolvedFrames:
        """Pick the frames of a clip of ``n_frames`` frames at ``fps`` frames per second.

        Raises
        ------
        MediaError
            ``rate`` without a known fps (reason ``no-fps``), ``keyframe`` without such a key frame
            (``no-key-frame``), or a clip without frames (``no-frames``).
        """
        if n_frames < 1:
            raise MediaError("the clip has no frames", reason="no-frames")
        kind, numbers = self._parse()
        if kind == "keyframe":
            windows, wanted = self._key_frame_windows(n_frames, key_frames or {}), 0
        elif kind == "all":
            windows, wanted = [list(range(n_frames))], n_frames
        elif kind == "uniform":
            windows, wanted = [_spread(n_frames, int(numbers[0]))], int(numbers[0])
        elif kind == "linspace":
            wanted = int(numbers[0])
            windows = [_linspace(n_frames, wanted)]
        else:
            wanted = int(numbers[-1])
            offsets = self._offsets(kind, numbers, fps)
            windows = self._slide(offsets, n_frames)
        n_padded = wanted - len(set(windows[0])) if kind == "linspace" else 0
        if self.padding != "none":
            padded = [self._pad(window, wanted, n_frames) for window in windows]
            n_padded += sum(len(after) - len(before) for after, before in zip(padded, windows, strict=True))
            windows = padded
        return self._described(windows, n_padded, fps)

    def _key_frame_windows(self, n_frames: int, key_frames: Mapping[str, Sequence[int]]) -> list[list[int]]:
        role = self.rule.partition(":")[2]
        frames = sorted(set(key_frames.get(role, ())))
        if not frames:
            raise MediaError(f"the manifest has no key frame {role!r} for this clip", reason="no-key-frame")
        if frames[0] < 0 or frames[-1] >= n_frames:
            raise MediaError(
                f"key frame {role!r} lies outside the clip's {n_frames} frames", reason="key-frame-outside"
            )
        return [frames]

    @staticmethod
    def _offsets(kind: str, numbers: list[float], fps: float | None) -> list[int]:
        if kind == "consecutive":
            return list(range(int(numbers[0])))
        if kind == "stride":
            return [int(numbers[0]) * position for position in range(int(numbers[1]))]
        if fps is None or fps <= 0:
            raise MediaError("a rate needs frames per second, which this clip does not state", reason="no-fps")
        return [int(position * fps / numbers[0] + 0.5) for position in range(int(numbers[1]))]

    def _slide(self, offsets: list[int], n_frames: int) -> list[list[int]]:
        last_start = max(n_frames - 1 - offsets[-1], 0)
        starts = _spread(last_start + 1, self.n_windows) if self.n_windows > 1 else [0]
        return [[start + offset for offset in offsets if start + offset < n_frames] for start in starts]

    def _pad(self, window: list[int], wanted: int, n_frames: int) -> list[int]:
        short = wanted - len(window)
        if short <= 0:
            return window
        if self.padding == "zero" and n_frames > 1:
            return window + [MISSING_FRAME] * short
        if self.padding == "repeat-last" or n_frames == 1:
            return window + [window[-1]] * short
        cycle = window if self.padding == "loop" else window + window[-2:0:-1]
        return [cycle[position % len(cycle)] for position in range(wanted)]

    @staticmethod
    def _described(windows: list[list[int]], n_padded: int, fps: float | None) -> ResolvedFrames:
        real = [[index for index in window if index >= 0] for window in windows]
        picked = [index for window in real for index in window]
        covered_s = effective_hz = None
        if fps is not None and fps > 0:
            covered_s = (max(picked) - min(picked)) / fps
            steps = sorted(set(real[0]))
            if len(steps) > 1:
                effective_hz = (len(steps) - 1) * fps / (steps[-1] - steps[0])
        return ResolvedFrames(
            windows=tuple(tuple(window) for window in windows),
            n_padded=n_padded,
            covered_s=covered_s,
            effective_hz=effective_hz,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the form that enters the fingerprint."""
        return {"rule": self.rule, "n_windows": self.n_windows, "padding": self.padding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FrameSampling:
        """Read the form of `to_dict`."""
        return cls(fields["rule"], n_windows=fields["n_windows"], padding=fields["padding"])


def _spread(n_frames: int, wanted: int) -> list[int]:
    """Pick at most ``wanted`` distinct frames, first and last included, at even distances (half rounds up)."""
    if wanted >= n_frames:
        return list(range(n_frames))
    if wanted == 1:
        return [(n_frames - 1) // 2]
    return [(2 * position * (n_frames - 1) + wanted - 1) // (2 * (wanted - 1)) for position in range(wanted)]


def _linspace(n_frames: int, wanted: int) -> list[int]:
    """Pick ``wanted`` frames as ``numpy.linspace(0, n_frames - 1, wanted).astype(int)``, which cuts off, does."""
    if wanted == 1:
        return [0]
    return [position * (n_frames - 1) // (wanted - 1) for position in range(wanted)]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything that decides a vector's value, and nothing else.

    Parameters
    ----------
    name, variant : str
        ``NAME[@VARIANT]``.
    unit : {"frame", "clip"}
        Whether the model sees one frame or a window of frames.
    weights_sha256 : str or None
        SHA-256 of the checkpoint file; None for an encoder without weights or vectors of unknown origin.
    preprocessing : mapping
        Named steps with their numbers, JSON values only.
    preprocessing_revision : int
        Raised when the code of the preprocessing changes its result.
    sampling : FrameSampling
        Which frames.
    pooling : str
        How frame or window vectors become the clip vector.
    precision : str
        Compute precision, ``float32`` or ``bf16``.
    dtype : str
        Stored dtype, ``float16`` or ``float32``.
    clip_dim, frame_dim : int or None
        Dimensions of clip and frame vectors.
    unknown : tuple of str
        Names of fields that are not known, for vectors brought from elsewhere.
    """

    name: str
    variant: str = "published"
    unit: str = "frame"
    weights_sha256: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    preprocessing_revision: int = 1
    sampling: FrameSampling | None = field(default_factory=FrameSampling)
    pooling: str = "mean-l2"
    precision: str = "float32"
    dtype: str = "float16"
    clip_dim: int
    frame_dim: int | None = None
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise UnknownNameError(f"unknown stored dtype {self.dtype!r}; use float16 or float32")
        if self.precision not in ("float32", "bf16"):
            raise UnknownNameError(f"unknown precision {self.precision!r}; use float32 or bf16")
        if self.unit not in ("frame", "clip"):
            raise UnknownNameError(f"unknown unit {self.unit!r}; use frame or clip")

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@VARIANT``."""
        return self.name if self.variant == "published" else f"{self.name}@{self.variant}"

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form, JSON values only."""
        return {
            "name": self.name,
            "variant": self.variant,
            "unit": self.unit,
            "weights_sha256": self.weights_sha256,
            "preprocessing": dict(self.preprocessing),
            "preprocessing_revision": self.preprocessing_revision,
            "sampling": None if self.sampling is None else self.sampling.to_dict(),
            "pooling": self.pooling,
            "precision": self.precision,
            "dtype": self.dtype,
            "clip_dim": self.clip_dim,
            "frame_dim": self.frame_dim,
            "unknown": sorted(self.unknown),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EncoderSpec:
        """Read the form of `to_dict`."""
        values = dict(fields)
        sampling = values.pop("sampling")
        unknown = tuple(values.pop("unknown"))
        return cls(
            **values, sampling=None if sampling is None else FrameSampling.from_dict(sampling), unknown=unknown
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of the spec."""
        return digest_json(self.to_dict())

    def vector_key(self, *, content_sha256: str, resolved_digest: str) -> str:
        """Return the cache key of one clip's vectors.

        Parameters
        ----------
        content_sha256 : str
            SHA-256 of the clip file.
        resolved_digest : str
            `ResolvedFrames.digest` of the frames that the manifest's facts resolve to.
        """
        return digest_json([self.fingerprint, content_sha256, resolved_digest])
