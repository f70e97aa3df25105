"""EchoPrime's study level, from the folder ``model_data`` of its release: embedded candidates and their phenotypes.

A study's sections are weighted means of its clips' vectors, by the view of each clip; a section's vector is compared
with the candidates, and the phenotypes of the nearest are averaged (echonet/EchoPrime, ``predict_metrics``). Stored
are the candidates' vectors as published (the authors take dot products with them), their phenotypes, the weights of
15 sections by 11 views, and which phenotypes belong to which section, all in the published order. The reports of the
candidates, free text of patients, are not read.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError, FormatError, StorageError
from encoders.echoprime import VIEWS  # in the order of the columns of MIL_weights.csv
from encoders.limited_pickle import convert_labels, convert_sections

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "StudyCandidates", "read_folder"]

NAME = "published"
_EMBEDDINGS = ("candidate_embeddings_p1.pt", "candidate_embeddings_p2.pt")
_STUDIES, _LABELS = "candidate_studies.csv", "candidate_labels.pkl"
_WEIGHTS, _SECTIONS = "MIL_weights.csv", "section_to_phenotypes.pkl"
# The assets lie in the repository, beside model_data or in it.
_FOLDERS = ("", "candidates_data", "model_data/candidates_data", "assets", "../assets", "weights")
_MAX_CSV_BYTES = 1 << 28
_MAX_CELL = 1_000
_BLOCK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class StudyCandidates:
    """What the folder holds, with the attributes of `embedstore.build.candidates.CandidateSource`."""

    candidate_ids: Sequence[str]
    phenotypes: Mapping[str, npt.NDArray[np.float64]]
    section_weights: Mapping[str, Mapping[str, float]]
    section_phenotypes: Mapping[str, Sequence[str]]
    files: Mapping[str, str]
    parts: Sequence[torch.Tensor]
    name: str = NAME

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the vectors as published, in float32."""
        for part in self.parts:
            for start in range(0, len(part), _BLOCK_ROWS):
                yield np.asarray(part[start : start + _BLOCK_ROWS].float().numpy())


def read_folder(folder: Path, pickles: Mapping[str, str]) -> StudyCandidates:
    """Read the folder.

    Parameters
    ----------
    folder : Path
        ``model_data``, or the clone that it lies in; the assets may lie beside it.
    pickles : mapping of str to str
        SHA-256 of ``candidate_labels.pkl`` and ``section_to_phenotypes.pkl``.

    Raises
    ------
    StorageError
        A file is not there or cannot be read.
    FormatError, CorruptionError, HostileInputError
        A file is of another form, is damaged, or is not one that the user trusts.
    ContentError
        The files do not fit each other.
    """
    from encoders.checkpoint import open_tensor, sha256_of_file

    paths = {name: _find(folder, name) for name in (*_EMBEDDINGS, _STUDIES, _WEIGHTS, _LABELS, _SECTIONS)}
    ids = _read_studies(paths[_STUDIES])
    parts = [open_tensor(paths[name]) for name in _EMBEDDINGS]
    shapes = [tuple(part.shape) for part in parts]
    if any(len(shape) != 2 or shape[1] != shapes[0][-1] for shape in shapes):
        raise FormatError(f"the candidates of {folder} have the shapes {shapes}, not rows of one length")
    n_embedded = sum(len(part) for part in parts)
    if n_embedded != len(ids):
        raise ContentError(
            f"{folder} has {n_embedded} embedded candidates and {len(ids)} studies in {_STUDIES}; do they "
            "belong to one release?"
        )
    weights = _read_weights(paths[_WEIGHTS])
    sections = convert_sections(paths[_SECTIONS], sha256=pickles.get(_SECTIONS))
    phenotypes = convert_labels(paths[_LABELS], ids, sha256=pickles.get(_LABELS))
    unknown = sorted({name for names in sections.values() for name in names} - set(phenotypes))
    if unknown:
        raise ContentError(f"{paths[_SECTIONS]} names {unknown[0]!r}, of which {_LABELS} has no labels")
    if all(np.isnan(values).all() for values in phenotypes.values()):
        raise ContentError(f"no label of {paths[_LABELS]} is of a study in {_STUDIES}; do the files belong together?")
    return StudyCandidates(
        candidate_ids=ids,
        phenotypes=phenotypes,
        section_weights=weights,
        section_phenotypes=sections,
        files={name: sha256_of_file(path) for name, path in paths.items()},
        parts=parts,
    )


def _find(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise StorageError(f"{folder} is no folder; give the folder model_data of EchoPrime's release")
    for place in _FOLDERS:
        if (folder / place / name).is_file():
            return folder / place / name
    asset = name in (_WEIGHTS, _SECTIONS)
    source = "the folder assets of https://github.com/echonet/EchoPrime" if asset else "the release of EchoPrime"
    raise StorageError(f"{folder} has no {name}; take it from {source} and put it there")


def _read_csv(path: Path) -> list[list[str]]:
    try:
        if path.stat().st_size > _MAX_CSV_BYTES:
            raise FormatError(f"{path} is larger than the {_MAX_CSV_BYTES} bytes that such a table may have")
        text = path.read_bytes().decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} is no CSV file: {error}") from error
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise FormatError(f"{path} is no table: its rows have different lengths, or there are none")
    return rows


def _read_studies(path: Path) -> list[str]:
    heads, *rows = _read_csv(path)
    if "Study" not in heads:
        raise FormatError(f"{path} has no column Study, but {', '.join(heads[:8])}")
    column = heads.index("Study")
    ids = [row[column] for row in rows]
    if any(not 0 < len(study) <= _MAX_CELL for study in ids):
        raise FormatError(f"{path} has a study without an id")
    return ids


def _read_weights(path: Path) -> dict[str, dict[str, float]]:
    heads, *rows = _read_csv(path)
    if tuple(heads[1:]) != VIEWS:
        raise FormatError(f"{path} has the views {', '.join(heads[1:])}, not the classifier's {', '.join(VIEWS)}")
    weights: dict[str, dict[str, float]] = {}
    for section, *cells in rows:
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError as error:
            raise FormatError(f"{path} has a weight of {section!r} that is no number: {error}") from error
        if section in weights or not section or any(not math.isfinite(number) or number < 0 for number in numbers):
            raise FormatError(f"{path}: the section {section!r} stands twice, or a weight is below 0 or not finite")
        weights[section] = dict(zip(VIEWS, numbers, strict=True))
    return weights
