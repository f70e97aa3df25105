"""What a person should know of a manifest that breaks no rule: counts that deviate, patients across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from embedstore.manifest.recipe import Finding
from embedstore.manifest.rules import GUESSED_PATIENTS
from embedstore.manifest.split import SPLITS
from embedstore.manifest.table import Manifest

__all__ = ["count_clips", "find_notes"]

# From this share of the published clips on, a data set counts as complete and its other counts are compared.
COMPLETE_FROM = 0.95


def find_notes(manifest: Manifest) -> list[Finding]:
    """Return what deserves a word and refuses nothing.

    Returns
    -------
    list of Finding
        ``incomplete`` or ``counts-differ`` where the data set has published counts; ``patient-crossing`` where
        patients, guessed from file names, stand in two splits.
    """
    return [*_count_notes(manifest), *_crossing_notes(manifest)]


def _count_notes(manifest: Manifest) -> list[Finding]:
    expected = manifest.dataset.expected_counts
    if not expected:
        return []
    n_clips, n_published = len(manifest), expected["clips"]
    if n_clips < COMPLETE_FROM * n_published:
        return [
            Finding(
                "incomplete",
                f"{n_clips:,} of the {n_published:,} published clips are listed; other counts were not compared",
            )
        ]
    deviations = [
        f"{counted}: {found:,}, published {published:,}"
        for counted, published in expected.items()
        if (found := count_clips(manifest, counted)) != published
    ]
    if not deviations:
        return []
    message = f"{len(deviations)} of {len(expected)} counts differ from the published ones"
    return [Finding("counts-differ", message, tuple(deviations))]


def count_clips(manifest: Manifest, counted: str) -> int:
    """Return how many clips, patients or studies of a manifest fulfil all conditions.

    Parameters
    ----------
    counted : str
        As in `DatasetFacts.expected_counts`, e.g. ``"patients split=test asd=true"``; a patient counts where one
        of its clips does. A column that is not there holds no value.
    """
    what, *conditions = counted.split(" ")
    keep = [True] * len(manifest)
    for condition in conditions:
        column, _, wanted = condition.partition("=")
        cells = manifest.column(column) if column in manifest.fields else [None] * len(manifest)
        keep = [kept and _holds(cell, wanted) for kept, cell in zip(keep, cells, strict=True)]
    names: Sequence[str | None] = {
        "clips": manifest.clip_ids,
        "patients": manifest.patients,
        "studies": manifest.column("study_id"),
    }[what]
    chosen = [name for name, kept in zip(names, keep, strict=True) if kept and name is not None]
    return len(chosen) if what == "clips" else len(set(chosen))


def _holds(cell: Any, wanted: str) -> bool:
    if cell is None:
        return False
    text = str(cell).lower() if isinstance(cell, bool) else str(cell)
    return wanted in ("*", text)


def _crossing_notes(manifest: Manifest) -> list[Finding]:
    if not manifest.patient_ids.startswith(GUESSED_PATIENTS):
        return []
    places: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    columns = (manifest.patients, manifest.column("view"), manifest.column("split"))
    for patient, view, split in zip(*columns, strict=True):
        if split in SPLITS:
            places[patient][split].add(view or "no view")
    crossing = [
        f"{patient} ({'; '.join(f'{split}: ' + ', '.join(sorted(views)) for split, views in sorted(found.items()))})"
        for patient, found in places.items()
        if len(found) > 1
    ]
    if not crossing:
        return []
    message = (
        f"{len(crossing)} patients stand in two splits, judged by file names; "
        "an evaluation refuses them, or marks its result with --allow-leakage"
    )
    return [Finding("patient-crossing", message, tuple(crossing))]
