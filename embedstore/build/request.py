"""What a build is asked for, what it tells while it runs, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.given_paths import settle_paths

if TYPE_CHECKING:
    from embedstore.build.banks import BankOutcome

__all__ = ["BuildOutcome", "BuildRequest", "Progress"]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build and how.

    Attributes
    ----------
    encoders : tuple of str
        ``NAME[@VARIANT]``, or ``all``: every encoder whose weights are on this machine.
    manifests : tuple of str
        Names of the store's manifests, or manifest files; every manifest of the store without.
    roots : mapping of str to Path or str
        Media root by data set name; ``""`` for any.
    weights : mapping of str to Path or str
        Checkpoint by encoder name.
    trusted : mapping of str to str
        By encoder name, the SHA-256 of a ``.pt`` file that names code and that the user trusts all the same.
    sampling : str or None
        A rule in place of the variant's.
    where : str or None
        Condition on manifest columns that picks clips.
    limit : int or None
        First N patients only.
    shard : (int, int) or None
        This worker's part I of N.
    n_workers : int or None
        Decode processes; None for one less than the cores, at least one.
    block_bytes : int
        Bytes of prepared frames held at once; changes no vector.
    """

    encoders: tuple[str, ...]
    manifests: tuple[str, ...] = ()
    roots: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    trusted: Mapping[str, str] = field(default_factory=dict)
    sampling: str | None = None
    where: str | None = None
    limit: int | None = None
    device: str = "auto"
    batch_size: int | None = None
    n_workers: int | None = None
    block_bytes: int = 1 << 30
    precision: str = "float32"
    dtype: str = "float16"
    with_frames: bool = True
    stop_on_error: bool = False
    shard: tuple[int, int] | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        settle_paths(self, "roots", "weights")


@dataclass(frozen=True, kw_only=True)
class BuildOutcome:
    """What became of one data set and one encoder.

    Attributes
    ----------
    set_id : str or None
        None while units of other workers are open, and in a dry run.
    n_reused : int
        Clips that needed no encoding.
    units_open : int
    reasons : mapping of str to int
        Why clips failed.
    rest_seconds : float or None
        With a limit, the time that the clips left out would take at the speed measured.
    """

    dataset: str
    encoder: str
    set_id: str | None
    n_expected: int
    n_ok: int
    n_failed: int
    n_reused: int
    n_frames: int
    dim: int
    frame_dim: int | None
    seconds: float
    units_open: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    failed_clips: Sequence[tuple[str, str, str]] = ()
    rest_seconds: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the command's JSON."""
        return {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "set": self.set_id,
            "clips_expected": self.n_expected,
            "clips_ok": self.n_ok,
            "clips_failed": self.n_failed,
            "clips_reused": self.n_reused,
            "frames": self.n_frames,
            "dim": self.dim,
            "frame_dim": self.frame_dim,
            "seconds": round(self.seconds, 3),
            "units_open": self.units_open,
            "failure_reasons": dict(self.reasons),
            "rest_seconds": None if self.rest_seconds is None else round(self.rest_seconds, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Callbacks of a build.

    Attributes
    ----------
    begin : callable
        Told (label, clips to encode) before a data set's pipeline starts.
    clip : callable
        Told (clip id, reason or None) for each clip.
    note : callable
        Told one sentence at a time.
    bank : callable
        Told the `BankOutcome` of each prompt bank and of published heads, after the sets.
    """

    begin: Callable[[str, int], None] = lambda label, total: None
    clip: Callable[[str, str | None], None] = lambda clip_id, reason: None
    note: Callable[[str], None] = lambda sentence: None
    bank: Callable[[BankOutcome], None] = lambda outcome: None
