"""`PaperTable`: the main metric of each encoder on each task and data set, a section a protocol.

The best of a column is set in bold only where its interval says so: where the paired interval of its difference from
every other encoder of the column, over the same patients, leaves out zero. Without the predictions of the clips
intervals of two encoders must not overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import ContentError, FormatError, UnknownNameError
from embedstore.files import read_file
from embedstore.identity import derive_seed
from evaltools.metrics import METRICS
from evaltools.paired import Pair, paired_difference
from evaltools.report.text import format_number
from evaltools.resample import Estimate, patient_codes

__all__ = ["Cell", "MixedResultsError", "PaperTable", "Section", "paper_table", "read_results"]

_MAX_BYTES = 1 << 30
_PAIRED_DRAWS = 2000
# What must be equal within one column of a section for its numbers to be compared.
_OF_COLUMN = ("annotations", "media", "task_digest", "protocol_digest", "n_scored", "where", "asked_of")
_OF_TABLE = ("versions", "bootstrap", "seed")


class MixedResultsError(ContentError):
    """Results of different labels, settings or versions would stand in one table."""

    kind = "mixed-results"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes
    ----------
    estimate : Estimate
    is_best : bool
        Whether its interval says that it is the best of the column.
    marks : tuple of str
        What flatters or limits it.
    """

    estimate: Estimate
    is_best: bool = False
    marks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Value and interval."""
        estimate = self.estimate
        if estimate.value is None:
            return "-"
        if estimate.ci_low is None or estimate.ci_high is None:
            return format_number(estimate.value)
        interval = f"{format_number(estimate.ci_low)}, {format_number(estimate.ci_high)}"
        return f"{format_number(estimate.value)} [{interval}]"


@dataclass(frozen=True)
class Column:
    """Task, data set and row; with the metric and how many were scored."""

    task: str
    dataset: str
    row: str
    metric: str
    unit: str | None
    n_scored: int
    n_patients: int

    @property
    def title(self) -> str:
        """Task and data set."""
        row = "" if self.row == "all" else f", {self.row}"
        return f"{self.task} {self.dataset}{row}"

    @property
    def metric_title(self) -> str:
        """Metric, its unit where it carries it, and which way is better."""
        metric = METRICS[self.metric]
        unit = f" ({self.unit})" if metric.in_target_unit and self.unit else ""
        return f"{metric.title}{unit} {'↑' if metric.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Section:
    """What one protocol gave.

    Attributes
    ----------
    protocol : str
    columns : tuple of Column
    rows : mapping of str to (Cell or None) by column
        By encoder.
    """

    protocol: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Cell | None, ...]]


@dataclass(frozen=True)
class PaperTable:
    """Sections and the sentences beneath them.

    Attributes
    ----------
    sections : tuple of Section
    notes : tuple of str
    documents : tuple of dict
        The results that the table is made of.
    """

    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    documents: tuple[Mapping[str, Any], ...] = field(repr=False)


def read_results(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read results: files of JSON, or folders with ``results.json`` or other such files.

    Returns
    -------
    list of dict
        With ``predictions_path`` where the predictions lie there.

    Raises
    ------
    UnknownNameError
        There is no such file, or a folder holds no results.
    FormatError
        A file holds no results.
    """
    documents: list[dict[str, Any]] = []
    for path in map(Path, paths):
        if path.is_dir():
            whole = path / "results.json"
            files = [whole] if whole.is_file() else sorted(path.glob("*.json"))
        else:
            files = [path]
        found = [file for file in files if file.is_file()]
        if not found:
            raise UnknownNameError(
                f"there are no results in {str(path)!r}; name the folder of a run, or a JSON file of it"
            )
        for file in found:
            documents += _read(file)
    return documents


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(read_file(file, max_bytes=_MAX_BYTES))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{file} is no JSON document of results") from error
    results = document.get("results") if isinstance(document, dict) else None
    needed = {"task", "dataset", "encoder", "variant", "protocol", "main_metric", "metrics"}
    if not isinstance(results, list) or not all(isinstance(one, dict) and needed <= set(one) for one in results):
        raise FormatError(f"{file} holds no results; evaltools run, probe, knn, zeroshot and heads write them")
    for one in results:
        if one["main_metric"] not in METRICS or one["main_metric"] not in one["metrics"]:
            raise FormatError(f"{file} has a result with the metric {one['main_metric']!r}, which is not known")
        for place in (file.parent, Path()):
            if one.get("predictions") and (place / one["predictions"]).is_file():
                one["predictions_path"] = place / one["predictions"]
                break
    return results


