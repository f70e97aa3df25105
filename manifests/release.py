"""`Release`: a published data set below a root: its files, rows with their files, and what was left over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedstore.errors import UnknownNameError
from embedstore.manifest import (
    DatasetFacts,
    Finding,
    ManifestField,
    RecipeOutcome,
    RecipeRequest,
    find_notes,
    read_dataset_facts,
)
from embedstore.manifest.fields import STANDARD
from embedstore.media import stem_without_media_suffix
from embedstore.media.survey import list_files, survey_files
from manifests.clips import ReleaseClip, named_stem
from manifests.cross_check import check_splits_file, settle_patients
from manifests.draft import Draft
from manifests.layouts import require_layout
from manifests.measures import read_measures
from manifests.splits import read_splits
from manifests.tables import CLIP_ID_NAMES, PATH_NAMES, Table, read_table

__all__ = ["Progress", "Release", "open_release", "require_column"]

Progress = Callable[[int, int], None]
_SIDE_FILES = (".csv", ".tsv", ".txt", ".md", ".pdf", ".xlsx", ".xls", ".json", ".html", ".docx", ".zip")


@dataclass
class Release:
    """The files of a data set, and the draft of its manifest.

    Attributes
    ----------
    paths : list of str
        Files below the root that nothing has taken yet.
    draft : Draft
    dataset : DatasetFacts
    request : RecipeRequest
    root : Path
    """

    root: Path
    dataset: DatasetFacts
    request: RecipeRequest
    draft: Draft
    paths: list[str]

    def read_numbers(
        self, table: Table, spelling: str, column: str, names: Sequence[str], *, tolerated: float = 0.0
    ) -> tuple[float | None, ...]:
        """Return a column of a table as numbers, nothing but None where the table lacks it.

        Parameters
        ----------
        spelling, column : str
            Its name in the table, and in the manifest.
        names : sequence of str
            Clip of each row.
        tolerated : float
            See `read_measures`.

        Raises
        ------
        ManifestError
            Values are in another unit.
        """
        spelled = table.find_column([spelling])
        if spelled is None:
            return (None,) * len(table)
        declared = next((own for own in self.draft.fields if own.name == column), STANDARD.get(column))
        assert declared is not None
        measured = read_measures(
            table.decimal_cells(spelled),
            names,
            declared,
            source=f"{table.path.name}, column {spelled}",
            tolerated=tolerated,
        )
        self.draft.findings += measured.findings
        if declared.kind != "integer":
            return measured.values
        return tuple(int(value) if value is not None and value == int(value) else value for value in measured.values)

    def media_by_stem(self) -> dict[str, list[str]]:
        """Return the media files that nothing has taken, by file name without suffix."""
        files: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            if stem_without_media_suffix(path) != path:
                files[named_stem(path)].append(path)
        return files

    def take(self, fits: Callable[[PurePosixPath], bool]) -> list[str]:
        """Return the paths for which ``fits`` and count them as accounted for."""
        return self._take_named([path for path in self.paths if fits(PurePosixPath(path))])

    def _take_named(self, taken: list[str]) -> list[str]:
        chosen = set(taken)
        if chosen:
            self.paths = [path for path in self.paths if path not in chosen]
        return taken

    def leave_out(self, what: str, fits: Callable[[PurePosixPath], bool]) -> None:
        """Report files that are no clips of this manifest, counted by folder."""
        counts: dict[str, int] = defaultdict(int)
        for path in self.take(fits):
            counts[PurePosixPath(path).parent.as_posix()] += 1
        named = [f"{folder} ({count})" for folder, count in sorted(counts.items())]
        if named:
            message = f"{sum(counts.values()):,} files are {what} and were left out, by folder"
            self.draft.findings.append(Finding("left-out", message, tuple(named)))

    def find_table(self, name: str, *, below: str | None = None) -> Table | None:
        """Read the one table of a file name, in any case; None where there is none.

        Parameters
        ----------
        below : str or None
            Name of the folder that it must lie in.

        Raises
        ------
        UnknownNameError
            There are several.
        """
        wanted = name.lower()

        def fits(path: str) -> bool:
            inside = PurePosixPath(self.root.name, path)
            return inside.name.lower() == wanted and (below is None or inside.parent.name.lower() == below.lower())

        tables = self._take_named([path for path in self.paths if path.lower().endswith(wanted) and fits(path)])
        if len(tables) > 1:
            raise UnknownNameError(
                f"--root: {self.root} holds {len(tables)} files {name}, {tables[0]} and {tables[1]} among them; "
                "give the folder of one"
            )
        return read_table(self.root / tables[0]) if tables else None

    def require_table(self, name: str, *, needs: Sequence[Sequence[str]], below: str | None = None) -> Table:
        """Return the one table of a file name.

        Parameters
        ----------
        needs : sequence of sequence of str
            Columns, each with its spellings.

        Raises
        ------
        UnknownNameError
            It is not there, or lacks a column.
        """
        table = self.find_table(name, below=below)
        if table is None:
            raise UnknownNameError(f"--root: {self.root} has no {name}; is the download complete?")
        for spellings in needs:
            require_column(table, spellings)
        return table

    # -- clips and their files ------------------------------------------------------------------------------

    def add_clips(self, clips: Iterable[ReleaseClip], *, progress: Progress | None, has_fps_column: bool) -> None:
        """Hash and probe the files of the clips, add their rows, and report what does not match.

        Parameters
        ----------
        clips : iterable of ReleaseClip
            With distinct ids.
        has_fps_column : bool
            Whether the data set's tables state frame rates.

        Raises
        ------
        UnknownNameError
            There is no clip.
        """
        clips = list(clips)
        if not clips:
            raise UnknownNameError(
                f"--root: {self.root} names no clip of {self.dataset.name!r}: its tables have no rows, or its files "
                "are not there; is the download complete?"
            )
        media = [path for path in self.paths if stem_without_media_suffix(path) != path]
        wanted = sorted({path for clip in clips for path in clip.candidates})
        surveyed = survey_files(
            [self.root / path for path in wanted], n_workers=self.request.n_workers, progress=progress
        )
        file_of = dict(zip(wanted, surveyed, strict=True))
        taken = set(wanted)
        self.paths = [path for path in self.paths if path not in taken]
        ambiguous: list[str] = []
        copies: list[str] = []
        self._drop_impossible(clips)
        for clip in clips:
            contents = {file_of[path].sha256 for path in clip.candidates}
            if len(contents) > 1:
                ambiguous.append(f"{clip.clip_id} ({', '.join(clip.candidates)})")
                self.draft.add_row(clip.row, None)
                continue
            if len(clip.candidates) > 1:
                copies += clip.candidates[1:]
            if clip.candidates:
                path = clip.candidates[0]
                self.draft.add_row({**clip.row, "path": path}, file_of[path])
            else:
                self.draft.add_row(clip.row, None)
        self.draft.take_media_values(has_fps_column=has_fps_column)
        report = self.draft.report
        report("ambiguous", "clips have several files of different content and take none", ambiguous)
        report("file-copy", "files are copies of a clip's file elsewhere and were left out", copies)
        self._report_missing()
        problem_of = {path: facts.problem for path, facts in file_of.items() if facts.problem is not None}
        report(
            "undecodable",
            "files cannot be read as clips; a build will report them as failed",
            [f"{path} ({problem})" for path, problem in problem_of.items()],
        )
        self._report_contents()
        bare = [path for path in media if path not in taken]
        report("file-without-row", "media files belong to no clip of the data set and were left out", bare)
        known = set(bare)
        strange = [path for path in self.paths if path not in known and not path.lower().endswith(_SIDE_FILES)]
        report("not-recognised", "files are not of the data set's layout and were left out", strange)

    def _drop_impossible(self, clips: Iterable[ReleaseClip]) -> None:
        """Leave out sizes, counts and rates of a table that no clip can have; the file's own are taken then."""
        dropped = []
        for clip in clips:
            for name in ("fps", "n_frames", "height", "width"):
                value = clip.row.get(name)
                if value is not None and not (value > 0 and (name == "fps" or value == int(value))):
                    dropped.append(f"{clip.clip_id} ({name} {value:g})")
                    clip.row[name] = None
        self.draft.report("value-impossible", "values of the table cannot be and were left out", dropped)

    def _report_missing(self) -> None:
        missing = self.draft.ids_where(lambda _, file: file is None)
        n_rows = len(self.draft.rows)
        if missing and len(missing) == n_rows:
            message = (
                f"of {n_rows:,} clips have no file below the root: the manifest serves vectors that are ingested, "
                "a build would fail on every clip"
            )
        else:
            message = f"of {n_rows:,} clips have no file; is the download complete? A build reports them as missing"
        self.draft.report("row-without-file", message, missing)

    def _report_contents(self) -> None:
        ids_of: dict[str, list[str]] = defaultdict(list)
        for row in self.draft.rows:
            if row.get("sha256"):
                ids_of[row["sha256"]].append(row["clip_id"])
        twins = [" = ".join(ids) for ids in ids_of.values() if len(ids) > 1]
        self.draft.report("content-duplicate", "contents stand under several clip ids", twins)

    # -- the manifest ---------------------------------------------------------------------------------------

    def finish(
        self,
        clips: Iterable[ReleaseClip],
        *,
        recipe: str,
        split_ids: Sequence[str] = (),
        labels_in_splits: Mapping[str, str] | None = None,
    ) -> RecipeOutcome:
        """Return the manifest with splits, patients and key frames in their last form.

        Parameters
        ----------
        clips : iterable of ReleaseClip
            Those that were added.
        recipe : str
            Name and revision.
        split_ids : sequence of str
            What a splits file may call its clips besides the usual names.
        labels_in_splits : mapping of str to str or None
            Labels that a published splits file repeats, to their columns here.
        """
        if self.request.splits is not None:
            names = (*split_ids, *CLIP_ID_NAMES, *PATH_NAMES)
            self.draft.take_splits(read_splits(self.request.splits, clip_names=names))
            check_splits_file(self.draft, self.request, labels=labels_in_splits or {})
        else:
            self.draft.normalise_splits()
        if all(row.get("split") is None for row in self.draft.rows):
            self.draft.split_rule = "none: the clips stand in no split"
        settle_patients(self.draft, self.request)
        key_frames = list(_usable_key_frames(self.draft, clips))
        manifest = self.draft.to_manifest(self.dataset, recipe=recipe, key_frames=key_frames)
        self.draft.findings += find_notes(manifest)
        return RecipeOutcome(manifest, tuple(self.draft.findings), root=self.root.resolve())


