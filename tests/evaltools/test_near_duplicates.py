from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedstore import EncoderSpec, FrameSampling, Manifest
from evaltools.cohort import build_cohort
from evaltools.fitting import Targets
from evaltools.near_duplicates import find_near_duplicates
from evaltools.probe import ProbeOptions, probe_manifest
from evaltools.report.text import format_results
from evaltools.soundness import pretraining_overlap, uses_oracle_frames
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
Make = Callable[..., Any]
LVEF = get_task("lvef")


def test_a_copy_of_a_training_clip_is_found_and_left_out(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(40)
    source = make_source(manifest)
    ids = source.index.column("clip_id").to_pylist()
    copied, original = ids.index("p003-A4C"), ids.index("p000-A4C")
    source.clips[copied] = 2 * source.clips[original] + 1e-6  # a cosine does not see the length
    (result,) = probe_manifest([source], manifest, task=LVEF, options=ProbeOptions(draws=50, n_shuffles=5))
    near = result.near_duplicates
    assert near is not None and near["n_clips"] == near["n_units"] == 1
    (pair,) = near["pairs"]
    assert (pair["test"], pair["train"]) == ("p003-A4C", "p000-A4C") and pair["cosine"] > 0.9999
    kept = result.predictions.clip_ids != "p003-A4C"
    error = np.abs(result.predictions.y_true - result.predictions.y_pred)
    assert near["metrics_without"]["mae"]["value"] == pytest.approx(error[kept].mean())
    assert "1 test clips nearly equal a training clip" in format_results([result])
    assert result.to_dict()["near_duplicates"] == near
    (unsearched,) = probe_manifest(
        [source], manifest, task=LVEF, options=ProbeOptions(draws=0, controls=False, near_duplicates=False)
    )
    assert unsearched.near_duplicates is None


def test_clips_that_are_all_alike_are_no_copies(make_manifest: MakeManifest) -> None:
    cohort = build_cohort(make_manifest(40), LVEF)
    targets = Targets.of(cohort)
    rng = np.random.default_rng(0)
    alike = 100 + rng.normal(0, 0.5, (len(cohort), 16))
    found = find_near_duplicates(alike, cohort, targets, seed=0)
    assert found is not None and found.threshold > 0.9999 and found.flagged.sum() <= 2
    apart = find_near_duplicates(rng.normal(size=(len(cohort), 16)), cohort, targets, seed=0)
    assert apart is not None and apart.threshold == 0.999 and not apart.flagged.any() and apart.pairs == ()


def test_what_is_reported_does_not_depend_on_row_order(make_manifest: MakeManifest) -> None:
    cohort = build_cohort(make_manifest(30), LVEF)
    X = np.random.default_rng(0).normal(size=(len(cohort), 8))
    X[np.flatnonzero(cohort.in_split("test"))[:25]] = X[np.flatnonzero(cohort.in_split("train"))[0]]
    order = np.random.default_rng(1).permutation(len(cohort))
    plain = find_near_duplicates(X, cohort, Targets.of(cohort), seed=0)
    turned_cohort = cohort.take(order)  # type: ignore[arg-type]
    turned = find_near_duplicates(X[order], turned_cohort, Targets.of(turned_cohort), seed=0)
    assert plain is not None and turned is not None
    assert plain.pairs == turned.pairs and len(plain.pairs) == 20 and plain.flagged.sum() == 25


def test_expert_frames_and_pretraining_are_marked(make_manifest: MakeManifest, make_source: Make) -> None:
    manifest = make_manifest(30, name="camus-like")
    source = make_source(manifest)
    source.spec = EncoderSpec(name="toy-encoder", clip_dim=12, frame_dim=12, sampling=FrameSampling("keyframe:ed"))
    (result,) = probe_manifest([source], manifest, task=LVEF, options=ProbeOptions(draws=0, controls=False))
    assert result.to_dict()["oracle_frames"] is True and result.to_dict()["pretraining"] is None
    assert "toy-encoder [oracle frames]" in format_results([result])
    assert not uses_oracle_frames(EncoderSpec(name="mine", clip_dim=4))


def test_a_card_that_names_the_data_set_marks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from embedstore.encoder import get_card
    from evaltools import soundness

    card = replace(get_card("pixel-stats"), pretraining_data=("camus", "cardiacnet"))
    monkeypatch.setattr(soundness, "get_card", lambda name: card)
    pretraining_overlap.cache_clear()
    assert [pretraining_overlap("x", name) for name in ("camus", "camus2", "cardiacnet-asd")] == [
        "camus", None, "cardiacnet",
    ]  # fmt: skip
    pretraining_overlap.cache_clear()
    monkeypatch.undo()
    assert pretraining_overlap("nobody-knows-it", "camus") is None
