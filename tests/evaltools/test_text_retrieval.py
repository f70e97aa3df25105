from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_bank import ArrayBank
from scipy.stats import pearsonr, spearmanr

from embedstore import Manifest
from embedstore.errors import ContentError, MissingVectorsError, UnknownNameError, VectorError
from evaltools.align import AlignOptions
from evaltools.cohort import NotRunnableError
from evaltools.report.retrieval_files import write_retrievals
from evaltools.report.tables import format_alignments, format_retrievals
from evaltools.resample import patient_draws
from evaltools.retrieval import Relevance
from evaltools.retrieve import RetrieveOptions, retrieve
from evaltools.task import get_task
from evaltools.text_alignment import align_text, align_text_manifest
from evaltools.text_retrieval import TextScorer, retrieve_by_text

LVEF, VIEW = get_task("lvef"), get_task("view")
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def bank_of(vectors: np.ndarray, labels: list[str | None], values: list[float | None]) -> ArrayBank:
    tasks = ["lvef" if label is None else "view" for label in labels]
    return ArrayBank(vectors, pa.table({
        "task": tasks,
        "prompt": [f"{label or value}" for label, value in zip(labels, values, strict=True)],
        "label": pa.array(labels, pa.string()),
        "value": pa.array(values, pa.float64()),
        "template": pa.array([None] * len(tasks), pa.int64()),
    }))  # fmt: skip


def knowing_bank(source: Any, manifest: Manifest) -> ArrayBank:
    """Prompts that point where the clips of a view, and of an LVEF, lie."""
    at = {clip: row for row, clip in enumerate(source.index.column("clip_id").to_pylist())}
    rows = [at[clip] for clip in manifest.clip_ids]
    views, X = np.array(manifest.column("view")), source.clips[rows]
    names = ["A4C", "A2C", "PLAX"]
    axis = np.arange(source.clips.shape[1]) == 0
    values = np.arange(20.0, 80.0, 5.0)
    numbers = np.outer((values - 50) / 10, axis) + np.roll(axis, 1)
    vectors = np.concatenate([[X[views == name].mean(axis=0) for name in names], numbers])
    return bank_of(vectors, [*names, *[None] * len(values)], [None] * 3 + list(values))


@pytest.mark.parametrize("within", [None, 8.0])
def test_weighted_scores_are_those_of_clips_written_out_as_often(within: float | None) -> None:
    rng = np.random.default_rng(0)
    n, m, ks = 40, 6, (1, 3, 10)
    patients = np.sort(rng.integers(0, 12, n))
    patients[:12] = np.arange(12)
    labels = rng.uniform(30, 70, n) if within else rng.choice(["a", "b", "c", "rare"], n, p=[0.4, 0.3, 0.26, 0.04])
    asked = rng.uniform(30, 70, m) if within else np.array(["a", "b", "c", "rare", "a", "nowhere"])
    order = np.argsort(rng.random((m, n)), axis=1)
    relevance = Relevance(within)
    scorer = TextScorer(relevance.gains(asked, labels), order, patients, ks=ks)
    counts = np.concatenate([np.ones((1, 12)), next(patient_draws(12, draws=30, seed=1))])
    found = scorer(counts)
    for draw, count in enumerate(counts):
        often = count[patients].astype(int)
        plain = [np.repeat(row, often[row]) for row in order]
        held = np.repeat(np.arange(n), often)
        place = {clip: np.flatnonzero(held == clip).tolist() for clip in range(n)}
        expanded = np.stack(
            [[place[clip][at] for clip in dict.fromkeys(row) for at in range(often[clip])] for row in plain]
        )
        wanted = relevance.score(asked, labels[held], expanded, np.ones((m, len(held)), np.bool_), ks=ks)
        for name, values in wanted.items():
            assert scorer.of_prompts(count)[name] == pytest.approx(values, nan_ok=True), name
            assert found[name][draw] == pytest.approx(np.nanmean(values)), name


def test_prompts_that_know_the_views_find_them(make_manifest: MakeManifest, make_source: Make, tmp_path: Any) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    bank = knowing_bank(source, manifest)
    options = RetrieveOptions(level="text", ks=(1, 5), draws=200)
    (result,) = retrieve_by_text([(source, bank)], manifest, task=VIEW, options=options)
    assert result.protocol == "text-to-clip" and result.n_expected == result.n_scored == 3
    assert result.n_gallery == 72 and result.n_patients == 24 and result.main_metric == "map"
    assert result.metrics["recall@1"].value == 1.0 and result.metrics["map"].ci_low > 0.8
    assert result.controls["random"]["map"].value < 0.5 and result.controls["shuffled"]["map"].ci_high < 0.5
    assert result.controls["metadata"]["map"].ci_reason == "facts of the recording cannot be compared with words"
    document = result.to_dict()
    assert (document["bank"], document["bank_digest"]) == ("words", "b" * 64)
    text = format_retrievals([result])
    assert "3 of 3 prompts as queries, among 72 test clips of 24 patients; 0 with nothing to find" in text
    assert "interval over the patients found among, 200 draws" in text and "bank words (bbbbbbbbbbbb)" in text
    (written,) = write_retrievals([result], tmp_path)
    assert pq.read_table(written["predictions"]).column("prompt").to_pylist() == ["A4C", "A2C", "PLAX"]
    (again,) = retrieve_by_text([(source, bank)], manifest, task=VIEW, options=options)
    assert again.metrics == result.metrics


