"""Nearest neighbours as an estimator: no weight is learnt, so what is scored is the vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evaltools.closeness import ClipPoints, Space, fewest_candidates
from evaltools.cohort import NotRunnableError
from evaltools.metrics import Codes, Floats, Kind
from evaltools.neighbours import Neighbours, nearest
from evaltools.protocols.base import Probe

__all__ = ["CARDIOBENCH_KS", "DINOV2_KS", "NearestNeighbours", "SplitClips"]

CARDIOBENCH_KS = (1, 3, 5, 7, 9, 11, 15, 21)  # CardioBench, evaluation/vizualizations/fit_tmed2.py
DINOV2_KS = (10, 20, 100, 200)  # DINOv2, dinov2/eval/knn.py
DINOV2_TEMPERATURE = 0.07

_SAME = 1e-12  # distances below this are of equal vectors


@dataclass(frozen=True)
class SplitClips:
    """Whose the rows are that an estimator is given.

    Attributes
    ----------
    clip_ids, patients : mapping of "train", "val", "test" to (n,) object
    """

    clip_ids: Mapping[str, npt.NDArray[Any]]
    patients: Mapping[str, npt.NDArray[Any]]

    def points(self, split: str, X: Floats) -> ClipPoints:
        """Return the vectors (n, D) of a split with their clips.

        Raises
        ------
        ValueError
            The split has another number of rows.
        """
        if len(X) != len(self.clip_ids[split]):
            raise ValueError(f"{len(X)} rows for the {len(self.clip_ids[split])} clips of {split}")
        return ClipPoints(X, self.clip_ids[split], self.patients[split])


def _anonymous(split: str, X: Floats) -> ClipPoints:
    """Rows of nobody in particular, in the order that they have."""
    names = np.array([f"{split}{row:012d}" for row in range(len(X))], dtype=object)
    return ClipPoints(X, names, np.full(len(X), "", dtype=object))


class NearestNeighbours(Probe):
    """Votes, or the weighted mean, of the nearest clips of other patients; k is chosen on validation rows.

    Parameters
    ----------
    kind : {"regression", "classification"}
    ks : sequence of int
        Numbers of neighbours to try; those larger than the set are left out. The best validation accuracy, or least
        squared error, wins, the smaller k at a tie.
    space : Space, optional
        How closeness is measured; cosine without.
    weights : {"uniform", "softmax", "distance"}
        ``softmax`` of scores over a temperature, taken over the largest k, then cut off at k; ``distance`` is its
        inverse, and of neighbours at distance zero they alone count.
    temperature : float
    gallery : {"train", "train+val"}
        Among which clips the neighbours of test clips are looked for; those of validation clips always are in train.
    clips : SplitClips, optional
        Without, rows count as of different patients, and ties are broken by row.

    Attributes
    ----------
    k_ : (T,) int
    ks_ : (S,) int
        Those tried.
    validation_score_ : (S, T) float64
        Accuracy or squared error.
    """

    def __init__(
        self,
        *,
        kind: Kind = "classification",
        ks: Sequence[int] = CARDIOBENCH_KS,
        space: Space | None = None,
        weights: str = "uniform",
        temperature: float = DINOV2_TEMPERATURE,
        gallery: str = "train+val",
        clips: SplitClips | None = None,
    ) -> None:
        self.kind = kind
        self.ks = ks
        self.space = space
        self.weights = weights
        self.temperature = temperature
        self.gallery = gallery
        self.clips = clips

    def fit(self, X: Floats, y: npt.NDArray[Any], *, X_val: Floats, y_val: npt.NDArray[Any]) -> Self:
        """Choose k and keep the gallery.

        Parameters
        ----------
        X, X_val : (n, D), (m, D)
        y, y_val : (n,) or (n, T); (m,) or (m, T)
            Numbers, or classes 0 to K - 1; T targets share the search.

        Raises
        ------
        NotRunnableError
            Every k is larger than the set, or the classes are more than the neighbours.
        """
        self._single = y.ndim == 1
        targets, targets_val = y.reshape(len(y), -1), y_val.reshape(len(y_val), -1)
        train, val = self._points("train", X), self._points("val", X_val)
        self.n_classes_ = int(targets.max()) + 1 if self.kind == "classification" else 0
        self.ks_ = self._ks_that_fit(fewest_candidates(val, train))
        found = self._nearest(val, train, int(self.ks_[-1]))
        scores = [self._score(predicted, targets_val) for _, predicted in self._path(found, targets)]
        self.validation_score_ = np.stack(scores)
        better = self.validation_score_ if self.kind == "classification" else -self.validation_score_
        self.k_ = self.ks_[better.argmax(axis=0)]
        self._labels = targets if self.gallery == "train" else np.concatenate([targets, targets_val])
        self._gallery = train if self.gallery == "train" else train.joined(val)
        return self

    def _points(self, split: str, X: Floats) -> ClipPoints:
        X = np.asarray(X, dtype=np.float64)
        return _anonymous(split, X) if self.clips is None else self.clips.points(split, X)

    def _ks_that_fit(self, available: int) -> Codes:
        ks = np.array([k for k in sorted(set(self.ks)) if k <= available], dtype=np.intp)
        if not len(ks):
            raise NotRunnableError(
                f"k is {min(self.ks)} at least, and only {available} training clips of other patients can be "
                "neighbours; give a smaller --k"
            )
        if ks[-1] < self.n_classes_:
            raise NotRunnableError(
                f"k is {ks[-1]} at most for {self.n_classes_} classes, and fewer neighbours than classes cannot vote "
                f"on all of them; give --k {self.n_classes_} or more"
            )
        return ks

    def _nearest(self, queries: ClipPoints, gallery: ClipPoints, k: int) -> Neighbours:
        return nearest(queries, gallery, k=k, space=self.space, exact_scores=self.weights == "distance")

    def _weights(self, scores: Floats) -> Floats:
        if self.weights == "uniform":
            return np.ones_like(scores)
        if self.weights == "softmax":
            powers = np.exp((scores - scores[:, :1]) / self.temperature)
            softmax: Floats = powers / powers.sum(axis=1, keepdims=True)
            return softmax
        distances = (self.space or Space()).distances(scores)
        if (self.space or Space()).title == "inner product":
            raise NotRunnableError("an inner product is no distance to weigh by; use --metric l2 or --normalize")
        same = distances <= _SAME
        inverse = 1.0 / np.where(same, 1.0, distances)
        return np.where(same.any(axis=1, keepdims=True), same.astype(np.float64), inverse)

    def _path(self, found: Neighbours, targets: npt.NDArray[Any]) -> Iterator[tuple[int, Floats]]:
        """Yield each k with its predictions: values (m, T), or shares of the votes (m, T, K)."""
        weights = self._weights(found.scores)
        m, n_targets = len(weights), targets.shape[1]
        shape = (m, n_targets, self.n_classes_) if self.kind == "classification" else (m, n_targets)
        votes, total, before = np.zeros(shape), np.zeros(m), 0
        for k in self.ks_:
            if k > found.rows.shape[1]:
                return
            labels, new = targets[found.rows[:, before:k]], weights[:, before:k]
            total += new.sum(axis=1)
            if self.kind == "classification":
                for code in range(self.n_classes_):
                    votes[:, :, code] += np.einsum("mk,mkt->mt", new, labels == code)
            else:
                votes += np.einsum("mk,mkt->mt", new, labels)
            before = int(k)
            yield int(k), votes / total.reshape(m, *[1] * (votes.ndim - 1))

    def _score(self, predicted: Floats, truth: npt.NDArray[Any]) -> Floats:
        if self.kind == "classification":
            accuracy: Floats = np.mean(predicted.argmax(axis=2) == truth, axis=0)
            return accuracy
        squared: Floats = np.mean((predicted - truth) ** 2, axis=0)
        return squared

    def predict_scored(self, X: Floats) -> Floats:
        """Return values (m,) or (m, T), or shares of the votes (m, K) or (m, T, K)."""
        queries = self._points("test", X)
        # The softmax is over the largest k, so the search is too, whatever k was chosen.
        found = self._nearest(queries, self._gallery, int(self.ks_[-1]))
        predictions: Floats | None = None
        for k, predicted in self._path(found, self._labels):
            predictions = np.empty_like(predicted) if predictions is None else predictions
            predictions[:, self.k_ == k] = predicted[:, self.k_ == k]
        assert predictions is not None
        return predictions[:, 0] if self._single else predictions

    def predict(self, X: Floats) -> npt.NDArray[Any]:
        """Return values, or classes, (m,) or (m, T)."""
        scored = self.predict_scored(X)
        return scored.argmax(axis=-1) if self.kind == "classification" else scored

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON values."""
        space = self.space or Space()
        weighing = {"temperature": self.temperature, "softmax_over": "largest k, cut off at k, divided by the sum"}
        return {
            "method": "nearest neighbours of other patients, exact search, ties by clip id",
            "ks": [int(k) for k in self.ks],
            "metric": space.metric,
            "normalize": space.normalize,
            "weights": self.weights,
            **(weighing if self.weights == "softmax" else {}),
            "choose_by": "validation accuracy" if self.kind == "classification" else "validation mean squared error",
            "gallery": self.gallery,
        }

    def chosen(self) -> dict[str, Any]:
        """Return the chosen k of the first target, and what each k that was tried scored on validation."""
        scores = {str(k): float(score) for k, score in zip(self.ks_, self.validation_score_[:, 0], strict=True)}
        return {"k": int(self.k_[0]), "validation": scores}
