"""What evaluation from the store costs, against the plain way of each step, in CardioBench's true sizes.

Vectors are synthetic; ratios are of one run, medians of rounds in which the cases take turns. `--suite` adds the
whole benchmark on 6 encoders; `--full` adds it with full grids and controls, which takes long.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr
from sklearn import metrics as plain
from sklearn.linear_model import Ridge, RidgeCV
from timing import Case, Figure, machine, time_rounds

from embedstore import DatasetFacts, EncoderSpec, Manifest, ManifestField, Store
from embedstore.bank import BankHeader, write_bank
from embedstore.embedding_set import FAILURES_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.identity import sha256_hex
from embedstore.tables import rows_to_table
from evaltools.closeness import ClipPoints
from evaltools.metrics import ClassificationScorer, RegressionScorer
from evaltools.neighbours import nearest
from evaltools.protocols.base import Standardiser
from evaltools.protocols.ridge import STRENGTHS, RidgePath
from evaltools.resample import estimate_metrics
from evaltools.run import run
from evaltools.suite import RunOptions, Suite, plan_jobs

N_TRAIN, N_VAL, N_TEST, DIM = 7_465, 1_288, 1_277, 768  # EchoNet-Dynamic's splits; the width of a ViT-B
ROOT = Path(__file__).resolve().parent.parent
DRAWS = 1_000
LOOP_DRAWS = 50  # of the plain loop, whose seconds are multiplied up
ENCODERS = {"echo-clip": 512, "biomedclip": 512, "siglip2": 768, "dinov3": 768, "echoprime": 512, "panecho": 768}
WITH_TEXT = ("echo-clip", "biomedclip", "siglip2")
# Clips or images of each data set, and the columns of its tasks: CardioBench, figure 1 and the released tables.
DATASETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "echonet-dynamic": (10_030, ("lvef_pct",)),
    "echonet-pediatric": (7_810, ("lvef_pct",)),
    "camus": (1_000, ("lvef_pct",)),
    "echonet-lvh": (12_000, ("lvidd_cm", "ivsd_cm", "lvpwd_cm")),
    "tmed2": (17_270, ("as",)),
    "cardiacnet-asd": (228, ("asd",)),
    "cardiacnet-pah": (476, ("pah",)),
    "hmc-qu": (322, ("stemi",)),
    "segrwma": (529, ("rwma",)),
}
VIEWS = {
    "echonet-pediatric": ("A4C", "PSAX"), "camus": ("A2C", "A4C"), "tmed2": ("A2C", "A4C", "PLAX", "PSAX"),
    "hmc-qu": ("A2C", "A4C"), "segrwma": ("A2C", "A3C", "A4C"), "echonet-lvh": ("PLAX",),
}  # fmt: skip


def ridge_figures(rounds: int) -> list[Figure]:
    """The path of 45 penalties against one Gram product with its eigendecomposition, and scikit-learn's ways."""
    rng = np.random.default_rng(0)
    X, X_val = rng.standard_normal((N_TRAIN, DIM)), rng.standard_normal((N_VAL, DIM))
    weights = rng.standard_normal(DIM) / 10
    y, y_val = (of @ weights + rng.standard_normal(len(of)) for of in (X, X_val))
    scaled, scaled_val = (Standardiser.of(X)(of) for of in (X, X_val))

    def one_at_a_time() -> float:
        fits = (Ridge(alpha=strength * N_TRAIN).fit(scaled, y) for strength in STRENGTHS)
        return min(float(np.mean((fit.predict(scaled_val) - y_val) ** 2)) for fit in fits)

    cases = {
        "path": Case(lambda: RidgePath().fit(X, y, X_val=X_val, y_val=y_val)),
        "gram": Case(lambda: np.linalg.eigh(scaled.T @ scaled)),
    }
    seconds = time_rounds(cases, rounds=rounds)
    slow = {
        "RidgeCV": Case(lambda: RidgeCV(alphas=[strength * N_TRAIN for strength in STRENGTHS]).fit(scaled, y)),
        "loop": Case(one_at_a_time),
    }
    seconds |= time_rounds(slow, rounds=1)
    name = f"ridge path, {len(STRENGTHS)} penalties, {N_TRAIN} x {DIM}, standardising and refit included"
    return [
        Figure(name, seconds["path"], "one Gram product and eigendecomposition", seconds["gram"], 2.0),
        Figure("  against RidgeCV (leave-one-out)", seconds["path"], "RidgeCV", seconds["RidgeCV"]),
        Figure("  against one fit at a time", seconds["path"], "Ridge, each penalty", seconds["loop"]),
    ]


