"""Nearest neighbours with patients left out, float64 order and ties by id, against FAISS alone, in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import faiss
import numpy as np
from timing import Case, machine, time_rounds

from evaltools.closeness import ClipPoints
from evaltools.neighbours import nearest

# EchoNet-Dynamic: 7,465 train and 1,277 test clips; 768 dimensions is a ViT-B.
N_GALLERY, N_QUERIES, DIM, K = 7_465, 1_277, 768, 200
LIMIT = 1.3


def points(n: int, *, prefix: str, seed: int) -> ClipPoints:
    """Return float16-rounded Gaussian vectors, a patient each."""
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float16).astype(np.float64)
    ids = np.array([f"{prefix}{row:06d}" for row in range(n)], dtype=object)
    return ClipPoints(vectors, ids, ids)


def bare(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAISS alone: cast, normalise, add, search."""
    placed, asked = gallery.astype(np.float32), queries.astype(np.float32)
    faiss.normalize_L2(placed)
    faiss.normalize_L2(asked)
    index = faiss.IndexFlatIP(DIM)
    index.add(placed)
    scores, rows = index.search(asked, K)
    return scores, rows


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    queries, gallery = points(N_QUERIES, prefix="q", seed=1), points(N_GALLERY, prefix="g", seed=2)
    cases = {
        "faiss": Case(lambda: bare(queries.vectors, gallery.vectors)),
        "order in float64": Case(lambda: nearest(queries, gallery, k=K, exact_scores=False)),
        "order and scores in float64": Case(lambda: nearest(queries, gallery, k=K)),
    }
    for case in cases.values():
        case.run()
    seconds = time_rounds(cases, rounds=chosen.rounds)
    ratio = seconds["order in float64"] / seconds["faiss"]
    print(f"{N_QUERIES:,} queries on {N_GALLERY:,} x {DIM}, k = {K}, median of {chosen.rounds} rounds")
    for name, time in seconds.items():
        print(f"{name:28s} {time:7.3f} s   {time / seconds['faiss']:5.2f} x")
    print(f"limit for the order in float64: {LIMIT} x; {'held' if ratio <= LIMIT else 'MISSED'}")
    if chosen.out is not None:
        document = {"seconds": seconds, "ratio": ratio, "limit": LIMIT, "machine": machine()}
        chosen.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
