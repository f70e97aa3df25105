"""Launchers: one build command given to several workers, each with its share of the work units.

A worker is the same command again with ``--shard``; workers need no contact, and whoever ends last completes the set.
"""

from embedstore.build.launchers.launch import LAUNCHERS, LaunchRequest, WorkerEnd, WorkerFailedError, launch
from embedstore.build.launchers.slurm import array_script

__all__ = ["LAUNCHERS", "LaunchRequest", "WorkerEnd", "WorkerFailedError", "array_script", "launch"]