def paper_table(documents: Sequence[Mapping[str, Any]], *, allow_mixed: bool = False) -> PaperTable:
    """Arrange results as a paper would.

    Parameters
    ----------
    documents : sequence of dict
        From `read_results`, or `evaltools.result.Result.to_dict`.
    allow_mixed : bool
        Let results of different labels, settings, clips or versions stand in one table, and say so.

    Raises
    ------
    MixedResultsError
        They are mixed, and that was not allowed.
    UnknownNameError
        There is no result.
    """
    if not documents:
        raise UnknownNameError("there is no result to put into a table")
    mixed = [f"{name} differ" for name in _OF_TABLE if len({_plain(one.get(name)) for one in documents}) > 1]
    sections = []
    for protocol in dict.fromkeys(one["protocol"] for one in documents):
        of_protocol = [one for one in documents if one["protocol"] == protocol]
        columns: list[Column] = []
        cells: dict[str, list[Cell | None]] = {name: [] for name in _row_names(of_protocol)}
        keys = dict.fromkeys((one["task"], one["dataset"], one.get("row", "all")) for one in of_protocol)
        for task, dataset, row in keys:
            found = {
                _row_name(one, of_protocol): one
                for one in of_protocol
                if (one["task"], one["dataset"], one.get("row", "all")) == (task, dataset, row)
            }
            first = next(iter(found.values()))
            for name in _OF_COLUMN:
                if len({_plain(one.get(name)) for one in found.values()}) > 1:
                    mixed.append(f"{name} differ for {task} on {dataset} by {protocol}")
            columns.append(
                Column(
                    task,
                    dataset,
                    row,
                    first["main_metric"],
                    first.get("unit"),
                    first["n_scored"],
                    first["n_patients"],
                )
            )
            best = _best(found)
            for name, of_row in cells.items():
                one = found.get(name)
                of_row.append(None if one is None else Cell(_estimate(one), name == best, _marks(one)))
        sections.append(Section(protocol, tuple(columns), {name: tuple(row) for name, row in cells.items()}))
    if mixed and not allow_mixed:
        raise MixedResultsError(
            f"these results do not belong in one table: {'; '.join(mixed[:3])}; report them apart, or give "
            "--allow-mixed"
        )
    return PaperTable(tuple(sections), tuple(_notes(documents, mixed)), tuple(documents))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _row_name(one: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """Name a row: the encoder, with what tells it from others of the section."""
    title = one["encoder"] if one["variant"] == "published" else f"{one['encoder']}@{one['variant']}"
    same = [other for other in among if (other["encoder"], other["variant"]) == (one["encoder"], one["variant"])]
    parts = [title]
    if len({other.get("pool") for other in same}) > 1:
        parts.append(str(one.get("pool")))
    if len({other.get("fingerprint") for other in same}) > 1:
        parts.append(str(one.get("fingerprint"))[:8])
    trained = one.get("train_dataset")
    return " ".join([*parts, *([f"fitted on {trained}"] if trained else [])])


def _row_names(of_protocol: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({_row_name(one, of_protocol) for one in of_protocol})


def _estimate(one: Mapping[str, Any]) -> Estimate:
    found = one["metrics"][one["main_metric"]]
    return Estimate(found["value"], found["ci_low"], found["ci_high"], found.get("ci_reason"))


def _marks(one: Mapping[str, Any]) -> tuple[str, ...]:
    marks = []
    if one.get("stamp"):
        marks.append(str(one["stamp"]))
    if one.get("oracle_frames"):
        marks.append("frames picked by an expert")
    if one.get("pretraining"):
        marks.append(f"trained on {one['pretraining']}")
    if str(one.get("leakage", "")).startswith("allowed"):
        marks.append(f"leakage {one['leakage']}")
    if one.get("clips") == "own":
        marks.append("scored on its own clips: not comparable")
    return tuple(marks)


def _best(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the row that its interval shows to be better than every other, None where there is none."""
    known = {name: _estimate(one).value for name, one in found.items() if _estimate(one).value is not None}
    if len(known) < 2:
        return None
    metric = METRICS[next(iter(found.values()))["main_metric"]]
    sign = 1.0 if metric.higher_is_better else -1.0
    best = max(known, key=lambda name: (sign * (known[name] or 0.0), name))
    others = [name for name in known if name != best]
    return best if all(_is_better(found[best], found[name], sign) for name in others) else None


def _is_better(a: Mapping[str, Any], b: Mapping[str, Any], sign: float) -> bool:
    if a.get("predictions_path") and b.get("predictions_path"):
        pair = _pair(a, b)
        if pair is not None:
            metric = a["main_metric"]
            # An interval that was refused for either says nothing of their difference.
            refusal = _estimate(a).ci_reason or _estimate(b).ci_reason
            seed = derive_seed(a["dataset"], a["task"], "bootstrap", a["seed"])
            between = paired_difference(pair, metric=metric, draws=_PAIRED_DRAWS, seed=seed, refusal=refusal)
            bound = between.ci_low if sign > 0 else between.ci_high
            return bound is not None and sign * bound > 0
    one, other = _estimate(a), _estimate(b)
    if None in (one.ci_low, one.ci_high, other.ci_low, other.ci_high):
        return False
    low, high = (one.ci_low, other.ci_high) if sign > 0 else (other.ci_low, one.ci_high)
    return bool(low > high)  # type: ignore[operator]


def _pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pair | None:
    """Join the predictions of two results by id; None where the same was not scored."""
    import pyarrow.parquet as pq

    one, two = (pq.read_table(of["predictions_path"], use_threads=False) for of in (a, b))
    ids = [table.column(0).to_numpy(zero_copy_only=False).astype(str) for table in (one, two)]
    if "repeat" in one.schema.names or len(ids[0]) != len(ids[1]):
        return None
    both, at_a, at_b = np.intersect1d(*ids, return_indices=True)
    if len(both) != len(ids[0]) or one.schema.names != two.schema.names:
        return None
    patients = patient_codes(one.column("patient_id").to_numpy(zero_copy_only=False)[at_a])
    true = one.column("y_true").to_numpy(zero_copy_only=False)[at_a]
    shares = [name for name in one.schema.names if name.startswith("prob_")]
    if not shares:
        first, second = (table.column("y_pred").to_numpy() for table in (one, two))
        return Pair(y_true=true.astype(np.float64), a=first[at_a], b=second[at_b], patients=patients)
    position = {name.removeprefix("prob_"): code for code, name in enumerate(shares)}
    first, second = (np.column_stack([table.column(name).to_numpy() for name in shares]) for table in (one, two))
    codes = np.array([position[label] for label in true], dtype=np.intp)
    return Pair(y_true=codes, a=first[at_a], b=second[at_b], patients=patients)


def _notes(documents: Sequence[Mapping[str, Any]], mixed: Sequence[str]) -> list[str]:
    draws = sorted({one.get("bootstrap", 0) for one in documents})
    notes = [
        f"[ ]: 95 % interval over test patients, {', '.join(str(n) for n in draws)} bootstrap draws. It covers the "
        "sampling of test patients for the fitted probe, not training again.",
        "Bold: better than every other row of the column by the paired interval of the difference.",
    ]
    if any(one.get("synthetic") for one in documents):
        notes.append("Synthetic clips: no number here says anything of patients.")
    dropped = [one for one in documents if one.get("counts", {}).get("n_dropped")]
    if dropped:
        most = max(one["counts"]["n_dropped"] for one in dropped)
        notes.append(
            f"Up to {most} labelled clips of a row are left out because another encoder of its table lacks them."
        )
    secondary = sorted({one["protocol"] for one in documents if not one.get("primary")})
    if secondary:
        notes.append(f"Secondary protocols: {', '.join(secondary)}; each task fixed its primary one before looking.")
    for sentence in dict.fromkeys(
        note for one in documents for note in one.get("notes", ()) if "paper's number" in note
    ):
        notes.append(f"{sentence[0].upper()}{sentence[1:]}.")
    if mixed:
        notes.append(f"MIXED, not comparable: {'; '.join(mixed)}.")
    return notes
