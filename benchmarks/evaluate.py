"""What evaluation from the store costs, against the plain way of each step, in CardioBench's true sizes.

Vectors are synthetic; ratios are of one run, medians of rounds in which the cases take turns. `--suite` adds the
whole benchmark on 6 encoders; `suite_run.py` runs a part of it, or all with full grids and controls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import faiss
import numpy as np
from scipy.stats import spearmanr
from sklearn import metrics as plain
from sklearn.linear_model import Ridge, RidgeCV
from suite_run import suite_figures
from suite_store import add_set, build_manifest
from timing import Case, Figure, machine, time_rounds

from embedstore import Store
from evaltools.closeness import ClipPoints
from evaltools.metrics import ClassificationScorer, RegressionScorer
from evaltools.neighbours import nearest
from evaltools.paired import Pair, permutation_test
from evaltools.protocols.base import Standardiser
from evaltools.protocols.ridge import STRENGTHS, RidgePath
from evaltools.resample import estimate_metrics

N_TRAIN, N_VAL, N_TEST, DIM = 7_465, 1_288, 1_277, 768  # EchoNet-Dynamic's splits; the width of a ViT-B
ROOT = Path(__file__).resolve().parent.parent
DRAWS = 1_000
LOOP_DRAWS = 50  # of the plain loop, whose seconds are multiplied up
PATIENCE, MAX_EPOCHS, BATCH = 20, 1000, 64  # CardioBench, src/linear_probe: early stopping, limit, batch (drop_last)


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
    seeds = count()

    def plain_sums() -> None:
        for rows in drawn:
            a, b = true[rows], predicted[rows]
            plain.mean_absolute_error(a, b), plain.root_mean_squared_error(a, b), plain.r2_score(a, b)
            np.corrcoef(a, b)

    def plain_ranks() -> None:
        for rows in drawn:
            spearmanr(true[rows], predicted[rows])
            plain.roc_auc_score(sick[rows], share[rows]), plain.average_precision_score(sick[rows], share[rows])

    def ours(*, ranked: tuple[str, ...]) -> int:
        scorer = RegressionScorer(true, predicted, patients=patients)
        # Draws of a seed are kept for the next metric; those of another are made.
        seed = next(seeds)
        estimate_metrics(lambda counts: scorer(counts, ranked=ranked), n_patients=N_TEST, draws=DRAWS, seed=seed)
        return seed

    def ours_ranks() -> None:
        of_class = ClassificationScorer(sick, shares, patients=patients)
        estimate_metrics(of_class, n_patients=N_TEST, draws=DRAWS, seed=ours(ranked=("spearman",)))

    def plain_all() -> None:
        plain_sums()
        plain_ranks()

    cases = {
        "sums": Case(lambda: ours(ranked=())),
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


def permutation_figures() -> list[Figure]:
    """100,000 swaps of two encoders within 1,277 patients, by what each metric needs."""
    rng = np.random.default_rng(3)
    true, patients = np.round(rng.normal(55, 12, N_TEST)), np.arange(N_TEST)
    a, b = (true + rng.normal(0, spread, N_TEST) for spread in (6, 6.2))
    sick = (true < 45).astype(np.intp)
    shares = [np.column_stack([1 - of, of]) for of in (1 / (1 + np.exp((values - 45) / 5)) for values in (a, b))]
    values = Pair(y_true=true, a=a, b=b, patients=patients)
    tied = Pair(y_true=true, a=np.round(a), b=np.round(b), patients=patients)
    classes = Pair(y_true=sick, a=shares[0], b=shares[1], patients=patients)
    cases = {
        "MAE": (values, "mae"), "Spearman, no ties": (values, "spearman"), "Spearman, ties": (tied, "spearman"),
        "AUROC": (classes, "auroc"), "AUPRC": (classes, "auprc"),
    }  # fmt: skip
    figures = []
    for name, (pair, metric) in cases.items():
        began = time.perf_counter()
        found = permutation_test(pair, metric=metric, seed=0)
        seconds = time.perf_counter() - began
        note = f"smallest attainable p {found.smallest_p:.1e}"
        figures.append(Figure(f"compare, {found.n:,} swaps of {N_TEST} patients: {name}", seconds, note=note))
    return figures


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


def their_way(frame_seconds: float | None) -> list[Figure]:
    """CardioBench's linear probe, computed from its settings and an encoder's measured speed.

    In every epoch one frame of each training and validation clip is encoded (whole batches of training), in the end
    one of each test clip. Decoding, which it does each time too, is not counted.
    """
    measured = json.loads((ROOT / "benchmarks" / "results" / "encoders_gpu.json").read_text())
    of = {(one["encoder"], one["precision"]): one["bare_per_s"] for one in measured["results"]}
    known = {f"EchoCLIP, bf16, {measured['machine']['device']}": 1.0 / of["echo-clip", "bf16"]}
    if frame_seconds is not None:
        known["EchoCLIP, --frame-seconds"] = frame_seconds
    figures = []
    for machine_name, each in known.items():
        for epochs, why in ((PATIENCE + 1, "the fewest that its early stopping allows"), (MAX_EPOCHS, "its limit")):
            frames = epochs * (N_TRAIN // BATCH * BATCH + N_VAL) + N_TEST
            name = f"CardioBench's way, LVEF probe, {epochs} epochs ({why}): {machine_name}"
            figures.append(Figure(name, frames * each, note=f"computed: {frames:,} frames x {each:.2g} s"))
        once = N_TRAIN + N_VAL + N_TEST
        note = f"computed: {once:,} frames x {each:.2g} s, once for all tasks and protocols; then the probe above"
        figures.append(Figure(f"  ours, the same frames: {machine_name}", once * each, note=note))
    return figures


def main() -> None:
    """Print the table and write the figures."""
    # A script's own folder comes first otherwise, and a benchmark can be called as a package of ours is.
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--suite", action="store_true", help="the whole benchmark of six encoders as well")
    parser.add_argument("--only", choices=["ridge", "bootstrap", "permutations", "neighbours", "cold", "theirs"])
    parser.add_argument("--frame-seconds", type=float, help="of EchoCLIP on this machine, for CardioBench's way")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], list[Figure]]] = {
            "ridge": lambda: ridge_figures(chosen.rounds),
            "bootstrap": lambda: bootstrap_figures(chosen.rounds),
            "permutations": permutation_figures,
            "neighbours": lambda: neighbour_figures(chosen.rounds),
            "cold": lambda: cold_figures(Path(folder)),
            "theirs": lambda: their_way(chosen.frame_seconds),
        }
        figures: list[Figure] = []
        for name, part in parts.items():
            if chosen.only in (None, name):
                for figure in part():
                    print(figure.line(), flush=True)
                    figures.append(figure)
        if chosen.suite:
            for figure in suite_figures(Path(folder)):
                print(figure.line(), flush=True)
                figures.append(figure)
    print(f"load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    if chosen.out is not None:
        document = {"figures": [one.to_dict() for one in figures], "machine": machine(), "load": os.getloadavg()}
        chosen.out.write_text(f"{json.dumps(document, indent=2)}\n")


if __name__ == "__main__":
    main()
