"""Zero-shot against straight-line versions of the published rules, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from array_bank import ArrayBank

from embedstore import Manifest
from embedstore.errors import ContentError, MissingVectorsError, UnknownNameError, VectorError
from evaltools.cohort import NotRunnableError
from evaltools.metrics import classification_metrics, regression_metrics
from evaltools.prompt_bank import match_classes
from evaltools.task import get_task, label_task
from evaltools.zeroshot import ZeroShotOptions, zeroshot, zeroshot_manifest
from evaltools.zeroshot_rules import f1_threshold, lower_median, shares_above, value_by_frames, value_by_ranks

LVEF, VIEW, SEX = get_task("lvef"), get_task("view"), label_task("sex", kind="classification")
QUICK = {"draws": 0, "n_shuffles": 20}
MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]


def _bank(
    vectors: np.ndarray, rows: list[tuple[str, str | None, float | None, int | None]], **more: Any
) -> ArrayBank:
    tasks, labels, values, templates = zip(*rows, strict=True)
    table = pa.table({
        "task": pa.array(tasks, pa.string()),
        "prompt": [f"{task} {label} {value} {template}" for task, label, value, template in rows],
        "label": pa.array(labels, pa.string()),
        "value": pa.array(values, pa.float64()),
        "template": pa.array(templates, pa.int64()),
    })  # fmt: skip
    return ArrayBank(vectors, table, **more)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _frames_of(source: Any, clip_ids: Any) -> list[np.ndarray]:
    """Unit frame vectors of each clip, one clip at a time."""
    at = {clip["clip_id"]: clip for clip in source.index.to_pylist()}
    return [
        _unit(source.frames[at[clip]["frame_row"] : at[clip]["frame_row"] + at[clip]["n_frame_rows"]].astype(float))
        for clip in clip_ids
    ]


def _value_bank(dim: int, seed: int = 3) -> ArrayBank:
    rng = np.random.default_rng(seed)
    rows = [("lvef", None, float(value), template) for value in range(0, 101, 2) for template in (0, 1)]
    return _bank(rng.normal(size=(len(rows), dim)), rows)


def _lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("rule", ["cardiobench", "echoclip"])
def test_numbers_are_those_of_the_published_rule(rule: str, make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    bank = _value_bank(12)
    (result,) = zeroshot_manifest(
        [(source, bank)], manifest, task=LVEF, options=ZeroShotOptions(protocol=rule, **QUICK)
    )
    prompts, values = _unit(bank.vectors), bank.rows.column("value").to_pylist()
    expected = []
    for frames in _frames_of(source, result.predictions.clip_ids):
        ranked = [
            [values[at] for at in sorted(range(len(values)), key=lambda at, frame=frame: -(frame @ prompts[at]))]
            for frame in frames
        ]
        n_top = max(1, int(0.2 * len(values)))
        if rule == "cardiobench":
            expected.append(np.mean([_lower_median(of_frame[:n_top]) for of_frame in ranked]))
        else:
            averaged = [float(np.mean([of_frame[place] for of_frame in ranked])) for place in range(len(values))]
            expected.append(_lower_median(averaged[:n_top]))
    assert result.predictions.y_pred == pytest.approx(np.array(expected), abs=1e-9)
    scores = regression_metrics(result.predictions.y_true, result.predictions.y_pred)
    assert result.metrics["mae"].value == pytest.approx(scores["mae"])


def test_views_are_those_of_the_mean_cosine_rule(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    rng = np.random.default_rng(0)
    classes = [label for label in ("a4c", "A2C", "PLAX", "PSAX") for _ in range(3)]
    bank = _bank(rng.normal(size=(12, 12)), [("view", label, None, None) for label in classes])
    options = ZeroShotOptions(**QUICK)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=VIEW, options=options)
    assert result.predictions.classes == ("A2C", "A4C", "PLAX", "PSAX")  # a class that no label has stays
    prompts = _unit(bank.vectors)
    for row, frames in enumerate(_frames_of(source, result.predictions.clip_ids)):
        pooled = frames.mean(axis=0) / np.linalg.norm(frames.mean(axis=0))
        means = [np.mean([pooled @ prompts[at] for at in range(12) if classes[at].upper() == name])
                 for name in result.predictions.classes]  # fmt: skip
        shares = np.exp(means) / np.exp(means).sum()
        assert result.predictions.probabilities[row] == pytest.approx(shares)
    codes = [result.predictions.classes.index(name) for name in result.predictions.y_true]
    scores = classification_metrics(codes, result.predictions.probabilities)
    assert result.metrics["balanced_accuracy"].value == pytest.approx(scores["balanced_accuracy"])


def test_softmax_takes_the_logit_scale_and_one_vector_a_class(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    classes = ["A4C", "A2C", "PLAX", "A4C", "A2C", "PLAX"]
    bank = _bank(np.random.default_rng(5).normal(size=(6, 12)), [("view", label, None, None) for label in classes])
    options = ZeroShotOptions(protocol="softmax", **QUICK)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=VIEW, options=options)
    prompts = _unit(bank.vectors)
    ensembled = {
        name: (lambda mean: mean / np.linalg.norm(mean))(
            np.mean([prompts[at] for at in range(6) if classes[at] == name], axis=0)
        )
        for name in result.predictions.classes
    }
    for row, frames in enumerate(_frames_of(source, result.predictions.clip_ids)):
        pooled = frames.mean(axis=0) / np.linalg.norm(frames.mean(axis=0))
        logits = 50.0 * np.array([pooled @ ensembled[name] for name in result.predictions.classes])
        shares = np.exp(logits - logits.max())
        assert result.predictions.probabilities[row] == pytest.approx(shares / shares.sum(), abs=1e-9)
    bank.spec = {"bank_digest": "b" * 64}
    with pytest.raises(ContentError, match="states no logit scale"):
        zeroshot_manifest([(source, bank)], manifest, task=VIEW, options=options)


def _sex_bank(dim: int = 12) -> ArrayBank:
    labels = ["F", "F", "F", "M", "M"]
    return _bank(np.random.default_rng(8).normal(size=(5, dim)), [("sex", label, None, None) for label in labels])


def test_the_threshold_is_that_of_best_f1_on_train(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source, bank = make_source(manifest), _sex_bank()
    options = ZeroShotOptions(protocol="echoclip", **QUICK)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=SEX, options=options)
    rows = manifest.table.to_pylist()
    positive = _unit(bank.vectors)[3:]  # M, the second class
    scores = {
        clip: float(np.mean([frame @ prompt for frame in frames for prompt in positive]))
        for clip, frames in zip(manifest.clip_ids, _frames_of(source, manifest.clip_ids), strict=True)
    }
    train = [(scores[row["clip_id"]], row["sex"] == "M") for row in rows if row["split"] == "train"]

    def f1(threshold: float) -> float:
        hits = sum(score > threshold and is_m for score, is_m in train)
        called = sum(score > threshold for score, _ in train)
        return 2 * hits / (called + sum(is_m for _, is_m in train))

    best = max(sorted({score for score, _ in train}), key=f1)
    assert result.chosen["threshold"] == pytest.approx(best)
    called = ["M" if scores[clip] > best else "F" for clip in result.predictions.clip_ids]
    assert result.predictions.y_pred.tolist() == called

    def flip(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["split"] != "train":
                row["sex"] = "M"

    other = make_manifest(change=flip)  # other labels outside train move no threshold
    with pytest.raises(NotRunnableError, match="train lacks one"):
        no_f = make_manifest(change=lambda rows: [row.update(sex="M") for row in rows if row["split"] == "train"])
        zeroshot_manifest([(source, bank)], no_f, task=SEX, options=options)
    (again,) = zeroshot_manifest([(source, bank)], other, task=SEX, options=options)
    assert again.chosen == result.chosen


def test_three_classes_have_no_threshold(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    bank = _bank(np.eye(12)[:3], [("view", label, None, None) for label in ("A4C", "A2C", "PLAX")])
    with pytest.raises(UnknownNameError, match="between two classes, and there are 3"):
        zeroshot_manifest(
            [(make_source(manifest), bank)],
            manifest,
            task=VIEW,
            options=ZeroShotOptions(protocol="echoclip", **QUICK),
        )


def test_a_planted_effect_is_found_and_controls_are_at_chance(make_manifest: MakeManifest, make_source: Make) -> None:
    """Prompts that point where the views lie answer; Gaussian vectors and permuted labels do not."""
    manifest = make_manifest(200)
    source = make_source(manifest)
    of_view = {row["clip_id"]: row["view"] for row in manifest.table.to_pylist()}
    kept = {row["clip_id"] for row in manifest.table.to_pylist() if row["split"] == "train"}
    views = ("A4C", "A2C", "PLAX")
    ids = source.index.column("clip_id").to_pylist()
    means = np.zeros((3, 12))
    for code, view in enumerate(views):
        rows = [at for at, clip in enumerate(ids) if of_view[clip] == view and clip in kept]
        means[code] = _unit(source.clips[rows].astype(float)).mean(axis=0)
    bank = _bank(means - means.mean(axis=0), [("view", view, None, None) for view in views])
    options = ZeroShotOptions(draws=0, n_shuffles=50)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=VIEW, options=options)
    assert result.metrics["balanced_accuracy"].value > 0.8
    assert result.p_shuffled == pytest.approx(1 / 51)
    for control in ("random", "shuffled"):
        assert result.controls[control]["balanced_accuracy"].value == pytest.approx(1 / 3, abs=0.09)
    assert result.controls["metadata"]["balanced_accuracy"].value is None
    assert "nothing is fitted" in result.controls["metadata"]["balanced_accuracy"].ci_reason


def test_random_vectors_and_shuffled_labels_stand_at_chance_over_20_seeds(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest(120)
    source = make_source(manifest)
    bank = _bank(np.random.default_rng(1).normal(size=(6, 12)), [("sex", label, None, None) for label in "FFFMMM"])
    found: dict[str, list[float]] = {"random": [], "shuffled": []}
    for seed in range(20):
        options = ZeroShotOptions(draws=0, n_shuffles=5, seed=seed)
        (result,) = zeroshot_manifest([(source, bank)], manifest, task=SEX, options=options)
        for name, values in found.items():
            values.append(result.controls[name]["auroc"].value)
    for values in found.values():
        assert abs(np.mean(values) - 0.5) < 3 * np.std(values, ddof=1) / np.sqrt(20) + 0.01


def test_the_text_axis_orders_clips_as_the_principal_component_does(
    make_manifest: MakeManifest, make_source: Make
) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    bank = _value_bank(12)
    values = np.array(bank.rows.column("value").to_pylist())
    bank.vectors = bank.vectors / 20 + values[:, None] * np.linspace(-1, 1, 12) / 50 + 1
    options = ZeroShotOptions(protocol="text-axis", **QUICK)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=LVEF, options=options)
    prompts = _unit(bank.vectors)
    centred = prompts - prompts.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    axis = axis * np.sign(np.corrcoef(prompts @ axis, values)[0, 1])
    frames = _frames_of(source, manifest.clip_ids)
    along = dict(zip(manifest.clip_ids, [_unit(one.mean(axis=0)[None])[0] @ axis for one in frames], strict=True))
    train = [row for row in manifest.table.to_pylist() if row["split"] == "train"]
    slope, offset = np.polyfit([along[row["clip_id"]] for row in train], [row["lvef_pct"] for row in train], 1)
    centre = np.mean([along[row["clip_id"]] for row in train])
    offset += slope * centre - abs(slope) * centre  # the text says which way, the labels only how steep
    slope = abs(slope)
    assert result.chosen == pytest.approx({"slope": slope, "offset": offset})
    expected = [slope * along[clip] + offset for clip in result.predictions.clip_ids]
    assert result.predictions.y_pred == pytest.approx(np.array(expected))


def test_each_prompt_alone_and_left_out(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    bank = _sex_bank()
    options = ZeroShotOptions(ablate=True, controls=False, draws=0)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=SEX, options=options)
    found = result.to_dict()["ablation"]
    assert [one["change"] for one in found] == ["alone", "left-out"] * 5
    keep = [0, 3, 4]  # the first F prompt alone, all of M
    part = ArrayBank(bank.vectors[keep], bank.rows.take(keep))
    (alone,) = zeroshot_manifest(
        [(source, part)], manifest, task=SEX, options=ZeroShotOptions(controls=False, draws=0)
    )
    assert found[0]["value"] == pytest.approx(alone.metrics["balanced_accuracy"].value)
    assert found[0]["difference"] == pytest.approx(found[0]["value"] - result.metrics["balanced_accuracy"].value)
    (numbers,) = zeroshot_manifest([(source, _value_bank(12))], manifest, task=LVEF, options=options)
    changes = [(one["template"], one["change"], one["n_prompts"]) for one in numbers.extras["ablation"]]
    assert changes == [(0, "alone", 51), (0, "left-out", 51), (1, "alone", 51), (1, "left-out", 51)]
    assert numbers.extras["ablation"][0]["value"] == numbers.extras["ablation"][3]["value"]


def test_bank_stands_in_the_result_and_says_whose_it_is(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    bank = _value_bank(12)
    options = ZeroShotOptions(controls=False, draws=0)
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=LVEF, options=options)
    document = result.to_dict()
    assert (document["bank"], document["bank_digest"], document["pool"]) == ("words", "b" * 64, "frames")
    assert any("not the paper's number: the prompts of the bank 'words'" in note for note in document["notes"])
    bank.name = "cardiobench"
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=LVEF, options=options)
    (note,) = [note for note in result.provenance.notes if "paper" in note]
    assert "prompts" not in note and "frames are those of toy-encoder" in note
    source.frames = None
    (result,) = zeroshot_manifest([(source, bank)], manifest, task=LVEF, options=options)
    assert result.pool == "clip" and any("counts as one frame" in note for note in result.provenance.notes)


def test_bad_input_is_one_sentence(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    options = ZeroShotOptions(controls=False, draws=0)
    with pytest.raises(VectorError, match="have 12 dimensions, and those of the bank 'words' 7"):
        zeroshot_manifest([(source, _value_bank(7))], manifest, task=LVEF, options=options)
    with pytest.raises(MissingVectorsError, match="no prompts with classes for the task 'view'"):
        zeroshot_manifest([(source, _value_bank(12))], manifest, task=VIEW, options=options)
    broken = _value_bank(12)
    broken.vectors[3, 3] = np.nan
    with pytest.raises(VectorError, match="not finite"):
        zeroshot_manifest([(source, broken)], manifest, task=LVEF, options=options)
    strange = _bank(np.eye(12)[:2], [("view", label, None, None) for label in ("left", "right")])
    with pytest.raises(ContentError, match="speaks of the classes left, right"):
        zeroshot_manifest([(source, strange)], manifest, task=VIEW, options=options)
    tested = manifest.clip_ids[manifest.column("split").index("test")]
    at = source.index.column("clip_id").to_pylist().index(tested)
    source.frames[source.index.column("frame_row")[at].as_py(), 0] = np.nan
    with pytest.raises(VectorError, match="not finite"):
        zeroshot_manifest([(source, _value_bank(12))], manifest, task=LVEF, options=options)


def test_settings_stand_in_the_name(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest()
    source = make_source(manifest)
    options = ZeroShotOptions(controls=False, draws=0, settings=("top_share=0.5",))
    (result,) = zeroshot_manifest([(source, _value_bank(12))], manifest, task=LVEF, options=options)
    (plain,) = zeroshot_manifest(
        [(source, _value_bank(12))], manifest, task=LVEF, options=ZeroShotOptions(controls=False, draws=0)
    )
    assert result.protocol == "cardiobench+top_share=0.5"
    assert result.provenance.protocol != plain.provenance.protocol
    for change in ("top_share=2", "decide=threshold", "nonsense=1", "top_share"):
        with pytest.raises(UnknownNameError, match="protocol 'cardiobench'"):
            zeroshot_manifest(
                [(source, _value_bank(12))], manifest, task=LVEF, options=ZeroShotOptions(settings=(change,))
            )
    with pytest.raises(UnknownNameError, match="leave --cv out"):
        zeroshot_manifest([(source, _value_bank(12))], manifest, task=LVEF, options=ZeroShotOptions(cv="5"))


def test_an_encoder_without_text_is_reported(
    make_manifest: MakeManifest, make_source: Make, make_store: Make
) -> None:
    manifest = make_manifest()
    store = make_store([manifest], [make_source(manifest)])
    with pytest.raises(MissingVectorsError, match=r"^toy-encoder has no text vectors in the store"):
        zeroshot(store, tasks=[LVEF])


def test_rules_on_hand_made_ranks() -> None:
    similarity = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.9, 0.8]])
    values = np.array([10.0, 20.0, 30.0, 40.0])
    starts, counts = np.array([0]), np.array([2])
    # Ranks: (10, 20) and (30, 40); their means are 20 and 30, of which the lower middle is 20.
    assert value_by_ranks(similarity, values, starts, counts, share=0.5).tolist() == [20.0]
    # Lower medians 10 and 30.
    assert value_by_frames(similarity, values, starts, counts, share=0.5).tolist() == [20.0]
    assert value_by_frames(similarity, values, starts, counts, share=0.01).tolist() == [20.0]  # one prompt at least
    assert lower_median(np.array([[3.0, 1.0, 2.0]])).tolist() == [2.0]


def test_threshold_is_the_best_of_all_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 12, 30) / 10
        positive = rng.random(30) < 0.4
        positive[0] = True

        def f1(threshold: float, scores: np.ndarray = scores, positive: np.ndarray = positive) -> float:
            called = scores > threshold
            return 2 * (called & positive).sum() / (called.sum() + positive.sum())

        found = f1_threshold(scores, positive)
        assert f1(found) == pytest.approx(max(f1(threshold) for threshold in np.unique(scores)))
        shares = shares_above(scores, found)
        assert ((shares.argmax(axis=1) == 1) == (scores > found)).all()


def test_classes_match_by_name_then_by_sense() -> None:
    assert match_classes(["true", "false"], ["1", "0"], where="x") == {"true": "1", "false": "0"}
    with pytest.raises(ContentError, match="two names for one class"):
        match_classes(["present", "positive"], ["1", "0"], where="x")
