"""`Result`: the numbers of one encoder on one task, with everything needed to get them again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import __version__
from embedstore.identity import digest_json
from evaltools.metrics import Floats
from evaltools.resample import Estimate, estimates_to_dict
from evaltools.task import Task
from evaltools.task_rows import TaskRow

__all__ = ["Counts", "GroupScores", "Predictions", "Provenance", "Result", "file_name", "software_versions"]


def file_name(text: str) -> str:
    """Return ``text`` as part of a file name; what had to be replaced is told apart by a digest.

    Examples
    --------
    >>> file_name("efficientnet-lite0@stride2"), file_name("EF (%)")
    ('efficientnet-lite0@stride2', 'EF____-f8b82a34')
    """
    kept = "".join(character if character.isalnum() or character in "-_.@+" else "_" for character in text)
    return (
        kept if kept == text and kept and not kept.startswith(".") else f"{kept.lstrip('.')}-{digest_json(text)[:8]}"
    )


def software_versions() -> dict[str, str]:
    """Return the versions that can move a last digit."""
    return {"embedstore": __version__, "numpy": np.__version__, "python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many clips and patients stand behind a result.

    Attributes
    ----------
    n_expected : int
        Labelled test clips that the task asks for.
    n_scored, n_patients : int
        Test clips that were scored, and their patients.
    n_train, n_val : int
        Clips fitted on, clips chosen by.
    n_val_patients : int
        Patients of the latter.
    n_unlabelled, n_without_split : int
        Clips left out for want of a label, of a split.
    n_missing : int
        Labelled clips of any split without vectors of this encoder.
    n_dropped : int
        Labelled clips with vectors, left out because another encoder of the table lacks them.
    """

    n_expected: int
    n_scored: int
    n_patients: int
    n_train: int
    n_val: int
    n_val_patients: int
    n_unlabelled: int
    n_without_split: int
    n_missing: int
    n_dropped: int

    def to_dict(self) -> dict[str, int]:
        """Return JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """Metrics of one subgroup of the test clips."""

    n_scored: int
    n_patients: int
    metrics: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "n_scored": self.n_scored,
            "n_patients": self.n_patients,
            "metrics": estimates_to_dict(self.metrics),
        }


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One row a scored clip, patient or study.

    Attributes
    ----------
    clip_ids, patients : (m,) object
        Id of what was scored, and the patient it is of.
    y_true, y_pred : (m,) float64 or object
        Values, or class names.
    probabilities : (m, K) float64 or None
        Class probabilities in the order of `classes`.
    classes : tuple of str
    repeats : (m,) int or None
        Repeat of a cross-validation that each row is of; None where the split's test clips were scored.
    level : str
        What was scored: ``clip``, ``patient`` or ``study``.
    """

    clip_ids: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    y_true: npt.NDArray[Any]
    y_pred: npt.NDArray[Any]
    probabilities: Floats | None = None
    classes: tuple[str, ...] = ()
    repeats: npt.NDArray[np.intp] | None = None
    level: str = "clip"

    def __len__(self) -> int:
        return len(self.clip_ids)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Digests of what a result was made of, and what is known of its soundness.

    Attributes
    ----------
    set_id, fingerprint : str
        The set of vectors and its encoder spec.
    media, annotations, task, protocol : str
        Digests of the manifest's media and annotations, of the task, of the protocol's settings.
    split_rule, leakage : str
        Where the split comes from; what is known of patients in two splits.
    synthetic : bool
        Whether the clips are synthetic.
    where : str or None
        Expression that selected clips.
    asked_of : str or None
        Expression of the task that did.
    oracle_frames : bool
        Whether the frames were picked by an expert.
    pretraining : str or None
        The data set that the encoder was trained on and that this one is or is part of.
    notes : tuple of str
        Sentences that belong beside the number.
    """

    set_id: str
    fingerprint: str
    media: str
    annotations: str
    task: str
    protocol: str
    split_rule: str
    leakage: str
    synthetic: bool
    where: str | None
    asked_of: str | None = None
    oracle_frames: bool = False
    pretraining: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of one encoder, pooling and protocol on one task and data set.

    Attributes
    ----------
    axis : mapping
        Keys of the JSON form that tell the result apart: ``fraction`` and ``repeat`` on a curve, ``train_dataset`` in
        a transfer.
    extras : mapping
        JSON values that a protocol adds to the JSON form, such as the bank of a zero-shot result.
    row : TaskRow
        What was scored, and how predictions of clips became one.
    units_missing : tuple of str
        Patients or studies with a label but no clip of those that the task is asked of.
    near_duplicates : mapping or None
        Test clips that nearly equal a training clip, and the metrics without them; None where nothing was looked for.
    cardiobench : mapping or None
        CardioBench's numbers of the same predictions, where they were asked for.
    """

    task: Task
    dataset: str
    encoder: str
    variant: str
    pool: str
    protocol: str
    dim: int
    metrics: Mapping[str, Estimate]
    controls: Mapping[str, Mapping[str, Estimate]]
    n_shuffles: int
    p_shuffled: float | None
    groups: Mapping[str, Mapping[str, GroupScores]]
    counts: Counts
    chosen: Mapping[str, Any]
    seed: int
    draws: int
    provenance: Provenance
    predictions: Predictions
    axis: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    row: TaskRow = TaskRow(name="all")
    units_missing: tuple[str, ...] = ()
    near_duplicates: Mapping[str, Any] | None = None
    cardiobench: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@VARIANT`` of the encoder."""
        return self.encoder if self.variant == "published" else f"{self.encoder}@{self.variant}"

    @property
    def is_primary(self) -> bool:
        """Whether the protocol is the one that the task fixed before looking."""
        return self.protocol == self.task.protocol

    @property
    def stem(self) -> str:
        """A file name without suffix; two results share it only where their sets share a title."""
        parts = [self.task.name, self.dataset, self.title, self.pool, self.protocol]
        if self.row.name != "all":
            parts.append(f"row-{self.row.name}")
        if self.provenance.where is not None:
            parts.append(f"where-{digest_json(self.provenance.where)[:8]}")
        parts += [
            f"{key}-{value:g}" if isinstance(value, float) else f"{key}-{value}" for key, value in self.axis.items()
        ]
        return "__".join(file_name(part) for part in parts)

    def to_dict(self, *, predictions: Path | None = None) -> dict[str, Any]:
        """Return the contract's JSON form.

        Parameters
        ----------
        predictions : Path or None
            Where the predictions were written.
        """
        known = self.provenance
        counts = self.counts.to_dict()
        return {
            "task": self.task.name,
            "dataset": self.dataset,
            "encoder": self.encoder,
            "variant": self.variant,
            "protocol": self.protocol,
            "main_metric": self.task.main_metric,
            "metrics": estimates_to_dict(self.metrics),
            "controls": {name: estimates_to_dict(control) for name, control in self.controls.items()},
            **{name: counts.pop(name) for name in ("n_expected", "n_scored", "n_patients")},
            "seed": self.seed,
            "set": known.set_id,
            "annotations": known.annotations,
            "predictions": None if predictions is None else str(predictions),
            "pool": self.pool,
            "kind": self.task.kind,
            "unit": self.task.unit,
            "primary": self.is_primary,
            "dim": self.dim,
            "chosen": dict(self.chosen),
            "counts": counts,
            "shuffles": {"n": self.n_shuffles, "p": self.p_shuffled},
            "groups": {
                column: {value: scores.to_dict() for value, scores in groups.items()}
                for column, groups in self.groups.items()
            },
            "bootstrap": self.draws,
            "leakage": known.leakage,
            "split_rule": known.split_rule,
            "synthetic": known.synthetic,
            "where": known.where,
            "row": self.row.name,
            "level": self.row.level,
            "aggregation": self.row.aggregation,
            "of_row": self.row.where,
            "asked_of": known.asked_of,
            "units_missing": list(self.units_missing),
            "near_duplicates": self.near_duplicates,
            "oracle_frames": known.oracle_frames,
            "pretraining": known.pretraining,
            "cardiobench": self.cardiobench,
            "notes": list(known.notes),
            "fingerprint": known.fingerprint,
            "media": known.media,
            "task_digest": known.task,
            "protocol_digest": known.protocol,
            "versions": software_versions(),
            **self.extras,
            **self.axis,
        }
