"""Small real files: AVI, DICOM, NIfTI and PNG, written for each test."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.manifest import Manifest, RecipeOutcome, RecipeRequest, get_recipe

Writer = Callable[..., Path]


@dataclass(frozen=True)
class Made:
    """A manifest that was made, its rows by clip id, and the names of its findings by kind."""

    outcome: RecipeOutcome

    @property
    def manifest(self) -> Manifest:
        return self.outcome.manifest

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["clip_id"]: row for row in self.manifest.table.to_pylist()}

    @property
    def found(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for finding in self.outcome.findings:
            names[finding.kind] += finding.names
        return dict(names)

    def message(self, kind: str) -> str:
        return next(finding.message for finding in self.outcome.findings if finding.kind == kind)

    def column(self, name: str) -> dict[str, Any]:
        return {clip_id: row[name] for clip_id, row in self.rows.items()}


@pytest.fixture
def make() -> Callable[..., Made]:
    """Make a manifest with the recipe of that name."""

    def make_manifest(recipe: str, root: Path | None, /, **arguments: Any) -> Made:
        return Made(get_recipe(recipe).make(RecipeRequest(root=root, **arguments)))

    return make_manifest


def _frames(n_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n_frames, 32, 48), dtype=np.uint8)


@pytest.fixture
def write_avi() -> Writer:
    def write(path: Path, *, n_frames: int = 4, fps: int = 25, seed: int = 0) -> Path:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=fps)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
            for frame in _frames(n_frames, seed):
                rgb = np.repeat(frame[:, :, np.newaxis], 3, axis=2)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def write_dicom() -> Writer:
    def write(path: Path, *, patient: str | None = "P1", n_frames: int = 3, seed: int = 0) -> Path:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.sequence import Sequence
        from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 2
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.04
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 47, 31

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{seed + 1}"
        dataset.StudyInstanceUID = f"1.2.{seed + 1}"
        dataset.Modality = "US"
        dataset.Manufacturer, dataset.ManufacturerModelName = "Philips", "EPIQ"
        dataset.HeartRate = 61
        if patient is not None:
            dataset.PatientID = patient
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 32, 48, n_frames
        dataset.FrameTime = "20"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.SequenceOfUltrasoundRegions = Sequence([region])
        dataset.PixelData = _frames(n_frames, seed).tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_nifti() -> Writer:
    def write(path: Path, *, n_frames: int = 3, seed: int = 0) -> Path:
        import nibabel

        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(_frames(n_frames, seed).T.copy(), np.eye(4)), path)
        return path

    return write


@pytest.fixture
def write_png() -> Writer:
    def write(path: Path, *, seed: int = 0) -> Path:
        import cv2

        path.parent.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".png", _frames(1, seed)[0])
        path.write_bytes(encoded.tobytes())
        return path

    return write


@pytest.fixture
def write_csv(tmp_path: Path) -> Writer:
    def write(text: str, *, name: str = "table.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / "tables" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path

    return write


# -- CardioBench's scripts, from their published description ----------------------------------------------------

_VIEWS = ("A2C", "A3C", "A4C", "PSAX", "PLAX", "Other")
_VIEW_OF = {"2CH": "A2C", "4CH": "A4C", "A4CorA2CorOther": "Other"}


def _joined(truth: Any, predictions: Path, key: str) -> Any:
    """Inner merge, ground truth on the left, the first of repeated ids on both sides."""
    import pandas as pd

    made = pd.read_csv(predictions).drop_duplicates(key)
    columns = [name for name in truth.columns if name == key or name not in made.columns]
    return truth[columns].drop_duplicates(key).merge(made, on=key, how="inner", validate="one_to_one")


def _of_test(path: Path) -> Any:
    import pandas as pd

    truth = pd.read_csv(path)
    if "Split" in truth.columns:  # names in EchoNet-Dynamic, folds in EchoNet-Pediatric
        return truth[(truth["Split"] == "test") | (truth["Split"] == 0)]
    return truth[truth["split"] == "test"]


def _regression(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    mae, mse = mean_absolute_error(y, p), mean_squared_error(y, p)
    varies = min(np.std(y), np.std(p)) >= 1e-12
    values = {
        "MAE": mae,
        "NMAE(%)": 100 * mae / (y.max() - y.min()) if y.max() > y.min() else np.nan,
        "MSE": mse,
        "RMSE": np.sqrt(mse),
        "R2(%)": 100 * r2_score(y, p) if varies else np.nan,
        "Pearson_r(%)": 100 * pearsonr(y, p)[0] if varies else np.nan,
        "Spearman_rho(%)": 100 * spearmanr(y, p)[0] if varies else np.nan,
    }
    return {name: round(float(value), 2) for name, value in values.items()}


def _classes(y: np.ndarray, p: np.ndarray, names: tuple[str, str, str], digits: int) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and not there
        balanced = balanced_accuracy_score(y, p)
        macro = f1_score(y, p, average="macro", labels=np.unique(y), zero_division=0)
    values = (accuracy_score(y, p), balanced, macro)
    return {name: round(100 * float(value), digits) for name, value in zip(names, values, strict=True)}


def _views(y: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import log_loss

    p, one_hot, confidence = shares.argmax(axis=1), np.eye(6)[y], shares.max(axis=1)
    ece, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs((p == y)[inside].mean() - confidence[inside].mean())
    return {
        **_classes(y, p, ("Accuracy(%)", "Balanced_Accuracy(%)", "F1_macro(%)"), 2),
        "Brier_multiclass(%)": round(100 * np.mean(((shares - one_hot) ** 2).sum(axis=1)), 2),
        "NLL_multiclass(%)": round(100 * log_loss(y, shares, labels=np.arange(6)), 2),
        "ECE_top1(%)": round(100 * ece, 2),
    }


def _bootstrapped(
    score: Callable[[np.ndarray], dict[str, float]], n: int, draws: int, digits: int = 2
) -> dict[str, Any]:
    rng = np.random.default_rng(42)
    replicates = [score(rng.integers(0, n, size=n)) for _ in range(draws)]
    numbers = {}
    for name, value in score(np.arange(n)).items():
        known = np.array([one[name] for one in replicates if not np.isnan(one[name])])
        found = (known.mean(), np.quantile(known, 0.025), np.quantile(known, 0.975))
        rounded = (round(float(of), digits) for of in found)
        numbers[name] = {"value": value, **dict(zip(("mean", "ci_low", "ci_high"), rounded, strict=True))}
    return numbers


_TASKS = {  # table of ground truth, id, label, prediction
    ("lvef", "camus"): ("camus_split.csv", "patient_id", "EF", "EF_pred"),
    ("lvef", "echonet-dynamic"): ("EchoNet-Dynamic/FileList.csv", "FileName", "EF", "EF_pred"),
    ("lvef", "echonet-pediatric"): (
        "echonet_pediatric_filelist.csv",
        "FileName",
        "EF",
        "EF_pred",
    ),
    **{
        (name.lower(), "echonet-lvh"): (
            f"echonet_lvh/{name}_split.csv",
            "HashedFileName",
            "CalcValue",
            f"{name}_pred",
        )
        for name in ("IVSd", "LVIDd", "LVPWd")
    },
    **{
        (name, f"cardiacnet-{name}"): (
            f"cardiacnet/cardiacnet_{name}_split.csv",
            "unique_id",
            name.upper(),
            f"{name}_pred",
        )
        for name in ("asd", "pah")
    },
    ("stemi", "hmc-qu"): ("hmcqu_split.csv", "unique_id", "STEMI", "stemi_pred"),
    ("rwma", "segrwma"): ("segrwma_split.csv", "patient_id", "abnormal", "rwma_pred"),
    ("as", "tmed2"): ("tmed2/per_study.csv", "study_id", "diagnosis_label", "as_pred"),
    ("view", "camus"): ("camus_split.csv", "unique_id", "view", "view_pred"),
    ("view", "echonet-pediatric"): (
        "echonet_pediatric_filelist.csv",
        "FileName",
        "view",
        "view_pred",
    ),
    ("view", "hmc-qu"): ("hmcqu_split.csv", "unique_id", "view", "view_pred"),
    ("view", "segrwma"): ("segrwma_split.csv", "patient_view_id", "view", "view_pred"),
    ("view", "tmed2"): ("tmed2/per_image.csv", "query_key", "view", "view_pred"),
}


@pytest.fixture
def script_numbers() -> Callable[..., dict[str, Any]]:
    """Read exported files as CardioBench's scripts do and return their numbers."""

    def evaluate(out: Path, predictions: Path, task: str, dataset: str, *, draws: int) -> dict[str, Any]:
        place, key, label, value = _TASKS[task, dataset]
        if predictions.stem.endswith("_image"):
            place, key = "tmed2/per_image.csv", "query_key"
        truth = _of_test(out / "ground_truth" / place)
        if dataset == "segrwma":
            truth = truth[truth["modality"] == "2D"]
        if task == "rwma":  # three evaluations, told by the name of the file
            truth = truth[truth["view"] == predictions.stem[-3:].upper()]
        rows = _joined(truth, predictions, key)
        if task == "view":
            view = truth.drop_duplicates(key).set_index(key)[label].loc[rows[key]].map(lambda v: _VIEW_OF.get(v, v))
            y = np.array([_VIEWS.index(name) for name in view])
            five = rows[[f"prob_{name}" for name in _VIEWS[:-1]]].to_numpy(float)
            shares = np.column_stack([five, np.clip(1 - five.sum(axis=1), 0, 1)])
            shares /= shares.sum(axis=1, keepdims=True)
            return _bootstrapped(lambda at: _views(y[at], shares[at]), len(rows), draws)
        y, p = rows[label].to_numpy(), rows[value].to_numpy()
        if task in ("lvef", "ivsd", "lvidd", "lvpwd"):
            return _bootstrapped(lambda at: _regression(y[at], p[at]), len(rows), draws)
        names = ("Accuracy(%)", "Balanced_Accuracy(%)", "F1(%)")
        return _bootstrapped(lambda at: _classes(y[at], p[at], names, 4), len(rows), draws, digits=4)

    return evaluate
