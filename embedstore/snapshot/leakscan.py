"""`LeakScan`: search a finished snapshot for anything that must not leave: original ids, file names, paths, digests.

The export's own rules decide what is written; this looks at what was written, inside Parquet tables, arrays and text,
raw, in hexadecimal and in base64. It knows nothing of the rules, so that a mistake in them is found.

Text is searched at every offset; arrays by aligned pieces of four bytes, for the words as they are and in the same
encodings (see `embedstore.snapshot.word_index`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedstore.disk import storage_errors
from embedstore.json_files import parse_json
from embedstore.layout import is_digest
from embedstore.snapshot.word_index import Matrix, WordIndex, base64_inside, hexadecimal, in_matrices

__all__ = ["Leak", "LeakScan", "words_of_path"]

LEAST_IN_TEXT = 5  # shorter words stand by chance in any text; they are looked for as whole cells of id columns
LEAST_IN_ARRAY = 7  # below, four aligned bytes need not lie within the word
_LEAST_ENCODED = 6
_ALIGNED = 4
_READ = (".parquet", ".json", ".md", ".txt")  # the others are arrays
_BLOCK_BYTES = 4 << 20
# How often a byte of vectors is one certain digit: of float16 values drawn from normal distributions of standard
# deviation 0.3 to 10 it was found to be 1 in 86 to 1 in 310 (geometric mean of lower and upper bytes).
_CHANCE_OF_BYTE = 1 / 50
_ID_COLUMNS = ("clip_id", "patient_id", "study_id")
_NUMBER = re.compile(r"[0-9.,:]*")


@dataclass(frozen=True)
class Leak:
    """A word that was found, and the file in which it was."""

    file: str
    word: str


def words_of_path(path: str) -> set[str]:
    """Return what of a path would give it away: itself, its file name with and without suffixes, its folders.

    Examples
    --------
    >>> sorted(words_of_path("2019/DOE_JOHN/echo1.dcm"))
    ['2019', '2019/DOE_JOHN/echo1.dcm', 'DOE_JOHN', 'echo1', 'echo1.dcm']
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    stem = parts[-1] if parts else ""
    words = {path, *parts}
    while "." in stem.strip("."):
        stem = stem.rpartition(".")[0]
        words.add(stem)
    return {word for word in words if word not in ("/", ".", "..", "")}


def _spelled(words: Collection[str]) -> Iterator[tuple[list[str], Matrix]]:
    """Yield words as they are, without capitals, in hexadecimal of both cases and, at each alignment, in base64."""
    raw = [(word, word.encode()) for word in words]
    yield from in_matrices(raw)
    lower = [(word, word.lower().encode()) for word in words]
    yield from in_matrices(pair for pair, own in zip(lower, raw, strict=True) if pair != own)
    # A digest in hexadecimal is not encoded again by accident.
    for group, rows in in_matrices(pair for pair in raw if len(pair[1]) >= _LEAST_ENCODED and not is_digest(pair[0])):
        digits = hexadecimal(rows)
        yield group, digits
        yield group, np.where(digits >= ord("a"), digits - np.uint8(32), digits)
        for shift in range(3):
            yield group, base64_inside(rows, shift)


class _Indexes:
    """Words in all their spellings, for searching bytes at every ``step``-th offset."""

    def __init__(self, spelled: Collection[Matrix], *, least: int, step: int) -> None:
        plain: list[Matrix] = []
        beyond: list[Matrix] = []
        for rows in spelled:
            is_ascii = (rows < 0x80).all(axis=1)
            plain.append(rows if is_ascii.all() else rows[is_ascii])
            beyond.append(rows[~is_ascii])
        # Apart, since letters of ASCII have a bit in common and the others' bytes have none.
        self._parts = [WordIndex(matrices, least=least, step=step) for matrices in (plain, beyond)]
        counts = Counter[int]()
        for part in self._parts:
            counts.update(part.counts)
        self.counts: Mapping[int, int] = counts

    def search(self, payload: bytes | memoryview) -> set[bytes]:
        """Return the spellings that stand in ``payload``."""
        return set[bytes]().union(*(part.search(payload) for part in self._parts))