def require_column(table: Table, spellings: Sequence[str]) -> str:
    """Return the column of a data set's own table that bears one of the names.

    Raises
    ------
    UnknownNameError
        There is none.
    """
    column = table.find_column(spellings)
    if column is None:
        raise UnknownNameError(
            f"{table.path} has no column {spellings[0]!r} (it has {', '.join(table.columns)}); "
            "is it the table of this data set?"
        )
    return column


def _usable_key_frames(draft: Draft, clips: Iterable[ReleaseClip]) -> Iterable[tuple[str, str, int]]:
    n_frames_of = {row["clip_id"]: row.get("n_frames") for row in draft.rows}
    outside = []
    for clip in clips:
        n_frames = n_frames_of.get(clip.clip_id)
        for role, frame in clip.key_frames:
            if n_frames is not None and frame >= int(n_frames):
                outside.append(f"{clip.clip_id} ({role} {frame} of {n_frames} frames)")
            else:
                yield clip.clip_id, role, frame
    draft.report("key-frame-outside", "key frames lie behind the end of their clip and were left out", outside)


def open_release(name: str, request: RecipeRequest, *, facts_file: Path) -> Release:
    """List the files of a data set and check that they look like it.

    Parameters
    ----------
    name : str
        Of the recipe.
    facts_file : Path
        Its `dataset.yaml`.

    Raises
    ------
    UnknownNameError
        No root is given, it is not there or of another data set, or an option that these recipes do not have.
    StorageError
        The root cannot be read.
    """
    if request.root is None:
        raise UnknownNameError(f"the data set recipe {name!r} needs --root DIR, the folder it was unpacked to")
    strange = sorted(set(request.columns) - {"patient_id"})
    if strange or request.label_columns:
        option = f"--column {strange[0]}" if strange else "--label-column"
        raise UnknownNameError(
            f"the data set recipe {name!r} knows its own columns: leave out {option} "
            "(--column patient_id=COLUMN is the only one it takes)"
        )
    dataset = read_dataset_facts(facts_file)
    if request.name is not None:
        dataset = dataset.model_copy(update={"name": request.name})
    listing = list_files(request.root)
    if listing.outside and not listing.paths:
        raise UnknownNameError(
            f"--root: {request.root} holds only links that lead elsewhere ({listing.outside[0]}), which are not "
            "followed; give the folder that holds the files"
        )
    require_layout(name, request.root, listing.paths)
    fields = [
        ManifestField(name=column, **described.model_dump())
        for column, described in dataset.fields.items()
        if column not in STANDARD
    ]
    own = {path.resolve() for path in (request.table, request.splits) if path is not None}
    real_root = request.root.resolve()
    paths = [path.as_posix() for path in listing.paths if real_root / path not in own]
    draft = Draft(fields=fields)
    draft.report("link-outside", "links lead outside the root, or nowhere, and were not followed", listing.outside)
    draft.report("folder-unreadable", "folders cannot be read and were left out", listing.unreadable)
    draft.report("name-encoding", "files have names that are no UTF-8 and were left out", listing.badly_named)
    return Release(root=request.root, dataset=dataset, request=request, draft=draft, paths=paths)