def bootstrap_figures(rounds: int) -> list[Figure]:
    """1,000 patient draws of the metrics of 1,277 patients against a loop over scikit-learn's."""
    rng = np.random.default_rng(1)
    true = rng.normal(55, 12, N_TEST)
    predicted = true + rng.normal(0, 6, N_TEST)
    sick = (rng.random(N_TEST) < 0.3).astype(np.intp)
    share = 1 / (1 + np.exp(-(sick + rng.normal(0, 1, N_TEST))))
    shares, patients = np.column_stack([1 - share, share]), np.arange(N_TEST)
    drawn = np.random.default_rng(2).integers(0, N_TEST, (LOOP_DRAWS, N_TEST))

    def plain_sums() -> None:
        for rows in drawn:
            a, b = true[rows], predicted[rows]
            plain.mean_absolute_error(a, b), plain.root_mean_squared_error(a, b), plain.r2_score(a, b)
            np.corrcoef(a, b)

    def plain_ranks() -> None:
        for rows in drawn:
            spearmanr(true[rows], predicted[rows])
            plain.roc_auc_score(sick[rows], share[rows]), plain.average_precision_score(sick[rows], share[rows])

    def ours(*, ranked: bool) -> None:
        scorer = RegressionScorer(true, predicted, patients=patients)
        estimate_metrics(lambda counts: scorer(counts, ranked=ranked), n_patients=N_TEST, draws=DRAWS, seed=0)

    def ours_ranks() -> None:
        of_class = ClassificationScorer(sick, shares, patients=patients)
        ours(ranked=True)
        estimate_metrics(of_class, n_patients=N_TEST, draws=DRAWS, seed=0)

    def plain_all() -> None:
        plain_sums()
        plain_ranks()

    cases = {
        "sums": Case(lambda: ours(ranked=False)),
        "plain sums": Case(plain_sums),
        "all": Case(ours_ranks),
        "plain all": Case(plain_all),
    }
    seconds = time_rounds(cases, rounds=rounds)
    scale = DRAWS / LOOP_DRAWS
    note = f"loop of {LOOP_DRAWS} draws, times {scale:g}"
    return [
        Figure(f"bootstrap of MAE, RMSE, R2, Pearson, {DRAWS} draws of {N_TEST} patients", seconds["sums"],
               "loop over scikit-learn", seconds["plain sums"] * scale, 1 / 50, note),
        Figure("  with Spearman, AUROC and AUPRC", seconds["all"], "loop over scikit-learn and scipy",
               seconds["plain all"] * scale, 1 / 20, note),
    ]  # fmt: skip


def neighbour_figures(rounds: int) -> list[Figure]:
    """Nearest neighbours with patients left out and float64 order, against FAISS alone."""

    def points(n: int, prefix: str, seed: int) -> ClipPoints:
        vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float16).astype(np.float64)
        ids = np.array([f"{prefix}{row:06d}" for row in range(n)], dtype=object)
        return ClipPoints(vectors, ids, ids)

    queries, gallery = points(N_TEST, "q", 1), points(N_TRAIN, "g", 2)

    def bare() -> None:
        placed, asked = gallery.vectors.astype(np.float32), queries.vectors.astype(np.float32)
        faiss.normalize_L2(placed)
        faiss.normalize_L2(asked)
        index = faiss.IndexFlatIP(DIM)
        index.add(placed)
        index.search(asked, 200)

    cases = {"ours": Case(lambda: nearest(queries, gallery, k=200, exact_scores=False)), "faiss": Case(bare)}
    for case in cases.values():
        case.run()
    seconds = time_rounds(cases, rounds=rounds)
    name = f"kNN, {N_TEST} queries on {N_TRAIN} x {DIM}, k = 200"
    return [Figure(name, seconds["ours"], "FAISS alone", seconds["faiss"], 1.3)]


