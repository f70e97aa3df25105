"""A suite over a real store: kept, resumed, equal on one and two processes; and its tables."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore import Manifest, Store
from embedstore.bank import BankHeader, write_bank
from embedstore.errors import FormatError, UnknownNameError
from evaltools.report.paper_table import MixedResultsError, paper_table, read_results
from evaltools.report.table_formats import FORMATS, to_csv, to_markdown, to_tex
from evaltools.run import run
from evaltools.suite import RunOptions, get_suite, plan_jobs, shipped_suites

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
QUICK = RunOptions(draws=200, n_shuffles=5)


def _add_bank(store: Store, encoder: str, dim: int) -> None:
    rng = np.random.default_rng(4)
    rows = [("view", view, None) for view in ("A4C", "A2C", "PLAX") for _ in range(2)]
    rows += [("lvef", None, float(value)) for value in range(0, 101, 5)]
    table = pa.table({
        "task": pa.array([task for task, _, _ in rows], pa.string()),
        "prompt": pa.array([f"{task} {label} {value}" for task, label, value in rows], pa.string()),
        "label": pa.array([label for _, label, _ in rows], pa.string()),
        "value": pa.array([value for _, _, value in rows], pa.float64()),
        "template": pa.array([None if value is None else 0 for _, _, value in rows], pa.int64()),
    })  # fmt: skip
    vectors = rng.normal(size=(len(rows), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spec = {"bank_digest": "d" * 64, "weights_sha256": None, "dim": dim, "tokenizer": None, "logit_scale": 10.0}
    header = BankHeader(kind="prompts", name="words", encoder=encoder, spec=spec)
    with store.publishing():
        bank = write_bank(store.layout.prompts, header, vectors, tables={"rows.parquet": table}, provenance={})
        store.add_bank(bank, reason="test")


@pytest.fixture
def store(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> Store:
    manifest = make_manifest()
    made = make_store([manifest], [make_source(manifest), make_source(manifest, name="other", dim=8, seed=2)])
    _add_bank(made, "toy-encoder", 12)
    return made


def _small_suite(tmp_path: Path) -> Any:
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\ntasks: [lvef, view]\nentries:\n  - {command: probe}\n  - {command: knn}\n"
        "  - {command: zeroshot, protocols: [cardiobench, softmax]}\n  - {command: heads}\n"
    )
    return get_suite(path)


def test_a_run_is_kept_and_goes_on_where_it_stopped(store: Store, tmp_path: Path) -> None:
    suite, out = _small_suite(tmp_path), tmp_path / "out"
    jobs = plan_jobs(store, suite, options=QUICK)
    assert [job.protocol for job in jobs] == [
        "ridge",
        "logreg",
        "knn",
        "knn",
        "cardiobench",
        "cardiobench",
        "softmax",
    ]  # no encoder has a published head; softmax is for classes
    first = run(store, suite, out=out, jobs=jobs[:3], workers=1)
    assert (first.n_computed, first.n_reused) == (3, 0)
    told: list[bool] = []
    whole = run(store, suite, out=out, jobs=jobs, workers=1, on_done=lambda job, reused: told.append(reused))
    assert (whole.n_computed, whole.n_reused) == (4, 3) and told == [True] * 3 + [False] * 4
    again = run(store, suite, out=out, jobs=jobs, workers=1)
    assert (again.n_computed, again.n_reused) == (0, 7)
    assert again.results == whole.results and again.results[: len(first.results)] == first.results
    assert any("other has no text vectors" in one["reason"] for one in whole.skipped)
    for document in whole.results:
        assert (out / document["predictions"]).is_file() and document["suite"] == "small"
    # Another seed, or a part of the encoders, is another digest; a missing file is computed again.
    assert not {job.digest for job in jobs} & {
        job.digest for job in plan_jobs(store, suite, options=replace(QUICK, seed=1))
    }
    (out / whole.results[0]["predictions"]).unlink()
    assert run(store, suite, out=out, jobs=jobs, workers=1).n_computed == 1


def test_only_a_bank_that_a_job_reads_is_in_its_digest(store: Store, tmp_path: Path) -> None:
    suite = _small_suite(tmp_path)

    def digests() -> dict[str, str]:
        return {job.title: job.digest for job in plan_jobs(store, suite, options=QUICK)}

    before = digests()
    _add_bank(store, "third", 12)  # of an encoder that no job asks
    assert digests() == before
    _add_bank(store, "other", 8)
    changed = {title for title, digest in digests().items() if digest != before[title]}
    assert changed == {title for title in before if title.startswith("zeroshot")} != set()


def test_two_processes_give_what_one_gives(store: Store, tmp_path: Path) -> None:
    suite = _small_suite(tmp_path)
    jobs = [job for job in plan_jobs(store, suite, options=QUICK) if job.command in ("knn", "zeroshot")][:3]
    one = run(store, suite, out=tmp_path / "one", jobs=jobs, workers=1)
    two = run(store, suite, out=tmp_path / "two", jobs=jobs, workers=2)
    assert one.results == two.results


def test_the_tidy_table_has_a_row_a_value(store: Store, tmp_path: Path) -> None:
    suite, out = _small_suite(tmp_path), tmp_path / "out"
    jobs = plan_jobs(store, suite, tasks=["lvef"], options=QUICK)
    done = run(store, suite, out=out, jobs=jobs[:1], workers=1)
    table = pq.read_table(out / "results.parquet").to_pylist()
    document = json.loads((out / "results.json").read_text())
    assert document["results"] == json.loads(json.dumps(done.results))
    mae = [row for row in table if row["encoder"] == "other" and row["metric"] == "mae"]
    assert [(row["of"], row["name"]) for row in mae if row["of"] != "group"] == [
        ("encoder", ""), ("control", "mean"), ("control", "shuffled"), ("control", "random"), ("control", "metadata"),
    ]  # fmt: skip
    found = next(one for one in done.results if one["encoder"] == "other")
    assert mae[0]["value"] == found["metrics"]["mae"]["value"] and mae[0]["set"] == found["set"]
    assert mae[0]["annotations"] and mae[0]["task_digest"] and mae[0]["protocol_digest"] and mae[0]["versions"]


def test_a_suite_names_what_it_cannot_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown suite 'cardiobensh'; did you mean 'cardiobench'"):
        get_suite("cardiobensh")
    with pytest.raises(UnknownNameError, match="no vectors of 'toy-encodr'"):
        plan_jobs(store, get_suite("all"), encoders=["toy-encodr"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\nentries: [{command: guess}]\n")
    with pytest.raises(FormatError, match=r"entries\.0\.command"):
        get_suite(bad)
    for suite in shipped_suites().values():
        assert plan_jobs(store, suite, options=QUICK)


def test_the_cardiobench_suite_takes_its_variant_or_stamps(
    make_manifest: MakeManifest, make_source: Make, make_store: Make, tmp_path: Path
) -> None:
    manifest = make_manifest()
    plain, own = make_source(manifest), make_source(manifest)
    own.spec = replace(own.spec, variant="cardiobench")
    store = make_store([manifest], [plain, own, make_source(manifest, name="other")])
    suite = get_suite("cardiobench")
    jobs = [job for job in plan_jobs(store, suite, tasks=["lvef"], options=QUICK) if job.protocol == "ridge"]
    assert jobs[0].encoders == ("other", "toy-encoder@cardiobench") and jobs[0].statistics == "cardiobench"
    done = run(store, suite, out=tmp_path / "out", jobs=jobs, workers=1)
    stamps = {(one["encoder"], one["stamp"]) for one in done.results}
    assert stamps == {("toy-encoder", None), ("other", "not the frames of @cardiobench: published")}
    assert "not the frames of @cardiobench" in to_markdown(paper_table(done.results))


# -- tables -------------------------------------------------------------------------------------------------------


def _document(encoder: str, value: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    estimate = {"value": value, "ci_low": low, "ci_high": high}
    return {
        "task": "lvef", "dataset": "toy", "encoder": encoder, "variant": "published", "protocol": "ridge",
        "main_metric": "mae", "metrics": {"mae": estimate}, "controls": {"mean": {"mae": {"value": 9.0}}},
        "n_scored": 40, "n_patients": 20, "annotations": "a", "media": "m", "task_digest": "t", "unit": "%",
        "versions": {"numpy": "2"}, "bootstrap": 100, "seed": 0, "pool": "clip", "fingerprint": encoder, "row": "all",
        "protocol_digest": "p",
        "primary": True, "notes": [], **more,
    }  # fmt: skip


def test_bold_only_where_the_interval_says_so() -> None:
    near = [_document("a", 4.0, 3.5, 4.6), _document("b", 4.5, 4.1, 5.0)]
    assert not any(cell.is_best for row in paper_table(near).sections[0].rows.values() for cell in row)
    far = [_document("a", 4.0, 3.5, 4.6), _document("b", 6.0, 5.5, 6.5)]
    rows = paper_table(far).sections[0].rows
    assert rows["a"][0].is_best and not rows["b"][0].is_best
    assert "\\textbf{4.00 [3.50, 4.60]}" in to_tex(paper_table(far)) and "**4.00" in to_markdown(paper_table(far))
    refused = [_document("a", 4.0, None, None), _document("b", 6.0, 5.5, 6.5)]
    assert not paper_table(refused).sections[0].rows["a"][0].is_best
    assert not paper_table(far[:1]).sections[0].rows["a"][0].is_best  # the best of one is no best


def test_the_paired_interval_tells_more_than_two_apart(store: Store, tmp_path: Path) -> None:
    """From the predictions of a run: the same answer as comparing the results."""
    suite = _small_suite(tmp_path)
    jobs = plan_jobs(store, suite, tasks=["view"], options=QUICK)[:1]
    run(store, suite, out=tmp_path / "out", jobs=jobs, workers=1)
    documents = read_results([tmp_path / "out"])
    assert all(one["predictions_path"].is_file() for one in documents)
    for one in documents:  # intervals of their own that say nothing
        one["metrics"][one["main_metric"]] |= {"ci_low": 0.0, "ci_high": 1.0}
    for one in documents[:1]:  # predictions of the first made always right
        table = pq.read_table(one["predictions_path"])
        shares = {name: np.array(table["y_true"].to_pylist()) == name.removeprefix("prob_")
                  for name in table.schema.names if name.startswith("prob_")}  # fmt: skip
        for name, values in shares.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values.astype(float)))
        pq.write_table(table, one["predictions_path"])
        one["metrics"][one["main_metric"]]["value"] = 1.0
    other = documents[1]["metrics"][documents[1]["main_metric"]]
    rows = paper_table(documents).sections[0].rows
    assert rows[documents[0]["encoder"]][0].is_best == (other["value"] < 1.0)


@pytest.mark.parametrize(
    "change", [{"annotations": "b"}, {"versions": {"numpy": "1"}}, {"protocol_digest": "q"}, {"n_scored": 39}]
)
def test_mixed_results_are_refused(change: dict[str, Any]) -> None:
    mixed = [_document("a", 4.0, 3.5, 4.6), _document("b", 6.0, 5.5, 6.5, **change)]
    with pytest.raises(MixedResultsError, match=f"{next(iter(change))} differ.*--allow-mixed"):
        paper_table(mixed)
    assert any(note.startswith("MIXED") for note in paper_table(mixed, allow_mixed=True).notes)


def test_hostile_names_stay_text() -> None:
    bad = '</td></script><img src=x onerror=alert(1)>"><svg onload=alert(1)>'
    table = paper_table([
        _document("a", 4.0, 3.5, 4.6, dataset=bad, notes=[bad], leakage=bad),
        _document("=HYPERLINK(1)", 4.5, 3.5, 4.6, dataset=bad),
    ])  # fmt: skip
    page = FORMATS["html"](table)
    assert "<img" not in page and "onload=alert(1)>" not in page.replace("onload=alert(1)&gt;", "")
    assert page.count("<svg ") == 1  # the one plot of ours
    assert "default-src 'none'" in page.replace("&#x27;", "'") and "http" not in re.sub(r"http-equiv", "", page)
    assert "<script" not in page
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert lines[0]["encoder"] == "'=HYPERLINK(1)" and lines[0]["value"] == "4.5"
    assert "\\&" in to_tex(paper_table([_document("a&b_c", 4.0, None, None)])) and "a&b" not in to_tex(
        paper_table([_document("a&b_c", 4.0, None, None)])
    )


def test_files_that_hold_no_results(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there are no results in"):
        read_results([tmp_path])
    for text in ("[1]", "{", '{"results": [{"task": 1}]}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(FormatError):
            read_results([tmp_path / "x.json"])
    with pytest.raises(UnknownNameError, match="no result to put"):
        paper_table([])
