"""Recall: what is left of a classification where every scored clip is of one class, as in a data set of one view.

The share of clips that are called by that class; there is no other class to confuse it with, so nothing else has a
meaning, and no permutation of labels that are all the same.
"""

from __future__ import annotations

from dataclasses import replace

from evaltools.result import Result

__all__ = ["as_recall", "is_of_one_class"]

_NAME = "recall"


def is_of_one_class(result: Result) -> bool:
    """Return whether a result's scored clips are all of one class."""
    return result.task.kind == "classification" and len(set(result.predictions.y_true.tolist())) == 1


def as_recall(result: Result) -> Result:
    """Return a result of one class as what it is.

    Parameters
    ----------
    result : Result
        With the metric ``accuracy``; over one class that is its recall.
    """
    name = str(result.predictions.y_true[0])
    note = f"every scored clip is of class {name}, so this is recall: nothing is said of other classes"
    task = result.task.model_copy(update={"metrics": (_NAME,), "main_metric": _NAME})
    known = {control: of for control, of in result.controls.items() if control != "shuffled"}
    near = result.near_duplicates
    if near is not None and near["metrics_without"] is not None:
        near = {**near, "metrics_without": {_NAME: near["metrics_without"]["accuracy"]}}
    return replace(
        result,
        task=task,
        metrics={_NAME: result.metrics["accuracy"]},
        controls={control: {_NAME: of["accuracy"]} for control, of in known.items()},
        groups={
            column: {
                value: replace(scores, metrics={_NAME: scores.metrics["accuracy"]})
                for value, scores in groups.items()
            }
            for column, groups in result.groups.items()
        },
        n_shuffles=0,
        p_shuffled=None,
        near_duplicates=near,
        provenance=replace(result.provenance, notes=(*result.provenance.notes, note)),
    )
