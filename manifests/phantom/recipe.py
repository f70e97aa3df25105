"""`phantom`: the folder that `embedstore phantom` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embedstore.errors import EnvironmentFailure, ManifestError, UnknownNameError
from embedstore.manifest import ManifestField, RecipeOutcome, RecipeRequest, read_dataset_facts
from embedstore.manifest.fields import STANDARD
from embedstore.media.survey import FileFacts, survey_files
from manifests.draft import Draft
from manifests.splits import read_splits
from manifests.tables import Table, read_table

__all__ = ["RECIPE", "PhantomRecipe"]

REVISION = 1
CLIPS_FILE = "clips.csv"
KEY_FRAMES_FILE = "key_frames.csv"


class PhantomRecipe:
    """Synthetic beating hearts with exact labels: clips, labels, splits and key frames from the folder's tables."""

    name = "phantom"
    summary = "the synthetic beating hearts that `embedstore phantom` draws"

    def make(self, request: RecipeRequest, *, progress: Callable[[int, int], None] | None = None) -> RecipeOutcome:
        """Make the manifest.

        Parameters
        ----------
        request : RecipeRequest
            ``root`` is the folder; ``splits`` and ``name`` override the folder's split and the name ``phantom``.
        progress : callable or None
            Told (files done, files in all).

        Raises
        ------
        UnknownNameError
            No root is given or it is not there, or an option that this recipe does not have.
        EnvironmentFailure
            The folder is no finished phantom.
        ManifestError
            A table lacks a column, or names a path outside the folder.
        """
        root = _root_of(request)
        facts = read_dataset_facts(Path(__file__).with_name("dataset.yaml"))
        own = [ManifestField(name=name, **described.model_dump()) for name, described in facts.fields.items()]
        clips, key_frames = (read_table(root / name) for name in (CLIPS_FILE, KEY_FRAMES_FILE))
        _require(clips, ["clip_id", "patient_id", "path", "view", "split", "fps", *facts.fields])
        _require(key_frames, ["clip_id", "role", "frame"])
        draft = Draft(
            fields=own, patient_ids="provided", split_rule="drawn by patient from the seed of the phantom (clips.csv)"
        )
        _add_rows(draft, clips, root, known={*STANDARD, *facts.fields}, request=request, progress=progress)
        draft.take_media_values(has_fps_column=True)
        if request.splits is not None:
            draft.take_splits(read_splits(request.splits))
        else:
            draft.normalise_splits()
        frames = list(zip(*(key_frames.cells(name) for name in ("clip_id", "role", "frame")), strict=True))
        odd = [frame for _, _, frame in frames if not frame.isdecimal()]
        if odd:
            raise ManifestError(f"{key_frames.path}: column 'frame' needs frame numbers, got {odd[0]!r}")
        dataset = facts if request.name is None else facts.model_copy(update={"name": request.name})
        manifest = draft.to_manifest(
            dataset,
            recipe=f"{self.name} {REVISION}",
            key_frames=[(clip_id, role, int(frame)) for clip_id, role, frame in frames],
        )
        return RecipeOutcome(manifest, tuple(draft.findings), root=root.resolve())


RECIPE = PhantomRecipe()


def _root_of(request: RecipeRequest) -> Path:
    for option, value in (
        ("--table", request.table),
        ("--column", request.columns),
        ("--label-column", request.label_columns),
    ):
        if value:
            raise UnknownNameError(f"the data set recipe 'phantom' has its own table: leave out {option}")
    if request.root is None:
        raise UnknownNameError("the data set recipe 'phantom' needs --root DIR, the folder of embedstore phantom")
    if not request.root.is_dir():
        raise UnknownNameError(f"--root: there is no folder {request.root}")
    missing = [name for name in (CLIPS_FILE, KEY_FRAMES_FILE) if not (request.root / name).is_file()]
    if missing:
        raise EnvironmentFailure(
            f"{request.root} has no {missing[0]}: it is no phantom, or one whose drawing was interrupted; "
            f"draw it with embedstore phantom --out {request.root}"
        )
    return request.root


def _require(table: Table, columns: list[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ManifestError(f"{table.path} has no column {missing[0]!r}; draw the phantom again")


def _add_rows(
    draft: Draft,
    clips: Table,
    root: Path,
    *,
    known: set[str],
    request: RecipeRequest,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Add a row for each clip of the table, with its file where that is there."""
    named = [name for name in clips.columns if name in known]
    columns = [clips.cells(name) for name in named]
    rows = [
        {name: cell for name, cell in zip(named, cells, strict=True) if cell} for cells in zip(*columns, strict=True)
    ]
    outside = [row.get("path", "") for row in rows if not _lies_below(row.get("path", ""), root)]
    if outside:
        raise ManifestError(f"{clips.path}: path {outside[0]!r} is empty or leaves the folder")
    present = [at for at, row in enumerate(rows) if (root / row["path"]).is_file()]
    surveyed = survey_files(
        [root / rows[at]["path"] for at in present], n_workers=request.n_workers, progress=progress
    )
    file_of: dict[int, FileFacts] = dict(zip(present, surveyed, strict=True))
    for at, row in enumerate(rows):
        draft.add_row({**row, "modality": "2d", "view_source": "given"}, file_of.get(at))
    draft.report(
        "row-without-file",
        "rows of the table have no file; a build will report them as missing",
        draft.ids_where(lambda _, file: file is None),
    )
    draft.report(
        "undecodable",
        "files cannot be read as clips; a build will report them as failed",
        draft.ids_where(lambda _, file: bool(file and file.problem)),
    )


def _lies_below(path: str, root: Path) -> bool:
    return bool(path) and (root / path).resolve().is_relative_to(root.resolve())
