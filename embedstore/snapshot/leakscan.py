"""`LeakScan`: search a finished snapshot for anything that must not leave: original ids, file names, paths, digests.

The export's own rules decide what is written; this looks at what was written, inside Parquet tables, arrays and text,
raw, in hexadecimal and in base64. It knows nothing of the rules, so that a mistake in them is found.

Words are searched for by their 4-byte pieces: every 4 bytes of a text, every aligned 4 bytes of an array, are looked
up in a table of all pieces of all words. Where one is found the words themselves are compared.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from embedstore.files import parse_json, storage_errors
from embedstore.layout import is_digest

__all__ = ["Leak", "LeakScan", "words_of_path"]

LEAST_IN_TEXT = 5  # shorter words stand by chance in any text; they are looked for as whole cells of id columns
LEAST_IN_ARRAY = 7  # below, four aligned bytes need not lie within the word
_LEAST_ENCODED = 6
_PIECE = 4
_TABLE_BITS = 22
_BLOCK_BYTES = 4 << 20
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


def _encoded(word: str) -> Iterator[str]:
    """Yield a word in hexadecimal, and what of its base64 does not depend on its neighbours, at each alignment."""
    raw = word.encode()
    yield raw.hex()
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + raw).decode().rstrip("=")
        start, stop = -(-8 * shift // 6), (8 * (shift + len(raw))) // 6
        yield text[start:stop]


class _Index:
    """The pieces of words, for searching bytes at every ``step``-th offset."""

    def __init__(self, words: Iterable[bytes], *, step: int) -> None:
        self._step = step
        self._words = frozenset(word for word in words if len(word) >= _PIECE + step - 1)
        self._lengths = sorted({len(word) for word in self._words})
        joined = {word[offset : offset + _PIECE] for word in self._words for offset in range(step)}
        self._pieces = np.unique(np.frombuffer(b"".join(joined), dtype="<u4"))
        self._table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        self._table[self._hashed(self._pieces)] = True
        self.longest = max(self._lengths, default=0)

    @staticmethod
    def _hashed(pieces: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        return (pieces * np.uint32(2_654_435_761)) >> np.uint32(32 - _TABLE_BITS)

    def search(self, payload: bytes | memoryview) -> set[bytes]:
        """Return the words that stand in ``payload``; the offsets searched begin at 0."""
        if not self._words or len(payload) < _PIECE:
            return set()
        found: set[bytes] = set()
        for shift in range(0, _PIECE, self._step):
            n_pieces = (len(payload) - shift) // _PIECE
            if n_pieces <= 0:
                continue
            pieces = np.frombuffer(payload, dtype="<u4", count=n_pieces, offset=shift)
            at = np.flatnonzero(self._table[self._hashed(pieces)])
            if not at.size:
                continue
            candidates = pieces[at]
            near = np.searchsorted(self._pieces, candidates).clip(max=len(self._pieces) - 1)
            for position in at[self._pieces[near] == candidates].tolist():
                for begin in range(shift + _PIECE * position, shift + _PIECE * position - self._step, -1):
                    for length in self._lengths if begin >= 0 else ():
                        word = bytes(payload[begin : begin + length])
                        if word in self._words:
                            found.add(word)
        return found


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
        self._of: dict[bytes, str] = {}
        for word in sorted(long):
            forms = {word, word.lower()}
            # A digest in hexadecimal is not encoded again by accident.
            if len(word) >= _LEAST_ENCODED and not is_digest(word):
                forms |= {form for form in _encoded(word) if len(form) >= LEAST_IN_TEXT}
            for form in forms:
                self._of.setdefault(form.encode(), word)
        self._text = _Index(self._of, step=1)
        self._raw = _Index((word.encode() for word in long if len(word.encode()) >= LEAST_IN_ARRAY), step=_PIECE)

    def scan(self, folder: Path) -> list[Leak]:
        """Search every file below a folder, names too.

        Returns
        -------
        list of Leak
            Sorted; empty where nothing was found.
        """
        with storage_errors(folder, "read"):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(self._scan_file, files))
        leaks = {
            Leak(path.relative_to(folder).as_posix(), word)
            for path, words in zip(files, found, strict=True)
            for word in words
        }
        names = "\n".join(path.relative_to(folder).as_posix() for path in files)
        leaks |= {Leak("the names of files", word) for word in self._in_text(names)}
        return sorted(leaks, key=lambda leak: (leak.file, leak.word))

    def _scan_file(self, path: Path) -> set[str]:
        if path.suffix == ".parquet":
            return self._in_table(path)
        if path.suffix == ".json":
            strings = _strings(parse_json(path.read_bytes(), source=str(path)))
            return self._in_text("\n".join(s for s in strings if not self._is_kept(s)))
        if path.suffix in (".md", ".txt"):
            words = path.read_text(encoding="utf-8").replace("`", " ").split()
            return self._in_text("\n".join(w for w in words if not self._is_kept(w) and not _NUMBER.fullmatch(w)))
        return self._in_bytes(path)

    def _is_kept(self, text: str) -> bool:
        return text in self._kept or (is_digest(text) and text not in self._words)

    def _in_text(self, text: str) -> set[str]:
        found = self._text.search(text.encode("utf-8", "surrogatepass"))
        found |= self._text.search(text.lower().encode("utf-8", "surrogatepass"))
        return {self._of[word] for word in found}

    def _in_bytes(self, path: Path) -> set[str]:
        found: set[bytes] = set()
        overlap = (self._raw.longest + _PIECE) // _PIECE * _PIECE
        with path.open("rb", buffering=0) as handle:
            held = b""
            while block := handle.read(_BLOCK_BYTES):
                payload = held + block
                found |= self._raw.search(payload)
                start = max(0, len(payload) - overlap)
                held = payload[start - start % _PIECE :]  # what is searched stays aligned to the file's beginning
        return {self._of[word] for word in found}

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
