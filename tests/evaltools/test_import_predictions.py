from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from embedstore import Manifest, ManifestField
from embedstore.errors import EmbedstoreError, LeakageError
from evaltools.cardiobench.imported import import_predictions
from evaltools.probe import ProbeOptions
from evaltools.task import get_task

MakeManifest = Callable[..., Manifest]
ASD = get_task("asd")
FIELDS = [
    ManifestField(name="asd", role="label", kind="boolean"),
    ManifestField(name="unique_id", role="extra", kind="text"),
    ManifestField(name="phi_control", role="subgroup", kind="boolean"),
]


def _label(rows: list[dict[str, Any]]) -> None:
    rows[:] = [row for row in rows if row["view"] == "A4C"]
    for row in rows:
        number = int(row["patient_id"][1:])
        row.update(asd=number // 5 % 2 == 0, unique_id=f"{number:03d}_image", phi_control=False)


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(30, name="cardiacnet-asd", change=_label, fields=FIELDS)


def _test_ids(manifest: Manifest) -> dict[str, bool]:
    rows = manifest.table.to_pylist()
    return {row["unique_id"]: row["asd"] for row in rows if row["split"] == "test"}


def _write(path: Path, lines: Sequence[str], header: str = "unique_id,asd_pred,prob_asd") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_shares_are_ranked_and_labels_counted(manifest: Manifest, tmp_path: Path) -> None:
    truth = _test_ids(manifest)
    shares = {name: (at * 7 % 12) / 12 for at, name in enumerate(truth)}
    lines = [f"{name},{int(share >= 0.5)},{share}" for name, share in shares.items()]
    (result, without) = import_predictions(manifest, _write(tmp_path / "model.csv", lines), task=ASD)
    assert (result.row.name, without.row.name, result.encoder) == ("all", "without-phi", "model")
    expected = roc_auc_score(list(truth.values()), list(shares.values()))
    assert result.metrics["auroc"].value == pytest.approx(expected)
    right = [truth[name] == (share >= 0.5) for name, share in shares.items()]  # a share of one half is as labelled
    assert result.metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    assert result.counts.n_scored == len(truth) == 12 and result.to_dict()["file"] == "model.csv"
    assert result.to_dict()["protocol"] == "imported" and result.provenance.pretraining is None


def test_what_a_file_lacks_or_repeats_is_noted(manifest: Manifest, tmp_path: Path) -> None:
    truth = _test_ids(manifest)
    lines = [f"{name},{int(value)}" for name, value in truth.items()]
    lines += [lines[0].replace(",0", ",x").replace(",1", ",0"), "nobody,1"]
    path = _write(tmp_path / "hard.csv", lines, header="unique_id,asd_pred")
    (result, _) = import_predictions(manifest, path, task=ASD, model="theirs")
    notes = " ".join(result.provenance.notes)
    assert result.encoder == "theirs" and result.metrics["accuracy"].value == 1.0
    assert "1 rows repeat an id; the first counts" in notes and "1 ids of the file are of no clip" in notes
    assert "labels only" in notes


def test_labels_win_over_shares_that_contradict_them(manifest: Manifest, tmp_path: Path) -> None:
    truth = _test_ids(manifest)
    lines = [f"{name},{int(value)},0.4" for name, value in truth.items()]  # a threshold below one half
    (result, _) = import_predictions(manifest, _write(tmp_path / "model.csv", lines), task=ASD)
    assert result.metrics["accuracy"].value == 1.0
    assert f"{sum(truth.values())} labels contradict their prob_asd at 0.5" in " ".join(result.provenance.notes)


@pytest.mark.parametrize(
    ("lines", "header", "code", "says"),
    [
        (["000_image,2,0.5"], "unique_id,asd_pred,prob_asd", 4, "line 2 holds '2' in asd_pred"),
        (["000_image,1,1.5"], "unique_id,asd_pred,prob_asd", 4, "must lie between 0 and 1"),
        (["000_image,1,inf"], "unique_id,asd_pred,prob_asd", 4, "line 2 holds 'inf'"),
        (["000_image,1,0.5,9"], "unique_id,asd_pred,prob_asd", 4, "line 2 has 4 cells and the header 3"),
        (["another,1,0.5"], "unique_id,asd_pred,prob_asd", 2, "is it of another data set"),
        (["000_image,1"], "clip,label", 2, "need unique_id and asd_pred"),
        ([], "unique_id,asd_pred", 4, "holds no row"),
    ],
)
def test_files_that_cannot_be_scored_are_one_sentence(
    manifest: Manifest, tmp_path: Path, lines: list[str], header: str, code: int, says: str
) -> None:
    with pytest.raises(EmbedstoreError) as refusal:
        import_predictions(manifest, _write(tmp_path / "model.csv", lines, header), task=ASD)
    assert says in str(refusal.value) and refusal.value.exit_code == code and "\n" not in str(refusal.value)


def test_files_that_are_no_text_or_not_there(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "model.csv").write_bytes(b"unique_id,asd_pred\n\xff\xfe,1\n")
    for name, code, says in (("model.csv", 4, "is not UTF-8"), ("gone.csv", 1, "there is no file")):
        with pytest.raises(EmbedstoreError, match=says) as refusal:
            import_predictions(manifest, tmp_path / name, task=ASD)
        assert refusal.value.exit_code == code
    with pytest.raises(EmbedstoreError, match="CardioBench has no task 'lvef' on 'cardiacnet-asd'") as refusal:
        import_predictions(manifest, _write(tmp_path / "x.csv", ["a,1"], "a,b"), task=get_task("lvef"))
    assert refusal.value.exit_code == 2


def test_leakage_refuses_predictions_too(make_manifest: MakeManifest, tmp_path: Path) -> None:
    def leak(rows: list[dict[str, Any]]) -> None:
        _label(rows)
        rows[3]["patient_id"] = rows[0]["patient_id"]  # a test clip of a training patient

    manifest = make_manifest(30, name="cardiacnet-asd", change=leak, fields=FIELDS)
    lines = [f"{name},{int(value)},{0.2 + 0.6 * value}" for name, value in _test_ids(manifest).items()]
    path = _write(tmp_path / "model.csv", lines)
    with pytest.raises(LeakageError, match="1 patients in two splits"):
        import_predictions(manifest, path, task=ASD)
    (result, _) = import_predictions(manifest, path, task=ASD, options=ProbeOptions(allow_leakage=True, draws=0))
    assert result.provenance.leakage.startswith("allowed: 1 patients")
