from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedstore import Manifest
from embedstore.errors import ContentError, UnknownNameError
from evaltools.compare import CompareOptions, compare, compare_results
from evaltools.metrics import regression_metrics
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.comparison import format_comparisons
from evaltools.result import Result
from evaltools.task import get_task
from evaltools.ties import tie_groups

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
KEYS = {"task", "dataset", "a", "b", "metric", "difference", "ci_low", "ci_high", "p", "p_holm", "p_holm_suite"}
QUICK = CompareOptions(probe=ProbeOptions(draws=200), permutations=2000)


@pytest.fixture
def three(make_manifest: MakeManifest, make_source: Make) -> list[Result]:
    """Results of an encoder that sees motion, and of two that are alike."""
    manifest = make_manifest(60)
    sources = [make_source(manifest, name=name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    options = ProbeOptions(draws=0, controls=False)
    _, b, c = probe_manifest(sources, manifest, task=get_task("lvef"), options=options)
    seeing = replace(options, pools=("meanstd",))
    (a,) = probe_manifest(sources[:1], manifest, task=get_task("lvef"), options=seeing)
    return [replace(a, pool="clip"), b, c]


def test_a_better_encoder_is_told_apart_and_two_alike_are_not(three: list[Result]) -> None:
    found = compare_results(three, options=QUICK)
    ab, ac, bc = found.comparisons
    for better in (ab, ac):
        assert better.p == pytest.approx(1 / 2001) and better.favours == "a"
        assert better.difference.ci_high is not None and better.difference.ci_high < 0
        assert better.p_holm == pytest.approx(3 / 2001)
    assert bc.p is not None and bc.p > 0.05
    (ties,) = found.ties.values()
    assert ties.groups[0] == ("a",) and set(ties.groups[1]) == {"b", "c"}
    assert ties.ranks == {"a": (1, 1), "b": (2, 3), "c": (2, 3)}
    assert list(found.ties) == ["lvef/toy/clip/ridge"]


def test_the_json_form_has_the_contracts_keys(three: list[Result]) -> None:
    document = json.loads(json.dumps(compare_results(three, options=QUICK).to_dict(), allow_nan=False))
    assert set(document) == {"comparisons", "tie_groups"} and len(document["comparisons"]) == 3
    for one in document["comparisons"]:
        assert set(one) >= KEYS and one["smallest_p"] == pytest.approx(1 / 2001) and one["n_patients"] == 24
    scores = [regression_metrics(one.predictions.y_true, one.predictions.y_pred)["mae"] for one in three]
    assert document["comparisons"][0]["difference"] == pytest.approx(scores[0] - scores[1])


def test_predictions_are_joined_by_id_whatever_their_order(three: list[Result]) -> None:
    a, b, _ = three
    order = np.random.default_rng(0).permutation(len(b.predictions))[5:]
    moved = replace(
        b.predictions,
        **{name: getattr(b.predictions, name)[order] for name in ("clip_ids", "patients", "y_true", "y_pred")},
    )
    (found,) = compare_results([a, replace(b, predictions=moved)], options=QUICK).comparisons
    kept = np.isin(a.predictions.clip_ids.astype(str), moved.clip_ids.astype(str))
    true = a.predictions.y_true[kept]
    wanted = [regression_metrics(true, one.predictions.y_pred[kept])["mae"] for one in (a, b)]
    assert found.difference.value == pytest.approx(wanted[0] - wanted[1])
    assert (found.n_scored, found.n_dropped) == (67, 5)


def test_a_baseline_makes_fewer_pairs_and_a_milder_correction(three: list[Result]) -> None:
    found = compare_results(three, options=replace(QUICK, baseline="b"))
    assert [(one.a.title, one.b.title) for one in found.comparisons] == [("a", "b"), ("c", "b")]
    assert found.comparisons[0].p_holm == pytest.approx(2 / 2001) and found.ties == {}
    with pytest.raises(UnknownNameError, match="did you mean"):
        compare_results(three, options=replace(QUICK, baseline="bb"))


def test_holm_goes_over_the_task_and_in_its_own_column_over_the_suite(three: list[Result]) -> None:
    a, b, _ = three
    elsewhere = [replace(one, task=one.task.model_copy(update={"name": "other"})) for one in (a, b)]
    found = compare_results([a, b, *elsewhere], options=QUICK).comparisons
    for one in found:
        assert one.p_holm == one.p and one.p_holm_suite == pytest.approx(2 * one.p)


def test_what_cannot_be_compared_is_said(three: list[Result]) -> None:
    a, b, _ = three
    with pytest.raises(UnknownNameError, match="one encoder only"):
        compare_results([a], options=QUICK)
    apart = replace(b.predictions, clip_ids=np.array([f"x{one}" for one in b.predictions.clip_ids], dtype=object))
    with pytest.raises(ContentError, match="share no clip"):
        compare_results([a, replace(b, predictions=apart)], options=QUICK)
    other = replace(b.predictions, y_true=b.predictions.y_true + 1)
    with pytest.raises(ContentError, match="different labels"):
        compare_results([a, replace(b, predictions=other)], options=QUICK)


def test_few_patients_have_a_difference_without_an_interval(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30)
    sources = [make_source(manifest), make_source(manifest, name="other", seed=4)]
    results = probe_manifest(sources, manifest, task=get_task("view"), options=ProbeOptions(draws=0, controls=False))
    (found,) = compare_results(results, options=QUICK).comparisons
    assert found.difference.ci_low is None and found.difference.ci_reason == "12 patients, fewer than 20"
    assert not found.exact and compare_results(results).comparisons[0].exact
    text = format_comparisons(compare_results(results))
    assert "4096 swaps (all), smallest attainable p = 0.00049" in text and "not training again" in text


def test_a_store_is_compared_by_name(make_manifest: MakeManifest, make_source: Make, make_store: Make) -> None:
    manifest = make_manifest(60)
    store = make_store([manifest], [make_source(manifest), make_source(manifest, name="other", seed=3)])
    lvef = [get_task("lvef")]
    found = compare(store, tasks=lvef, options=QUICK)
    named = compare(store, tasks=lvef, encoders=["other", "toy-encoder"], options=QUICK)
    assert len(found.comparisons) == 1 and found.comparisons[0].a.title == "other"
    assert named.to_dict() == found.to_dict()
    with pytest.raises(UnknownNameError, match="nothing to be compared with"):
        compare(store, tasks=lvef, encoders=["other"], options=QUICK)


def test_a_leader_is_tied_with_all_that_are_not_shown_to_be_worse() -> None:
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": None}
    ties = tie_groups(values, better=[("a", "c")], higher_is_better=False)
    assert ties.groups == (("a", "b", "d"), ("c",)) and ties.ranks["c"] == (2, 4) and ties.ranks["a"] == (1, 3)