class LeakScan:
    """Looks for words in a snapshot's folder.

    Parameters
    ----------
    words : iterable of str
        What must not be found.
    kept : collection of str
        Cells that are sent on purpose: kept ids, pseudonyms. They are no leak, whatever stands in them.
    vocabulary : str
        The fixed text of every snapshot. A word in it is looked for as a whole cell of an id column only.
    """

    def __init__(self, words: Iterable[str], *, kept: Collection[str], vocabulary: str) -> None:
        self._kept = frozenset(kept)
        self._words = frozenset(word for word in words if word and word not in self._kept)
        fixed = vocabulary.lower()
        long = {word for word in self._words if len(word) >= LEAST_IN_TEXT}
        pieces = {n: {fixed[at : at + n] for at in range(len(fixed) - n + 1)} for n in {len(word) for word in long}}
        long = {word for word in long if word.lower() not in pieces[len(word)]}
        self._long = sorted(long)
        spelled = [rows for _, rows in _spelled(self._long)]
        self._text = _Indexes(spelled, least=LEAST_IN_TEXT, step=1)
        self._raw = _Indexes(spelled, least=LEAST_IN_ARRAY, step=4)

    @cached_property
    def _of(self) -> dict[bytes, str]:
        """The word of each spelling; needed only where something was found."""
        found: dict[bytes, str] = {}
        for words, rows in _spelled(self._long):
            for word, row in zip(words, rows, strict=True):
                found.setdefault(row.tobytes(), word)
        return found

    def scan(self, folder: Path) -> list[Leak]:
        """Search every file below a folder, names too.

        Returns
        -------
        list of Leak
            Sorted; empty where nothing was found.
        """
        with storage_errors(folder, "read"):
            names = {
                path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
            }
            arrays = [path for path in names if path.suffix not in _READ]
            n_bytes = sum(path.stat().st_size for path in arrays)
            with ThreadPoolExecutor(2) as pool:
                forms = dict(zip(arrays, pool.map(self._in_bytes, arrays), strict=True))
                read = [path for path in names if path.suffix in _READ]
                words = dict(zip(read, pool.map(self._in_file, read), strict=True))
        chance = self._by_chance(set[bytes]().union(*forms.values()), n_bytes)
        words |= {path: self._words_of(found - chance) for path, found in forms.items()}
        leaks = {Leak(names[path], word) for path, found in words.items() for word in found}
        leaks |= {Leak("the names of files", word) for word in self._in_text("\n".join(names.values()))}
        return sorted(leaks, key=lambda leak: (leak.file, leak.word))

    def _by_chance(self, found: Collection[bytes], n_bytes: int) -> set[bytes]:
        """Return what of the forms found in so many bytes of arrays may stand there by chance.

        Numbers spell words: of seven digits that were drawn, ten thousand patients have some in a gigabyte. A length
        of which so many forms were found as chance does not give once in 900 times is none of chance's: they lie 30
        standard deviations beyond what is expected (Chebyshev's inequality, for the variance of a Poisson count).
        """
        lengths = Counter(len(form) for form in found)
        chance = set()
        for length, count in lengths.items():
            expected = n_bytes * self._raw.counts[length] * _CHANCE_OF_BYTE**length
            if count <= expected + 30 * math.sqrt(expected):
                chance.add(length)
        return {form for form in found if len(form) in chance}

    def _in_file(self, path: Path) -> set[str]:
        if path.suffix == ".parquet":
            return self._in_table(path)
        if path.suffix == ".json":
            strings = _strings(parse_json(path.read_bytes(), source=str(path)))
            return self._in_text("\n".join(s for s in strings if not self._is_kept(s)))
        words = path.read_text(encoding="utf-8").replace("`", " ").split()
        return self._in_text("\n".join(w for w in words if not self._is_kept(w) and not _NUMBER.fullmatch(w)))

    def _is_kept(self, text: str) -> bool:
        return text in self._kept or (is_digest(text) and text not in self._words)

    def _words_of(self, forms: Collection[bytes]) -> set[str]:
        return {self._of[form] for form in forms}

    def _in_text(self, text: str) -> set[str]:
        found = self._text.search(text.encode("utf-8", "surrogatepass"))
        found |= self._text.search(text.lower().encode("utf-8", "surrogatepass"))
        return self._words_of(found)

    def _in_bytes(self, path: Path) -> set[bytes]:
        found: set[bytes] = set()
        # What is searched stays aligned to the file's beginning.
        overlap = -(-max(self._raw.counts, default=0) // _ALIGNED) * _ALIGNED
        buffer = memoryview(bytearray(overlap + _BLOCK_BYTES))
        held = 0
        with path.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer[held:]):
                filled = held + count
                found |= self._raw.search(buffer[:filled])
                start = max(0, filled - overlap) // _ALIGNED * _ALIGNED
                held = filled - start
                buffer[:held] = bytes(buffer[start:filled])
        return found

    def _in_table(self, path: Path) -> set[str]:
        found: set[str] = set()
        texts: list[str] = []
        with pq.ParquetFile(path) as parquet:
            for key, value in (parquet.metadata.metadata or {}).items():
                texts.append(key.decode("utf-8", "replace"))
                is_json = value.startswith(b"{")
                header = parse_json(value, source=str(path)) if is_json else value.decode("utf-8", "replace")
                texts += [text for text in _strings(header) if not self._is_kept(text)]
            texts += list(parquet.schema_arrow.names)
            table = parquet.read(use_threads=False)
        for name in table.column_names:
            column = table.column(name)
            kind = str(column.type)
            if kind == "string":
                cells = [cell for cell in column.unique().to_pylist() if cell is not None and not self._is_kept(cell)]
                texts += cells
                if name in _ID_COLUMNS:
                    found |= self._words & set(cells)
            elif kind == "int64":
                numbers = {str(cell) for cell in column.unique().to_pylist() if cell is not None}
                found |= {word for word in self._words & numbers if len(word) >= LEAST_IN_TEXT}
        return found | self._in_text("\n".join(texts))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in parsed JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)