def test_numbers_are_found_by_closeness(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    bank = knowing_bank(source, manifest)
    options = RetrieveOptions(level="text", ks=(5,), draws=100)
    (blind,) = retrieve_by_text([(source, bank)], manifest, task=LVEF, options=options)
    assert blind.n_expected == 12 and blind.n_scored + blind.n_without_relevant == 12
    assert blind.metrics["map"].ci_low < blind.controls["shuffled"]["map"].ci_high
    lvef = dict(zip(manifest.clip_ids, manifest.column("lvef_pct"), strict=True))
    values = np.array([lvef[clip] for clip in source.index.column("clip_id").to_pylist()])
    source.clips = np.outer((values - 50) / 10, np.arange(12) == 0) + (np.arange(12) == 1)
    (seeing,) = retrieve_by_text([(source, bank)], manifest, task=LVEF, options=options)
    assert seeing.metrics["map"].ci_low > 0.9 > blind.metrics["map"].value
    assert str(seeing.relevance) == "gain 1 at the same value, falling to 0 at 5 % away"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"index": "ivf"}, UnknownNameError, "leave --index out"),
        ({"ks": (73,)}, NotRunnableError, "k is 73, and only 72 test clips can be found"),
        ({"pools": ("meanstd",)}, VectorError, "have 24 dimensions, and those of the bank 'words' 12"),
        ({"where": "view == A4C"}, NotRunnableError, "has the same label for every test clip"),
        ({"where": "split == train"}, NotRunnableError, "no labelled clip in the split 'test'"),
        ({"pools": ("mode",)}, UnknownNameError, "unknown pooling 'mode'"),
    ],
)
def test_what_cannot_be_asked_is_said(
    options: Any, error: type[Exception], says: str, make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    with pytest.raises(error, match=says):
        retrieve_by_text(
            [(source, knowing_bank(source, manifest))], manifest, task=VIEW, options=RetrieveOptions(**options)
        )


def test_a_bank_that_speaks_of_other_things_is_refused(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(20)
    source = make_source(manifest)
    bank = bank_of(np.eye(12)[:2], ["left", "right"], [None, None])
    with pytest.raises(ContentError, match="speaks of the classes left, right, and the labels are"):
        retrieve_by_text([(source, bank)], manifest, task=VIEW, options=RetrieveOptions())
    with pytest.raises(MissingVectorsError, match="has no prompts with numbers for the task 'lvef'"):
        align_text_manifest([(source, bank)], manifest, task=LVEF, options=AlignOptions())


def test_an_encoder_without_text_is_reported(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest = make_manifest(20)
    store = make_store([manifest], [make_source(manifest)])
    lacks = "toy-encoder has no text vectors in the store and cannot be asked in words"
    with pytest.raises(MissingVectorsError, match=lacks):
        retrieve(store, tasks=[VIEW], options=RetrieveOptions(level="text"))
    with pytest.raises(MissingVectorsError, match=lacks):
        align_text(store, task=LVEF)
    with pytest.raises(UnknownNameError, match="--bank names prompts"):
        retrieve(store, tasks=[VIEW], options=RetrieveOptions(bank="words"))


def test_the_text_axis_is_held_against_the_truth(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(60)
    source = make_source(manifest)
    lvef = dict(zip(manifest.clip_ids, manifest.column("lvef_pct"), strict=True))
    split = dict(zip(manifest.clip_ids, manifest.column("split"), strict=True))
    clips = source.index.column("clip_id").to_pylist()
    rng = np.random.default_rng(4)
    values = np.repeat([lvef[clip] for clip in clips], 4)
    source.frames = (
        np.outer((values - 50) / 10, np.arange(12) == 0)
        + 3 * (np.arange(12) == 1)
        + rng.normal(0, 0.4, (len(values), 12))
    ).astype(np.float32)
    found = align_text_manifest(
        [(source, knowing_bank(source, manifest))], manifest, task=LVEF, options=AlignOptions(draws=300)
    )
    assert [one.metric for one in found] == ["pearson", "spearman", "r2"]
    assert {(one.a, one.b, one.method) for one in found} == {("toy-encoder", "lvef", "text-axis")}
    # One clip after the other: the prompts lie in one plane, whose first component comes another way.
    places, truth = [], []
    for row, clip in enumerate(clips):
        if split[clip] == "test":
            units = [frame / np.linalg.norm(frame) for frame in source.frames[4 * row : 4 * row + 4].astype(float)]
            mean = np.mean(units, axis=0)
            places.append(mean / np.linalg.norm(mean))
            truth.append(lvef[clip])
    numbers = knowing_bank(source, manifest).vectors[3:]
    numbers = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    spread = np.cov(numbers.T)
    axis = np.linalg.eigh(spread)[1][:, -1]
    axis *= np.sign(axis[0])
    r, rho = pearsonr(np.array(places) @ axis, truth)[0], spearmanr(np.array(places) @ axis, truth)[0]
    assert [one.estimate.value for one in found] == pytest.approx([r, rho, r**2])
    assert r > 0.8 and all(one.estimate.ci_low < one.estimate.value < one.estimate.ci_high for one in found)
    document = found[0].to_dict()
    assert document["metric"] == "pearson" and document["set_b"] is None and document["settings"]["bank"] == "words"
    text = format_alignments(found)
    assert "300 bootstrap draws of patients; prompts of the bank words" in text and "spearman" in text
    with pytest.raises(UnknownNameError, match="is one of numbers, and 'view' has classes"):
        align_text_manifest([(source, knowing_bank(source, manifest))], manifest, task=VIEW, options=AlignOptions())
