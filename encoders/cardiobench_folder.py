"""Reading the folder of ``.pt`` files and ``index.csv`` that CardioBench writes, for ``embedstore ingest``.

One file a video: ``embedding_per_frame`` (T, D) and ``embedding_pooled`` (D,), both float16, with ``frame_indices``.
Files are opened with ``weights_only=True``: none of their code runs.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from embedstore.errors import ContentError, FormatError, HostileInputError, MissingExtraError, StorageError

__all__ = ["FolderRows", "FolderSource", "open_folder"]

_INDEX = "index.csv"
_ID, _FILE, _ERROR = "video_id", "embedding_file", "ERROR"
_MAX_INDEX_BYTES = 1 << 30
_MAX_FILE_BYTES = 1 << 30
_MAX_PATH_CHARACTERS = 1_000
_NAMED = 10
# A file of torch.save is not compressed: what it holds is about as large as itself.
_SPARE_BYTES = 1 << 20

# CardioBench's own recipe: frames one by one in bfloat16, each L2-normalised; their mean is L2-normalised again.
_KNOWN = {
    "unit": "frame",
    "precision": "bf16",
    "pooling": "mean-l2-l2",
    "preprocessing": {"recipe": "cardiobench"},
}


@dataclass(frozen=True)
class _Video:
    """One file of the folder: its clip vector, and the numbers of its frames."""

    clip_id: str
    path: Path
    pooled: np.ndarray
    frames: tuple[int, ...]
    frame_dtype: np.dtype


@dataclass(frozen=True, kw_only=True)
class FolderRows:
    """Vectors of one kind in the order of the index."""

    videos: Sequence[_Video]
    dim: int
    with_frames: bool
    plain: None = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the vectors of every file: float16, as CardioBench writes them."""
        return np.result_type(*{v.frame_dtype if self.with_frames else v.pooled.dtype for v in self.videos})

    @property
    def n_rows(self) -> int:
        """Number of vectors."""
        return sum(len(video.frames) for video in self.videos) if self.with_frames else len(self.videos)

    def ids(self) -> Iterator[list[str]]:
        """Yield the clip id of each row."""
        for video in self.videos:
            yield [video.clip_id] * (len(video.frames) if self.with_frames else 1)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors of one file after another; only these are in memory."""
        for video in self.videos:
            yield _read_arrays(video.path)["frames"] if self.with_frames else video.pooled[np.newaxis]

    @property
    def frame_numbers(self) -> Any:
        """A callable that returns the number of each frame in its file; None for clip vectors."""
        if not self.with_frames:
            return None
        return lambda: np.array([frame for video in self.videos for frame in video.frames], dtype=np.int64)


@dataclass(kw_only=True)
class FolderSource:
    """An opened folder, with the attributes that `embedstore.ingest.IngestSource` has."""

    clips: FolderRows
    frames: FolderRows | None
    failed: Mapping[str, str]
    notes: Sequence[str]
    format: str = "cardiobench"
    column_names: Sequence[str] = ()
    known: Mapping[str, Any] = field(default_factory=lambda: dict(_KNOWN))

    def close(self) -> None:
        """Nothing stays open."""


def _read_index(path: Path) -> list[dict[str, str]]:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise FormatError(f"{path} is larger than the {_MAX_INDEX_BYTES} bytes that an index may have")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no CSV in UTF-8: byte {error.start} is not") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        lines = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    except csv.Error as error:
        raise FormatError(f"{path} is no readable CSV: {error}") from error
    if not lines or not {_ID, _FILE} <= set(lines[0]):
        found = ", ".join(lines[0]) if lines else "nothing"
        raise FormatError(f"{path} needs the columns {_ID} and {_FILE}, and has {found}")
    header = lines[0]
    if any(len(cells) != len(header) for cells in lines[1:]):
        raise FormatError(f"{path} has a row with another number of cells than its header")
    # A run that was cut off and begun anew may have written the header again.
    return [dict(zip(header, cells, strict=True)) for cells in lines[1:] if cells != header]


def _named_file(folder: Path, cell: str, clip_id: str) -> str | None:
    """Return the file that a row names, as a path below the folder; None where it names none.

    CardioBench writes the path as it was on the machine that ran it, so only what can lie in this folder counts.
    """
    if cell.strip().upper() in ("", "SKIP", _ERROR):
        cell = f"{clip_id}.pt"
    wanted, windows = PurePosixPath(cell), PureWindowsPath(cell)
    candidates = [windows.name]
    if not (wanted.is_absolute() or windows.drive or ".." in wanted.parts):
        candidates.insert(0, cell)
    for candidate in candidates:
        if candidate.isprintable() and len(candidate) <= _MAX_PATH_CHARACTERS and (folder / candidate).is_file():
            if not (folder / candidate).resolve().is_relative_to(folder.resolve()):
                raise HostileInputError(f"{folder / _INDEX} names {cell!r}, which lies outside of its folder")
            return candidate
    return None


def _resolve(folder: Path, rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], dict[str, str], int]:
    """Return (clip id to file, clip id to why there is none, rows that said nothing new)."""
    files: dict[str, str] = {}
    failed: dict[str, str] = {}
    n_repeated = 0
    for row in rows:
        clip_id = row[_ID]
        n_repeated += clip_id in files or clip_id in failed
        is_error = any(cell.strip().upper().startswith(_ERROR) for name, cell in row.items() if name != _ID)
        file = None if is_error else _named_file(folder, row[_FILE], clip_id)
        if file is None:
            reason = "index.csv records an error" if is_error else "index.csv names a file that is not there"
            failed.setdefault(clip_id, reason)
            continue
        if files.setdefault(clip_id, file) != file:
            raise ContentError(
                f"{folder / _INDEX} names two files for {clip_id}: {files[clip_id]} and {file}; keep one row"
            )
    # A later run may have mended what an earlier one failed at.
    return files, {clip_id: why for clip_id, why in failed.items() if clip_id not in files}, n_repeated


def _require_plain(path: Path) -> None:
    """Refuse a file that would unpack to far more than its size, before torch reads it."""
    size = path.stat().st_size
    if size > _MAX_FILE_BYTES:
        raise HostileInputError(
            f"{path} is larger than the {_MAX_FILE_BYTES} bytes that one video's vectors may have"
        )
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise StorageError(f"{path} is no readable torch file: it is cut off or damaged") from error
        if unpacked > size + _SPARE_BYTES:
            raise HostileInputError(f"{path} claims {unpacked} bytes packed into {size}; torch.save packs nothing")


def _as_array(value: Any, name: str, path: Path) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise FormatError(f"{path} holds no plain tensor {name!r}")
    # A view may repeat one stored value without end.
    if value.numel() * value.element_size() > path.stat().st_size:
        raise HostileInputError(f"{path} claims a tensor {name!r} of {tuple(value.shape)}, more than its size")
    if value.dtype == torch.bfloat16:
        value = value.to(torch.float32)
    return value.detach().resolve_conj().resolve_neg().numpy()


@contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let single numpy numbers and texts stand in the metadata, as rows of a table bring them; they run no code."""
    import torch

    scalar = np._core.multiarray.scalar
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLefdU"]
    # Files of numpy 1 name the same function by its older place.
    with torch.serialization.safe_globals([scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]):
        yield