def build_manifest(name: str, n: int, columns: tuple[str, ...], *, seed: int) -> Manifest:
    """A manifest of a data set's true size; labels follow one hidden number a clip, as `build_set` makes vectors."""
    rng = np.random.default_rng(seed)
    hidden = hidden_number(name, n)
    views = VIEWS.get(name, ("A4C",))
    rows = []
    for at in range(n):
        clip_id = f"{name}-{at:06d}"
        row = {
            "clip_id": clip_id, "patient_id": f"p{at // 2:06d}", "study_id": f"s{at // 2:06d}", "path": clip_id,
            "sha256": sha256_hex(clip_id.encode()), "n_frames": 60, "fps": 50.0, "height": 112, "width": 112,
            "view": views[int(rng.integers(len(views)))], "modality": "2d",
            "split": "train" if at // 2 % 20 < 15 else "val" if at // 2 % 20 < 17 else "test",
        }  # fmt: skip
        # Of a study with one label the first clip's number counts.
        noisy = hidden[at - at % 2 if "as" in columns else at] + (0 if "as" in columns else rng.normal(0, 0.5))
        if name.startswith("cardiacnet"):
            row["phi_control"] = bool(at % 20 == 0)
        for column in columns:
            is_number = column.endswith(("_pct", "_cm"))
            row[column] = (
                (55 + 10 * noisy if column == "lvef_pct" else 3 + noisy / 2) if is_number else bool(noisy > 0.5)
            )
        rows.append(row)
    fields = [
        ManifestField(name=column, role="label", kind="number" if column.endswith(("_pct", "_cm")) else "boolean")
        for column in columns
    ]
    if name.startswith("cardiacnet"):
        fields.append(ManifestField(name="phi_control", role="extra", kind="boolean"))
    facts = DatasetFacts(name=name, title=name, synthetic=True)
    return Manifest.from_rows(rows, dataset=facts, fields=fields, patient_ids="provided")


def hidden_number(name: str, n: int) -> np.ndarray:
    """What labels and vectors of a data set share."""
    return np.random.default_rng(len(name) * 7919 + n).standard_normal(n)


def add_set(store: Store, manifest: Manifest, encoder: str, dim: int) -> None:
    """Write vectors of a data set: noise, and the hidden number along one direction."""
    n = len(manifest)
    rng = np.random.default_rng(len(encoder) * 104_729 + n)
    direction = rng.standard_normal(dim)
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    vectors += hidden_number(manifest.name, n)[:, None] * direction / 3
    spec = EncoderSpec(name=encoder, clip_dim=dim, frame_dim=dim)
    with SetWriter(store.layout.sets, dataset=manifest.name, spec=spec) as writer:
        writer.array("clips", dim=dim).append(vectors.astype(spec.dtype))
        clips = [
            {"row": at, "clip_id": clip, "content_sha256": sha}
            for at, (clip, sha) in enumerate(zip(manifest.clip_ids, manifest.column("sha256"), strict=True))
        ]
        tables = {
            "index.parquet": rows_to_table(clips, INDEX_SCHEMA),
            "failures.parquet": rows_to_table([], FAILURES_SCHEMA),
        }
        set_id = writer.finish(tables, provenance={})
    entry = store.entry_of(store.open_set(set_id))
    store.commit(lambda head: head.with_set(entry), reason="benchmark")


