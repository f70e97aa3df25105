"""`folder`: any folder of clips, an optional table of ids, patients, splits and labels, or the table alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from embedstore.errors import EnvironmentFailure, UnknownNameError
from embedstore.manifest import RecipeOutcome, RecipeRequest, read_dataset_facts
from embedstore.manifest.cells import composed
from embedstore.media import stem_without_media_suffix
from embedstore.media.survey import FileFacts, FolderListing, list_files, survey_files
from manifests.draft import Draft
from manifests.folder.columns import TableColumns, choose_columns
from manifests.splits import read_splits
from manifests.tables import NameIndex, Table, match_names, name_clips, read_table

__all__ = ["RECIPE", "FolderRecipe"]

REVISION = 1
Progress = Callable[[int, int], None]

_NOT_IN_NAMES = re.compile(r"[^\w. +()-]+")


class FolderRecipe:
    """Any folder of clips and stills, with or without a table; or a table alone, for vectors that are ingested."""

    name = "folder"
    summary = "any folder of clips, with an optional CSV of ids, patients, splits and labels"

    def make(self, request: RecipeRequest, *, progress: Progress | None = None) -> RecipeOutcome:
        """Make the manifest.

        Parameters
        ----------
        request : RecipeRequest
            ``root``, ``table`` or both.
        progress : callable or None
            Told (files done, files in all).

        Raises
        ------
        UnknownNameError
            Neither a root nor a table is given, one of them is not there, or a column is unknown.
        EnvironmentFailure
            The folder or the table cannot be read, or holds no clip.
        ManifestError
            The table names a column twice, or the splits file puts an id in two splits.
        """
        if request.root is None and request.table is None:
            raise UnknownNameError("the data set recipe 'folder' needs --root DIR, --table FILE or both")
        name = _name_of(request)
        table = None if request.table is None else read_table(request.table)
        columns = None if table is None else choose_columns(table, request)
        splits = None if request.splits is None else read_splits(request.splits)
        if table is None and (request.columns or request.label_columns):
            raise UnknownNameError("--column and --label-column name columns of a table: give --table FILE too")

        draft = Draft()
        media: dict[str, FileFacts] = {}
        if request.root is not None:
            media = _survey(request, draft, progress)
        if table is None or columns is None:
            _add_files(draft, media, taken=set())
        else:
            draft.findings += columns.findings
            draft.fields += columns.fields
            _add_table_rows(draft, table, columns, media)
        draft.take_media_values(has_fps_column=columns is not None and "fps" in columns.column_of)
        draft.set_patients(has_column=columns is not None and "patient_id" in columns.column_of)
        if splits is not None:
            draft.take_splits(splits)
        elif columns is not None and "split" in columns.column_of:
            draft.normalise_splits()
        else:
            draft.draw_splits(request.seed)

        dataset = read_dataset_facts(Path(__file__).with_name("dataset.yaml"))
        manifest = draft.to_manifest(
            dataset.model_copy(update={"name": name, "title": name}), recipe=f"{self.name} {REVISION}"
        )
        root = None if request.root is None else request.root.resolve()
        return RecipeOutcome(manifest, tuple(draft.findings), root=root)


RECIPE = FolderRecipe()


def _name_of(request: RecipeRequest) -> str:
    if request.name is not None:
        if not request.name.strip() or _NOT_IN_NAMES.search(composed(request.name)):
            raise UnknownNameError(
                f"--name {request.name!r}: a data set's name has letters, digits, spaces and . _ - + ( ) only"
            )
        return composed(request.name.strip())
    source = request.root if request.root is not None else request.table
    assert source is not None
    return _NOT_IN_NAMES.sub("-", composed(source.resolve().stem)).strip(" -") or "folder"


# -- files --------------------------------------------------------------------------------------------------


def _survey(request: RecipeRequest, draft: Draft, progress: Progress | None) -> dict[str, FileFacts]:
    """Return the facts of every file that is media by content, or by its name, by path below the root."""
    root = request.root
    assert root is not None
    listing = list_files(root)
    tables = {path.resolve() for path in (request.table, request.splits) if path is not None}
    real_root = root.resolve()
    paths = [path for path in listing.paths if real_root / path not in tables and path.name != "DICOMDIR"]
    draft.report("link-outside", "links lead outside the root, or nowhere, and were not followed", listing.outside)
    draft.report("folder-unreadable", "folders cannot be read and were left out", listing.unreadable)
    draft.report("name-encoding", "files have names that are no UTF-8 and were left out", listing.badly_named)
    surveyed = survey_files([root / path for path in paths], n_workers=request.n_workers, progress=progress)
    media, foreign, unread = {}, [], []
    for path, facts in zip((path.as_posix() for path in paths), surveyed, strict=True):
        if (facts.probe and facts.probe.container) or stem_without_media_suffix(path) != path:
            media[path] = facts
        elif facts.probe is None:
            unread.append(f"{path} ({facts.problem})")
        else:
            foreign.append(path)
    if not media:
        raise EnvironmentFailure(_nothing_in(root, foreign, unread, listing))
    draft.report("not-media", "files are no clips and were left out", foreign)
    draft.report("unread", "files could not be looked at and were left out", unread)
    undecodable = [f"{path} ({facts.problem})" for path, facts in media.items() if facts.problem is not None]
    draft.report("undecodable", "files cannot be read as clips; a build will report them as failed", undecodable)
    return media


def _nothing_in(root: Path, foreign: Sequence[str], unread: Sequence[str], listing: FolderListing) -> str:
    if unread:
        return f"no clip in {root}: {len(unread)} files could not be looked at, the first is {unread[0]}"
    if foreign:
        return (
            f"no clip in {root}: none of its {len(foreign)} files is AVI, MP4, DICOM, NIfTI, PNG or JPEG "
            f"(the first is {foreign[0]})"
        )
    if listing.outside:
        return (
            f"no clip in {root}: its {len(listing.outside)} links lead outside the folder and are not followed; "
            "give the folder that holds the files"
        )
    return f"no clip in {root}: the folder is empty"


def _add_files(draft: Draft, media: Mapping[str, FileFacts], *, taken: set[str]) -> None:
    """Add a row for each file; an id that a table row has already gives way to the whole path."""
    paths = list(media)
    for path, clip_id in zip(paths, name_clips(paths), strict=True):
        draft.add_row({"clip_id": path if clip_id in taken else clip_id, "path": path}, media[path])


# -- the table ----------------------------------------------------------------------------------------------


def _add_table_rows(draft: Draft, table: Table, columns: TableColumns, media: Mapping[str, FileFacts]) -> None:
    rows = columns.cells(table)
    named = [name for name in ("path", "clip_id") if name in columns.column_of]
    if not named:
        raise UnknownNameError(
            f"{table.path} has no column clip_id, path or filename to tell its clips by; "
            "say which it is with --column clip_id=COLUMN"
        )
    if not rows and not media:
        raise EnvironmentFailure(f"no clip in {table.path}: the table has a heading and no row")
    paths = list(media)
    ids = name_clips(paths)
    matched, ambiguous = match_names(
        [next((row[name] for name in named if name in row), "") for row in rows],
        NameIndex([(path, clip_id) for path, clip_id in zip(paths, ids, strict=True)]),
    )
    for row, at in zip(rows, matched, strict=True):
        if "clip_id" not in columns.column_of:
            row["clip_id"] = ids[at] if at is not None else stem_without_media_suffix(row.get("path", ""))
        if at is None:
            draft.add_row({**row, "path": _relative(row.get("path"))}, None)
        else:
            draft.add_row({**row, "path": paths[at]}, media[paths[at]])
    if media:
        draft.report(
            "ambiguous", "names in the table could mean several files, or share one, and match none", ambiguous
        )
        draft.report(
            "row-without-file",
            "rows of the table have no file; a build will report them as missing",
            draft.ids_where(lambda _, file: file is None),
        )
        bare = {path: media[path] for path in paths if path not in {row["path"] for row in draft.rows}}
        draft.report("file-without-row", "files have no row in the table and were kept without labels", list(bare))
        _add_files(draft, bare, taken={str(row.get("clip_id")) for row in draft.rows})
    for declared in draft.fields:
        if declared.role == "label":
            empty = [str(row.get("clip_id")) for row in draft.rows if declared.name not in row]
            draft.report("unlabelled", f"of {len(draft.rows)} clips have no {declared.name}", empty)


def _relative(path: str | None) -> str | None:
    """Return a table's path where it can stand below a root; one from another machine says nothing here."""
    if path is None:
        return None
    posix = path.replace("\\", "/")
    is_foreign = posix.startswith(("/", "~")) or ":" in posix.split("/")[0] or ".." in posix.split("/")
    return None if is_foreign else posix
