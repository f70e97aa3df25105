"""`PromptAnswers`: what the rules of zero-shot say of the clips of a table, and with which prompts left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import ContentError, UnknownNameError, VectorError
from evaltools.cohort import NotRunnableError
from evaltools.features import VectorSource, pool_by_blocks
from evaltools.fitting import Targets
from evaltools.metrics import Codes, Floats
from evaltools.prompt_bank import BankSource, TaskPrompts, read_prompts, require_dims
from evaltools.task import Task
from evaltools.unfitted import Answers, UnfittedProtocol
from evaltools.zeroshot_rules import (
    VALUE_RULES,
    class_means,
    f1_threshold,
    shares_above,
    softmax,
    text_axis,
    unit_rows,
)

__all__ = ["AskedSet", "PromptAnswers"]

Rows = npt.NDArray[np.intp]
Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AskedSet:
    """One set of vectors, the prompts it is asked, and which of its vectors are: ``frames`` or ``clip``."""

    source: VectorSource
    bank: BankSource
    prompts: TaskPrompts
    pool: str

    @classmethod
    def of(cls, source: VectorSource, bank: BankSource, task: Task) -> AskedSet:
        """Read the prompts of a task, and say which vectors have their dimensions: the frames, else the clips.

        Raises
        ------
        MissingVectorsError
            The bank has no prompts of the task.
        VectorError
            Neither has, or a prompt vector is not finite.
        """
        prompts = read_prompts(bank, task)
        dims, frames = prompts.vectors.shape[1], source.array("frames")
        if frames is not None and frames.shape[1] == dims:
            return cls(source, bank, prompts, "frames")
        require_dims(bank, source.clips.shape[1], title=source.spec.title, dataset=source.dataset)
        return cls(source, bank, prompts, "clip")

    @property
    def pooled(self) -> tuple[VectorSource, str]:
        """The set, and the pooling of `evaltools.features` whose vectors it must have."""
        return self.source, "mean" if self.pool == "frames" else "clip"


@dataclass(frozen=True, eq=False)
class PromptAnswers:
    """Answers of one set of vectors.

    Attributes
    ----------
    asked : AskedSet
    rows : (n,) int
        Rows of the set's index, in the order of the table's clips.
    targets : Targets
    protocol : UnfittedProtocol
    class_of : mapping of str to str
        Class of the labels that each class of the prompts is.
    """

    asked: AskedSet
    rows: Rows
    targets: Targets
    protocol: UnfittedProtocol
    class_of: Mapping[str, str]

    @property
    def _rule(self) -> Mapping[str, Any]:
        return self.protocol.rules[self.targets.kind]

    def answers(self, *, noise_seed: int | None = None, kept: Kept | None = None) -> Answers:
        """Return what the rule says.

        Parameters
        ----------
        noise_seed : int or None
            Of Gaussian vectors in place of the stored ones.
        kept : (P,) bool or None
            The prompts that are asked; all without.

        Raises
        ------
        VectorError
            A vector is not finite.
        NotRunnableError
            A threshold is to be found on train, which lacks one of the two.
        """
        chosen = np.ones(len(self.asked.prompts), dtype=np.bool_) if kept is None else kept
        if self.targets.kind == "regression":
            prompts = self.asked.prompts.take(chosen)
            if self._rule["rule"] == "axis":
                means = self._means if noise_seed is None else self._pooled(noise_seed)
                return self._along(self._whole(unit_rows(means) @ text_axis(prompts.vectors, prompts.values)))
            values = self._whole(self._values(prompts, noise_seed))
            return Answers(predict=lambda labels: values)
        means = self._means if noise_seed is None else self._pooled(noise_seed)
        return self._classified(means, chosen)

    def places_on_axis(self) -> Floats:
        """Return where each clip stands along the text axis of the numbers, (n,)."""
        axis = text_axis(self.asked.prompts.vectors, self.asked.prompts.values)
        return self._whole(unit_rows(self._means) @ axis)

    @cached_property
    def _needed(self) -> Codes:
        """Positions of the clips whose answers are looked at: test, and train where something is found on it."""
        on_train = self._rule.get("decide") == "threshold" or self._rule.get("rule") == "axis"
        return np.unique(np.concatenate([self.targets.test, self.targets.train if on_train else []])).astype(np.intp)

    def _whole(self, answered: Floats) -> Floats:
        """Return answers of all clips (n, ...), NaN where none was needed."""
        if len(answered) == len(self.rows):
            return answered
        whole = np.full((len(self.rows), *answered.shape[1:]), np.nan)
        whole[self._needed] = answered
        return whole

    @cached_property
    def _means(self) -> Floats:
        """Mean of the unit frame vectors of each needed clip; of a set without frames the unit clip vectors."""
        return self._pooled(None)

    def _pooled(self, noise_seed: int | None) -> Floats:
        """Return the means of the needed clips, or those of Gaussian vectors in place of every clip's."""
        rows, noise = self._rows(noise_seed)
        if self.asked.pool == "clip":
            return self._units(np.asarray(self.asked.source.clips[rows]), noise)

        def pool(frames: npt.NDArray[np.float32], _: Rows, starts: Rows, counts: Rows) -> Floats:
            mean: Floats = np.add.reduceat(self._units(frames, noise), starts, axis=0) / counts[:, None]
            return mean

        return pool_by_blocks(self.asked.source, rows, pool)

    def _rows(self, noise_seed: int | None) -> tuple[Rows, np.random.Generator | None]:
        """Return the rows of the index that are read, and what makes noise."""
        if noise_seed is None:
            return self.rows[self._needed], None
        return self.rows, np.random.default_rng(noise_seed)

    def _values(self, prompts: TaskPrompts, noise_seed: int | None) -> Floats:
        rows, noise = self._rows(noise_seed)
        rule = partial(VALUE_RULES[self._rule["rule"]], share=self._rule["top_share"])
        if self.asked.pool == "clip":
            units = self._units(np.asarray(self.asked.source.clips[rows]), noise)
            each = np.arange(len(units))
            return rule(units @ prompts.vectors.T, prompts.values, each, np.ones_like(each))

        def pool(frames: npt.NDArray[np.float32], _: Rows, starts: Rows, counts: Rows) -> Floats:
            values = rule(self._units(frames, noise) @ prompts.vectors.T, prompts.values, starts, counts)
            return values[:, None]

        return pool_by_blocks(self.asked.source, rows, pool)[:, 0]

    def _units(self, vectors: npt.NDArray[Any], noise: np.random.Generator | None) -> Floats:
        if noise is not None:
            return unit_rows(noise.standard_normal(vectors.shape))
        units = unit_rows(vectors)
        if not np.isfinite(units).all():
            raise VectorError(
                f"vectors of {self.asked.source.spec.title} on {self.asked.source.dataset} are not finite; run "
                "embedstore verify and build them again"
            )
        return units

    def _classified(self, means: Floats, kept: Kept) -> Answers:
        position = {name: code for code, name in enumerate(self.targets.classes)}
        codes = np.array([position[self.class_of[name]] for name in self.asked.prompts.classes[kept]], dtype=np.intp)
        spoken, dense = np.unique(codes, return_inverse=True)
        vectors = self.asked.prompts.vectors[kept]
        if self._rule["decide"] == "threshold":
            return self._thresholded(means, vectors[self._positive(codes)])
        units = unit_rows(means)
        if self.protocol.name.startswith("softmax"):
            shares = softmax(units @ _class_vectors(vectors, dense, len(spoken)).T * self._logit_scale())
        else:
            shares = softmax(class_means(units @ vectors.T, dense, len(spoken)))
        spread = np.zeros((len(means), len(position)))
        spread[:, spoken] = shares
        spread = self._whole(spread)
        return Answers(predict=lambda labels: spread)

    def _positive(self, codes: Codes) -> Kept:
        classes = self.targets.classes
        if len(classes) != 2:
            raise UnknownNameError(
                f"protocol {self.protocol.name!r} decides by a threshold between two classes, and there are "
                f"{len(classes)} ({', '.join(classes)}); use cardiobench or softmax"
            )
        positive: Kept = codes == 1
        if not positive.any():
            raise ContentError(f"the bank {self.asked.bank.name!r} has no prompts for the class {classes[1]!r}")
        return positive

    def _thresholded(self, means: Floats, positive: Floats) -> Answers:
        of_image = means if self._rule["image"] == "mean of the unit frame vectors" else unit_rows(means)
        scores = self._whole((of_image @ positive.T).mean(axis=1))
        train = self.targets.train
        if len(set(self.targets.values[train].tolist())) < 2:
            raise NotRunnableError(
                f"protocol {self.protocol.name!r} finds its threshold on labelled training clips of both classes, "
                "and train lacks one; use --set decide=argmax"
            )

        def threshold(labels: npt.NDArray[Any]) -> float:
            return f1_threshold(scores[train], labels[train] == 1)

        return Answers(
            predict=lambda labels: shares_above(scores, threshold(labels)),
            chosen=lambda labels: {"threshold": threshold(labels), "threshold_from": f"{len(train)} clips of train"},
            calibrated=True,
        )

    def _along(self, along: Floats) -> Answers:
        """Return answers from where clips stand along an axis, (n,)."""
        train = self.targets.train
        if len(train) < 2 or np.ptp(along[train]) == 0:
            raise NotRunnableError(f"protocol {self.protocol.name!r} needs labelled training clips to find its line")
        centre = along[train].mean()
        spread = float(np.sum((along[train] - centre) ** 2))

        def line(labels: npt.NDArray[Any]) -> tuple[float, float]:
            # The direction is the text's: an axis that runs against the labels must not be turned round by them.
            slope = abs(float((along[train] - centre) @ (labels[train] - labels[train].mean())) / spread)
            return slope, float(labels[train].mean() - slope * centre)

        def predict(labels: npt.NDArray[Any]) -> Floats:
            slope, offset = line(labels)
            predicted: Floats = slope * along + offset
            return predicted

        return Answers(
            predict=predict,
            chosen=lambda labels: dict(zip(("slope", "offset"), line(labels), strict=True)),
            calibrated=True,
        )

    def _logit_scale(self) -> float:
        scale = self.asked.bank.spec.get("logit_scale")
        if scale is None:
            raise ContentError(
                f"the bank {self.asked.bank.name!r} of {self.asked.bank.encoder} states no logit scale; use the "
                "protocol cardiobench"
            )
        return float(scale)


def _class_vectors(vectors: Floats, dense: Codes, n_classes: int) -> Floats:
    """Return the mean prompt vector of each class at unit length, (K, D)."""
    sums = np.zeros((n_classes, vectors.shape[1]))
    np.add.at(sums, dense, vectors)
    return unit_rows(sums)