def add_bank(store: Store, encoder: str, dim: int) -> None:
    """Write prompts of every task: 202 of LVEF, grids of LVH, 3 a class of findings and views."""
    rows = [("lvef", None, float(value), template) for value in range(101) for template in (0, 1)]
    for task, low, high in (("lvidd", 20, 80), ("ivsd", 5, 20), ("lvpwd", 5, 20)):
        rows += [(task, None, value / 10, template) for value in range(low, high + 1) for template in (0, 1)]
    rows += [(task, label, None, None) for task in ("as", "asd", "pah", "stemi", "rwma")
             for label in ("true", "false") for _ in range(3)]  # fmt: skip
    rows += [("view", view, None, None) for view in ("A2C", "A3C", "A4C", "PSAX", "PLAX") for _ in range(3)]
    tasks, labels, values, templates = zip(*rows, strict=True)
    table = pa.table({
        "task": pa.array(tasks, pa.string()), "prompt": pa.array([str(row) for row in rows], pa.string()),
        "label": pa.array(labels, pa.string()), "value": pa.array(values, pa.float64()),
        "template": pa.array(templates, pa.int64()),
    })  # fmt: skip
    vectors = np.random.default_rng(dim).standard_normal((len(rows), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spec = {"bank_digest": sha256_hex(encoder.encode()), "weights_sha256": None, "dim": dim, "logit_scale": 100.0}
    header = BankHeader(kind="prompts", name="synthetic", encoder=encoder, spec=spec)
    with store.publishing():
        bank = write_bank(store.layout.prompts, header, vectors, tables={"rows.parquet": table}, provenance={})
        store.add_bank(bank, reason="benchmark")


def cold_figures(folder: Path) -> list[Figure]:
    """`evaltools probe --task lvef` of one encoder on 10,030 clips, in a new process; and its imports alone."""
    store = Store.create(folder / "one")
    manifest = build_manifest("echonet-dynamic", 10_030, ("lvef_pct",), seed=0)
    store.add_manifest(manifest)
    add_set(store, manifest, "siglip2", 768)
    program = [sys.executable, "-m", "evaltools", "probe", "--task", "lvef", "--store", str(folder / "one")]

    def child(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - began

    imports = "import embedstore, evaltools.probe, evaltools.report.text, evaltools.selection"
    child(*program)
    return [
        Figure("evaltools probe --task lvef, cold process, 10,030 clips, all controls", child(*program)),
        Figure("  of which imports", child(sys.executable, "-c", imports)),
    ]


def suite_figures(folder: Path, *, full: bool) -> list[Figure]:
    """6 encoders on all data sets and targets, and views."""
    store = Store.create(folder / "suite")
    for at, (name, (n, columns)) in enumerate(DATASETS.items()):
        manifest = build_manifest(name, n, columns, seed=at)
        store.add_manifest(manifest)
        for encoder, dim in ENCODERS.items():
            add_set(store, manifest, encoder, dim)
    for encoder in WITH_TEXT:
        add_bank(store, encoder, ENCODERS[encoder])
    grid = ",".join(f"{10.0**power:g}" for power in np.linspace(-5, 2, 8))
    suite = Suite.model_validate({
        "name": "quick",
        "entries": [
            {"command": "probe", "protocols": ["ridge"]},
            {"command": "probe", "protocols": ["logreg"], "settings": [f"Cs={grid}"]},
            {"command": "knn"},
            {"command": "zeroshot"},
        ],
    })  # fmt: skip

    def timed(suite: Suite, options: RunOptions, name: str, limit: float | None) -> list[Figure]:
        jobs = plan_jobs(store, suite, options=options)
        done = run(store, suite, out=folder / f"out-{suite.name}", jobs=jobs)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        note = f"{len(done.results)} results of {len(jobs)} jobs, {cpu:.0f} s of CPU, at most "
        note += f"{used.ru_maxrss / 2**20:.2f} GiB a process"
        print(f"  {name}: {sorted({one['reason'][:100] for one in done.skipped})}")
        return [Figure(name, done.seconds, limit=limit, note=note)]

    figures = timed(
        suite, RunOptions(draws=1000, controls=False), "suite: 6 encoders, ridge, logistic (8), kNN, zero-shot", 60.0
    )
    if full:
        whole = Suite.model_validate(
            {"name": "full", "entries": [{"command": c} for c in ("probe", "knn", "zeroshot")]}
        )
        figures += timed(whole, RunOptions(), "suite: full grids, 2,000 draws and all controls", None)
    return figures


def their_way(frame_seconds: float, epochs: int) -> list[Figure]:
    """CardioBench's linear probe, computed: one frame of each training and validation clip encoded in every epoch."""
    seconds = epochs * (N_TRAIN + N_VAL) * frame_seconds
    note = f"computed: {epochs} epochs x {N_TRAIN + N_VAL} clips x {frame_seconds} s a frame; at most 1000 epochs"
    return [Figure("CardioBench's way, LVEF probe of one encoder on EchoNet-Dynamic", seconds, note=note)]


def main() -> None:
    """Print the table and write the figures."""
    # A script's own folder comes first otherwise, and a benchmark can be called as a package of ours is.
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--suite", action="store_true", help="the whole benchmark as well")
    parser.add_argument("--full", action="store_true", help="with full grids and controls as well: long")
    parser.add_argument("--only", choices=["ridge", "bootstrap", "neighbours", "cold", "theirs"])
    parser.add_argument("--frame-seconds", type=float, default=0.28, help="of EchoCLIP on two cores, for their way")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of their early stopping, for their way")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], list[Figure]]] = {
            "ridge": lambda: ridge_figures(chosen.rounds),
            "bootstrap": lambda: bootstrap_figures(chosen.rounds),
            "neighbours": lambda: neighbour_figures(chosen.rounds),
            "cold": lambda: cold_figures(Path(folder)),
            "theirs": lambda: their_way(chosen.frame_seconds, chosen.epochs),
        }
        figures: list[Figure] = []
        for name, part in parts.items():
            if chosen.only in (None, name):
                for figure in part():
                    print(figure.line(), flush=True)
                    figures.append(figure)
        if chosen.suite or chosen.full:
            for figure in suite_figures(Path(folder), full=chosen.full):
                print(figure.line(), flush=True)
                figures.append(figure)
    print(f"load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    if chosen.out is not None:
        document = {"figures": [one.to_dict() for one in figures], "machine": machine(), "load": os.getloadavg()}
        chosen.out.write_text(f"{json.dumps(document, indent=2)}\n")


if __name__ == "__main__":
    main()