def _read_arrays(path: Path) -> dict[str, Any]:
    """Read one file: ``frames`` (T, D), ``pooled`` (D,), ``numbers`` (T,), ``video_id``."""
    from encoders.checkpoint import open_checkpoint

    try:
        _require_plain(path)
        with _numpy_scalars():
            opened = open_checkpoint(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except HostileInputError as error:
        if error.__cause__ is None:
            raise
        raise HostileInputError(
            f"{path} wants to run code on opening, which is refused: vectors need none; save it again with tensors, "
            "text and numbers only"
        ) from error
    arrays = {
        name: _as_array(opened.get(key), key, path)
        for name, key in (("frames", "embedding_per_frame"), ("pooled", "embedding_pooled"))
    }
    numbers = opened.get("frame_indices")
    numbers = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    whole = (int, np.integer)
    if not isinstance(numbers, list | tuple) or not all(isinstance(number, whole) for number in numbers):
        raise FormatError(f"{path} holds no whole numbers 'frame_indices'")
    frames, pooled = arrays["frames"], arrays["pooled"]
    is_float = frames.dtype.kind == "f" and pooled.dtype.kind == "f"
    shapes = (frames.shape, pooled.shape, (len(numbers),))
    if not is_float or frames.ndim != 2 or shapes != ((len(numbers), frames.shape[-1]), frames.shape[-1:], shapes[2]):
        raise FormatError(
            f"{path} holds frames {frames.shape} {frames.dtype}, a pooled vector {pooled.shape} {pooled.dtype} and "
            f"{len(numbers)} frame indices, which do not fit together"
        )
    return {"frames": frames, "pooled": pooled, "numbers": tuple(map(int, numbers)), "video_id": opened.get(_ID)}


def _read_videos(folder: Path, files: Mapping[str, str], failed: dict[str, str]) -> list[_Video]:
    videos = []
    for clip_id, file in files.items():
        path = folder / file
        try:
            arrays = _read_arrays(path)
        except (StorageError, FormatError) as error:
            # The detail stands in the set: it says why, without the path.
            failed[clip_id] = "its .pt file " + (
                "cannot be read" if isinstance(error, StorageError) else "lacks parts"
            )
            continue
        if str(arrays["video_id"]) != clip_id:
            raise ContentError(f"{path} says that it is {arrays['video_id']!r}, and {_INDEX} that it is {clip_id!r}")
        videos.append(_Video(clip_id, path, np.array(arrays["pooled"]), arrays["numbers"], arrays["frames"].dtype))
    return videos


def open_folder(path: Path) -> FolderSource:
    """Open a folder that CardioBench wrote.

    Rows that a re-run added for videos it skipped count once; a video whose rows are all errors, or whose file is
    missing or unreadable, is reported as failed.

    Parameters
    ----------
    path : Path
        The folder with ``index.csv``.

    Returns
    -------
    FolderSource

    Raises
    ------
    MissingExtraError
        torch is not installed.
    FormatError
        There is no index, or no file can be read.
    ContentError
        A video has two files, or a file says that it is another video's.
    HostileInputError
        A file would run code, exhaust the machine, or lies outside of the folder.
    """
    if not (path / _INDEX).is_file():
        raise FormatError(f"the folder {path} has no {_INDEX}; give the folder that CardioBench wrote")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "reading .pt files needs the package torch, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    files, failed, n_repeated = _resolve(path, _read_index(path / _INDEX))
    videos = _read_videos(path, files, failed)
    if not videos:
        why = "; ".join(f"{clip_id}: {reason}" for clip_id, reason in list(failed.items())[:_NAMED])
        raise FormatError(f"{path / _INDEX} leads to no file with vectors" + (f" ({why})" if why else ""))
    dims = {video.pooled.shape[0] for video in videos}
    if len(dims) > 1:
        raise ContentError(f"the files of {path} hold vectors of {' and '.join(map(str, sorted(dims)))} dimensions")
    notes = [f"rows of {_INDEX} that repeat a video and were resolved: {n_repeated}"] if n_repeated else []
    unlisted = {file.name for file in path.glob("*.pt")} - {Path(name).name for name in files.values()}
    if unlisted:
        notes.append(f".pt files that stand in no usable row of {_INDEX} and were left out: {len(unlisted)}")
    (dim,) = dims
    return FolderSource(
        clips=FolderRows(videos=videos, dim=dim, with_frames=False),
        frames=FolderRows(videos=videos, dim=dim, with_frames=True) if any(v.frames for v in videos) else None,
        failed=failed,
        notes=notes,
    )
