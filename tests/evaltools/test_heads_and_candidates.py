"""Published heads and EchoPrime's retrieval-augmented rule, against loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedstore import Manifest
from embedstore.errors import ContentError, MissingVectorsError, UnknownNameError, VectorError
from evaltools.candidates import augmented_manifest, nearest_candidates
from evaltools.head_outputs import read_head
from evaltools.head_tasks import HeadTask, head_tasks
from evaltools.heads import HeadSource, heads, heads_manifest
from evaltools.probe_options import ProbeOptions
from evaltools.task import get_task, label_task, shipped_tasks
from evaltools.zeroshot import ZeroShotOptions
from evaltools.zeroshot_protocols import zero_shot_protocol

LVEF, VIEW, SEX = get_task("lvef"), get_task("view"), label_task("sex", kind="classification")
PLAIN = ProbeOptions(draws=0, controls=False)
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


class FakeBank:
    """A bank from arrays."""

    name, encoder = "own", "toy-encoder"

    def __init__(self, vectors: np.ndarray, rows: pa.Table, **tables: pa.Table) -> None:
        self.vectors, self.rows = vectors, rows
        self.spec = {"bank_digest": "c" * 64}
        for name, table in tables.items():
            setattr(self, name, table)


def _heads(weights: np.ndarray, rows: list[tuple[str, str | None, float, str, str | None]]) -> FakeBank:
    tasks, labels, biases, activations, units = zip(*rows, strict=True)
    outputs = [sum(tasks[before] == task for before in range(at)) for at, task in enumerate(tasks)]
    table = pa.table({
        "task": pa.array(tasks, pa.string()), "output": pa.array(outputs, pa.int64()),
        "label": pa.array(labels, pa.string()), "bias": pa.array(biases, pa.float64()),
        "activation": pa.array(activations, pa.string()), "unit": pa.array(units, pa.string()),
    })  # fmt: skip
    return FakeBank(weights, table)


def _with_windows(source: Any) -> Any:
    """Give a source its frames as windows."""
    index = source.index
    source.index = index.append_column("window_row", index.column("frame_row")).append_column(
        "n_window_rows", index.column("n_frame_rows")
    )
    windows = source.frames
    source.array = lambda kind: windows if kind == "windows" else source.clips if kind == "clips" else None
    return source


@pytest.mark.parametrize("activation", ["sigmoid", "one-minus-sigmoid"])
def test_a_finding_is_the_mean_share_of_the_windows(
    activation: str, make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(change=lambda rows: [row.update(sex="01"[row["sex"] == "M"]) for row in rows])
    source = _with_windows(make_source(manifest))
    weight = np.random.default_rng(0).normal(size=(1, 12)) / 4
    bank = _heads(weight, [("finding", "finding", 0.3, activation, None)])
    (result,) = heads_manifest(
        [HeadSource(source, bank, HeadTask(head="finding"))], manifest, task=SEX, options=PLAIN
    )
    at = {clip["clip_id"]: clip for clip in source.index.to_pylist()}
    for row, clip in enumerate(result.predictions.clip_ids):
        first = at[clip]["window_row"]
        windows = source.frames[first : first + at[clip]["n_window_rows"]].astype(float)
        shares = 1 / (1 + np.exp(-(windows @ weight[0] + 0.3)))
        share = np.mean(shares if activation == "sigmoid" else 1 - shares)
        assert result.predictions.probabilities[row] == pytest.approx([1 - share, share])
    assert result.predictions.classes == ("0", "1") and result.pool == "windows"


def test_shares_of_a_softmax_add_up_and_classes_are_renamed(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(change=lambda rows: [row.update(sex="01"[row["sex"] == "M"]) for row in rows])
    source = make_source(manifest)
    weights = np.random.default_rng(1).normal(size=(3, 12)) / 4
    rows = [("grade", label, 0.1, "softmax", None) for label in ("Mild", "None", "Severe")]
    asked = HeadTask(head="grade", present=("Mild", "Severe"))
    (result,) = heads_manifest([HeadSource(source, _heads(weights, rows), asked)], manifest, task=SEX, options=PLAIN)
    ids = source.index.column("clip_id").to_pylist()
    logits = source.clips[[ids.index(clip) for clip in result.predictions.clip_ids]].astype(float) @ weights.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert result.predictions.probabilities[:, 1] == pytest.approx(1 - shares[:, 1])
    rows = [("view", label, 0.0, "softmax", None) for label in ("A4C", "A2C", "Parasternal_Long")]
    asked = HeadTask(head="view", classes={"Parasternal_Long": "PLAX"})
    (result,) = heads_manifest([HeadSource(source, _heads(weights, rows), asked)], manifest, task=VIEW, options=PLAIN)
    assert result.predictions.classes == ("A2C", "A4C", "PLAX")


def test_a_measured_number_is_brought_into_the_unit_of_the_task(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    weight = np.random.default_rng(2).normal(size=(1, 12))
    numbers = {}
    for unit in ("pct", "pct_shortening"):
        bank = _heads(weight, [("EF", "EF", 55.0, "identity", unit)])
        (result,) = heads_manifest(
            [HeadSource(source, bank, HeadTask(head="EF"))], manifest, task=LVEF, options=ProbeOptions(draws=0)
        )
        numbers[unit] = result.predictions.y_pred
    assert numbers["pct"] == pytest.approx(-numbers["pct_shortening"])
    assert result.controls["metadata"]["mae"].value is None and result.controls["random"]["mae"].value is not None
    with pytest.raises(ContentError, match=r"answers in cm, and task 'lvef' asks for %"):
        bank = _heads(weight, [("EF", "EF", 55.0, "identity", "cm")])
        heads_manifest([HeadSource(source, bank, HeadTask(head="EF"))], manifest, task=LVEF, options=PLAIN)


def test_heads_that_are_not_there_are_reported(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    bank = _heads(np.ones((1, 12)), [("EF", "EF", 0.0, "identity", "pct")])
    with pytest.raises(MissingVectorsError, match="have none for 'EFF'; did you mean"):
        read_head(bank, "EFF", source)
    with pytest.raises(VectorError, match="dimensions"):
        read_head(_heads(np.ones((1, 7)), [("EF", "EF", 0.0, "identity", "pct")]), "EF", source)
    store = make_store([manifest], [source, make_source(manifest, name="panecho")])
    with pytest.raises(
        MissingVectorsError,
        match="no heads of panecho.*toy-encoder has no published head for the task 'lvef'",
    ):
        heads(store, tasks=[LVEF])
    with pytest.raises(UnknownNameError, match="leave --cv out"):
        heads_manifest([], manifest, task=LVEF, options=ProbeOptions(cv="5"))


def test_the_table_of_heads_names_shipped_tasks() -> None:
    for of_encoder in head_tasks().values():
        assert set(of_encoder) <= set(shipped_tasks())


# -- candidates ---------------------------------------------------------------------------------------------------


class FakeViewer:
    """Tells the views of the manifest."""

    def __init__(self, source: Any, manifest: Manifest) -> None:
        self.source = source
        self._view = {row["clip_id"]: row["view"] for row in manifest.table.to_pylist()}

    def views(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._view[clip] for clip in self.source.index.column("clip_id").take(rows).to_pylist()])


def _candidates(dim: int, *, n: int = 300, seed: int = 0) -> FakeBank:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = rng.normal(55, 10, n)
    known = rng.random(n) < 0.7
    return FakeBank(
        vectors,
        pa.table({
            "candidate_id": [f"c{at}" for at in range(n)],
            "ejection_fraction": pa.array(values, mask=~known),
            "sex_is_m": (rng.random(n) < 0.5).astype(float),
        }),
        # The phenotype's section stands second in its own file, and third in the table of weights.
        section_weights=pa.table({
            "section": ["Right Ventricle", "Mitral Valve", "Left Ventricle"],
            "A4C": [0.0, 0.2, 1.0], "A2C": [0.0, 0.9, 0.5], "PLAX": [1.0, 0.1, 0.0],
        }),
        section_phenotypes=pa.table({
            "position": [0, 1, 1], "section": ["Right Ventricle", "Left Ventricle", "Left Ventricle"],
            "phenotype": ["tapse", "ejection_fraction", "sex_is_m"],
        }),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["echoprime", "echoprime-aligned"])
def test_the_rule_is_that_of_a_loop_over_studies(name: str, make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source, bank = make_source(manifest), _candidates(12)
    row = {"name": "study", "level": "study", "prediction": "mean", "truth": "same"}
    by_study = LVEF.model_dump() | {"datasets": {"toy": {"rows": [row]}}}
    task = type(LVEF).model_validate(by_study)
    weights = {"echoprime": {"A4C": 0.2, "A2C": 0.9, "PLAX": 0.1}, "echoprime-aligned": {"A4C": 1.0, "A2C": 0.5}}[
        name
    ]
    (result,) = augmented_manifest(
        source, bank, FakeViewer(source, manifest), manifest, task=task,
        protocol=zero_shot_protocol(name, task=task, changes=["k=20"]),
        options=ZeroShotOptions(draws=0, n_shuffles=5),
    )  # fmt: skip
    vector_of = dict(zip(source.index.column("clip_id").to_pylist(), source.clips.astype(float), strict=True))
    known = bank.rows.column("ejection_fraction").to_pylist()
    for study, predicted in zip(result.predictions.clip_ids, result.predictions.y_pred, strict=True):
        total = np.zeros(12)
        for row in manifest.table.to_pylist():
            if row["study_id"] == study:
                total += weights.get(row["view"], 0.0) * vector_of[row["clip_id"]]
        cosines = bank.vectors @ (total / np.linalg.norm(total))
        nearest = sorted(range(len(cosines)), key=lambda at: -cosines[at])[:20]
        values = [known[at] for at in nearest if known[at] is not None]
        assert predicted == pytest.approx(np.mean(values))
    assert result.protocol == f"{name}+k=20" and result.extras["section"] == "Left Ventricle"
    assert result.extras["n_without_weight"] == 0 and set(result.controls) == {
        "mean",
        "shuffled",
        "random",
        "metadata",
    }


def test_clips_without_weight_weigh_the_same_and_are_counted(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source, bank = make_source(manifest), _candidates(12)
    (result,) = augmented_manifest(
        source, bank, FakeViewer(source, manifest), manifest, task=LVEF,
        protocol=zero_shot_protocol("echoprime-aligned", task=LVEF), options=ZeroShotOptions(controls=False, draws=0),
    )  # fmt: skip
    assert result.extras["n_without_weight"] == 60  # the PLAX clips, train and test
    assert any(note.startswith("60 of the clips or studies have no view") for note in result.provenance.notes)
    vectors = dict(zip(source.index.column("clip_id").to_pylist(), source.clips.astype(float), strict=True))
    at = list(result.predictions.clip_ids).index("p003-PLAX")
    vector = vectors["p003-PLAX"] / np.linalg.norm(vectors["p003-PLAX"])
    nearest = np.argsort(-(bank.vectors @ vector), kind="stable")[:50]
    known = np.array(bank.rows.column("ejection_fraction").to_pylist(), float)[nearest]
    assert result.predictions.y_pred[at] == pytest.approx(np.nanmean(known))


def test_a_finding_is_the_share_of_the_retrieved(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source, bank = make_source(manifest), _candidates(12)
    protocol = zero_shot_protocol("echoprime-aligned", task=SEX, changes=["phenotype=sex_is_m", "k=10"])
    options = ZeroShotOptions(controls=False, draws=0)
    how: dict[str, Any] = {"task": SEX, "options": options}
    viewer = FakeViewer(source, manifest)
    (result,) = augmented_manifest(source, bank, viewer, manifest, protocol=protocol, **how)
    assert set(np.round(result.predictions.probabilities[:, 1] * 10, 6)) <= set(range(11))
    with pytest.raises(UnknownNameError, match="have no phenotype for the task 'sex'; name one with --set"):
        plain = zero_shot_protocol("echoprime", task=SEX)
        augmented_manifest(source, bank, viewer, manifest, protocol=plain, **how)
    with pytest.raises(ContentError, match="k is 500, and there are only 300 candidates"):
        many = zero_shot_protocol("echoprime-aligned", task=SEX, changes=["phenotype=sex_is_m", "k=500"])
        augmented_manifest(source, bank, viewer, manifest, protocol=many, **how)


def test_candidates_read_in_blocks_are_those_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(7, 5)), rng.normal(size=(403, 5))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    unit = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    expected = np.argsort(-(queries @ unit.T), axis=1, kind="stable")[:, :50]
    monkeypatch.setattr("evaltools.candidates._BLOCK", 64)
    assert (nearest_candidates(queries, candidates, k=50) == expected).all()
