"""Which banks a job of a suite reads, so that adding a bank that it does not read leaves its results as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embedstore import Store, VectorBank
from evaltools.candidates import VIEW_ENCODER
from evaltools.zeroshot_protocols import is_retrieval

__all__ = ["BankReads"]


class BankReads:
    """The banks of a store, read once, as the jobs of a suite find them.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._banks = store.banks()
        self._viewers = {entry.dataset: entry.set_id for entry in store.entries() if entry.encoder == VIEW_ENCODER}
        self._weights: dict[str, str | None] = {}

    def of_job(self, command: str, protocol: str, *, dataset: str, sets: Mapping[str, str]) -> list[list[str]]:
        """Return what a job reads beside its sets of vectors, as JSON values for its digest.

        Parameters
        ----------
        command, protocol : str
        dataset : str
        sets : mapping of str to str
            Set id of each title.
        """
        if command not in ("zeroshot", "heads"):
            return []
        retrieves = command == "zeroshot" and is_retrieval(protocol)
        kind = "heads" if command == "heads" else "candidates" if retrieves else "prompts"
        read = [bank for title, set_id in sets.items() for bank in self._fitting(kind, title.split("@")[0], set_id)]
        found = _named(read)
        if retrieves and dataset in self._viewers:  # views are told by the heads of another encoder
            viewer = self._viewers[dataset]
            found.append(["viewer", VIEW_ENCODER, dataset, viewer])
            found += _named(self._fitting("heads", VIEW_ENCODER, viewer))
        return found

    def _fitting(self, kind: str, encoder: str, set_id: str) -> list[VectorBank]:
        """Return the banks of a kind that a set can be asked with: of its encoder and, where stated, its weights.

        Several where the set would be refused as ambiguous: then all of them decide what comes of it.
        """
        found = [bank for bank in self._banks if (bank.kind, bank.encoder) == (kind, encoder)]
        if len(found) < 2:
            return found
        if set_id not in self._weights:
            self._weights[set_id] = self._store.open_set(set_id).spec.weights_sha256
        wanted = self._weights[set_id]
        return [bank for bank in found if wanted in (None, bank.weights_sha256)]


def _named(banks: Sequence[VectorBank]) -> list[list[str]]:
    """Return what stands for banks in a digest, each once."""
    named = {bank.bank_id: [bank.kind, bank.encoder, bank.name, bank.bank_id] for bank in banks}
    return list(named.values())
