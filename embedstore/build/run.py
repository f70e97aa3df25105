"""`build_sets`: from manifests and encoders to committed sets. The library function behind ``embedstore build``."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from embedstore.build.bank_owner import BankOwner
from embedstore.build.banks import embed_banks
from embedstore.build.commit import commit_build, drop_build, drop_stale_builds, open_units
from embedstore.build.lock import build_lock
from embedstore.build.pipeline import EncoderRun, PipelineOptions, run_units
from embedstore.build.plan import BuildPlan, make_plan
from embedstore.build.provenance import provenance_of
from embedstore.build.request import BuildOutcome, BuildRequest, Progress
from embedstore.build.resident import Model, ResidentModels
from embedstore.build.units import read_receipts
from embedstore.build.weights import Weights, find_weights, has_weights
from embedstore.encoder import Encoder, EncoderCard, LoadRequest, encoder_cards, get_card, load_encoder, split_title
from embedstore.errors import CorruptionError, StorageError, UnknownNameError
from embedstore.manifest import Manifest
from embedstore.spec import EncoderSpec, FrameSampling
from embedstore.store import Store
from embedstore.where import parse_where

__all__ = ["BuildOutcome", "BuildRequest", "Progress", "build_sets"]


@dataclass
class _Chosen:
    """One encoder of a request: card, weights, spec; the model is loaded when first needed."""

    card: EncoderCard
    weights: Weights
    spec: EncoderSpec
    residents: ResidentModels
    trusted_sha256: str | None = None
    model: Model | None = None

    def load(self, device: str) -> Encoder:
        if self.model is None:
            # Torch's threads spin at every barrier by default, which starves them when decode workers share the
            # cores (measured: a third of the throughput and less). Read when torch is first imported.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            self.model = Model(partial(load_encoder, self.card, self.owner(device).request), self.residents)
        return self.model

    def owner(self, device: str) -> BankOwner:
        """Return the card with a request to load it."""
        request = LoadRequest(
            spec=self.spec, weights=self.weights.path, device=device, trusted_sha256=self.trusted_sha256
        )
        return BankOwner(self.card, request)


def _choose_encoders(request: BuildRequest, progress: Progress) -> list[_Chosen]:
    titles = list(request.encoders)
    if "all" in titles:
        cards = encoder_cards()
        ready = [name for name, card in cards.items() if name in request.weights or has_weights(card)]
        absent = sorted(set(cards) - set(ready))
        if absent:
            progress.note(f"no weights on this machine for: {', '.join(absent)}")
        titles = [*ready, *(title for title in titles if title != "all" and title not in ready)]
    for option, named in (("--weights", request.weights), ("--trust-checkpoint", request.trusted)):
        unknown = set(named) - {split_title(title)[0] for title in titles}
        if unknown:
            raise UnknownNameError(
                f"{option} names {sorted(unknown)[0]!r}, which is not among the encoders of this build"
            )
    sampling = None if request.sampling is None else FrameSampling(request.sampling)
    residents = ResidentModels()
    chosen = []
    for title in dict.fromkeys(titles):
        name, variant = split_title(title)
        card = get_card(name)
        # Only an encoder that the user names is downloaded; `all` means what is on this machine.
        given = request.weights.get(name)
        weights = find_weights(card, given, download=title in request.encoders, tell=progress.note)
        card = card.fitted(variant=variant or "published", weights=weights.path)
        spec = card.spec(
            variant=variant or "published",
            weights_sha256=weights.sha256,
            sampling=sampling,
            precision=request.precision,
            dtype=request.dtype,
        )
        if card.takes_weights:
            forbids = f", which forbids {card.licence_forbids}" if card.licence_forbids else ""
            progress.note(f"{card.name}: licence {card.licence}{forbids}")
        chosen.append(_Chosen(card, weights, spec, residents, request.trusted.get(name)))
    return chosen


def _select(manifest: Manifest, request: BuildRequest) -> list[bool]:
    selected = [True] * len(manifest)
    if request.where is not None:
        selected = [bool(flag) for flag in parse_where(request.where).mask(manifest.table)]
    if request.limit is not None:
        patients = dict.fromkeys(patient for patient, flag in zip(manifest.patients, selected, strict=True) if flag)
        first = set(list(patients)[: request.limit])
        selected = [flag and patient in first for patient, flag in zip(manifest.patients, selected, strict=True)]
    if not any(selected):
        raise UnknownNameError(f"no clip of manifest {manifest.name!r} fulfils the selection")
    return selected


def _describe(store: Store, plan: BuildPlan, set_id: str, began: float, n_encoded: int) -> BuildOutcome:
    opened = store.open_set(set_id)
    failures = opened.failures.to_pylist()
    arrays = opened.described["arrays"]
    n_ok = min(len(opened), plan.n_expected - len(failures))
    return BuildOutcome(
        dataset=plan.dataset,
        encoder=plan.spec.title,
        set_id=set_id,
        n_expected=plan.n_expected,
        n_ok=n_ok,
        n_failed=len(failures),
        n_reused=max(0, n_ok - n_encoded),
        n_frames=arrays["frames"]["n_rows"] if "frames" in arrays else 0,
        dim=arrays["clips"]["dim"],
        frame_dim=arrays["frames"]["dim"] if "frames" in arrays else None,
        seconds=time.perf_counter() - began,
        reasons=dict(Counter(str(row["reason"]) for row in failures)),
        failed_clips=[(row["clip_id"], row["reason"], row["detail"]) for row in failures],
    )


class _DatasetBuild:
    """All encoders of a request on one manifest."""

    def __init__(
        self, store: Store, manifest: Manifest, root: Path | None, request: BuildRequest, progress: Progress
    ) -> None:
        self._store, self._manifest, self._root = store, manifest, root
        self._request, self._progress = request, progress
        self._selected = _select(manifest, request)
        self._began = time.perf_counter()

    def plan(self, chosen: _Chosen) -> BuildPlan:
        """Plan one encoder."""
        return make_plan(
            self._store,
            self._manifest,
            chosen.spec,
            selected=self._selected,
            root=self._root,
            with_frames=self._request.with_frames,
        )

    def _settle(self, chosen: _Chosen, plan: BuildPlan, folder: Path) -> tuple[BuildPlan, Encoder | None]:
        """Return the plan that counts: the one on disk, else this one with a batch size, written."""
        written = BuildPlan.read(folder)
        asked = self._request.batch_size
        if written is not None and asked is not None and written.batch_size != asked:
            if read_receipts(folder):
                self._progress.note(
                    f"this build of {plan.spec.title} began with batch size {written.batch_size} and goes on with it"
                )
            elif self._request.shard is None:
                shutil.rmtree(folder)
                written = None
        encoder = None
        if written is None:
            batch_size = asked
            if plan.units:
                encoder = chosen.load(self._request.device)
                kind = getattr(encoder, "device", "cpu").partition(":")[0]
                batch_size = asked or chosen.card.batch_size.get(kind, chosen.card.batch_size["cpu"])
            replace(plan, batch_size=batch_size).write(folder)
            written = BuildPlan.read(folder)
            assert written is not None
        if encoder is None and open_units(written, folder):
            encoder = chosen.load(self._request.device)
        return written, encoder

    def run(self, encoders: Sequence[_Chosen]) -> list[BuildOutcome]:
        """Build every encoder's set, decoding each clip once."""
        plans = [(chosen, self.plan(chosen)) for chosen in encoders]
        if self._request.dry_run:
            return [self._dry(plan) for _, plan in plans]
        outcomes: dict[str, BuildOutcome] = {}
        shard = self._request.shard
        with ExitStack() as stack:
            for _, plan in plans:
                if not plan.is_done:
                    stack.enter_context(build_lock(self._store.layout.builds, plan.key, shared=shard is not None))
            # What was committed while we waited for nobody's lock may have changed the plans: make them again.
            plans = [(chosen, self.plan(chosen)) for chosen in encoders]
            runs: list[EncoderRun] = []
            settled: list[tuple[_Chosen, BuildPlan, Path, Encoder | None, int]] = []
            for chosen, plan in plans:
                if plan.is_done:
                    assert plan.parent is not None
                    self._store.confirm()
                    outcomes[plan.spec.title] = _describe(self._store, plan, plan.parent, self._began, 0)
                    continue
                folder = self._store.layout.build_folder(plan.key)
                written, encoder = self._settle(chosen, plan, folder)
                units = open_units(written, folder)
                mine = [unit for unit in units if shard is None or unit % shard[1] == shard[0]]
                n_encoded = sum(map(written.units.n_clips, mine))
                settled.append((chosen, written, folder, encoder, n_encoded))
                if mine and encoder is not None:
                    runs.append(EncoderRun(plan=written, encoder=encoder, folder=folder, units=mine))
            specs = [plan.spec for _, plan in plans]
            plans.clear()  # the plans on disk are followed, which take no memory
            self._encode(runs)
            for chosen, plan, folder, encoder, n_encoded in settled:
                outcomes[plan.spec.title] = self._commit(chosen, plan, folder, encoder, n_encoded)
        for spec in specs:
            drop_stale_builds(self._store, self._manifest.name, spec.fingerprint)
        return [outcomes[spec.title] for spec in specs]

    def _encode(self, runs: Sequence[EncoderRun]) -> None:
        if not runs:
            return
        total = len({clip.clip_id for run in runs for clips in run.clips_of.values() for clip in clips})
        self._progress.begin(self._manifest.name, total)
        n_workers = self._request.n_workers
        options = PipelineOptions(
            n_workers=max(1, len(os.sched_getaffinity(0)) - 1) if n_workers is None else n_workers,
            stop_on_error=self._request.stop_on_error,
            on_clip=self._progress.clip,
            block_bytes=self._request.block_bytes,
        )
        try:
            run_units(self._manifest, runs, root=self._root, options=options)
        except StorageError:
            # Another worker may have finished our units too, and committed; then nothing is lost.
            if all((run.folder / "plan.json").exists() for run in runs):
                raise

    def _committed_elsewhere(self, chosen: _Chosen) -> BuildOutcome:
        plan = self.plan(chosen)
        if not plan.is_done or plan.parent is None:
            raise StorageError(f"the build of {plan.spec.title} vanished while it ran; run the same command again")
        return _describe(self._store, plan, plan.parent, self._began, 0)

    def _commit(
        self, chosen: _Chosen, plan: BuildPlan, folder: Path, encoder: Encoder | None, n_encoded: int
    ) -> BuildOutcome:
        if not (folder / "plan.json").exists():
            return self._committed_elsewhere(chosen)
        still_open = open_units(plan, folder)
        if still_open:
            seconds = time.perf_counter() - self._began
            done = read_receipts(folder).values()
            return BuildOutcome(
                dataset=plan.dataset,
                encoder=plan.spec.title,
                set_id=None,
                n_expected=plan.n_expected,
                n_ok=sum(receipt.rows["clips"] for receipt in done),
                n_failed=sum(receipt.rows["failures"] for receipt in done),
                n_reused=0,
                n_frames=sum(receipt.rows.get("frames", 0) for receipt in done),
                dim=plan.spec.clip_dim,
                frame_dim=plan.spec.frame_dim,
                seconds=seconds,
                units_open=len(still_open),
            )
        wall_s = time.perf_counter() - self._began
        provenance = provenance_of(plan, read_receipts(folder).values(), wall_seconds=wall_s)
        reason = f"build {plan.spec.title} on {plan.dataset}"
        try:
            set_id = commit_build(self._store, plan, folder, provenance=provenance, reason=reason)
        except (StorageError, CorruptionError):
            if (folder / "plan.json").exists():
                raise
            return self._committed_elsewhere(chosen)
        drop_build(folder, set_id)
        outcome = _describe(self._store, plan, set_id, self._began, n_encoded)
        rest = len(self._manifest) - sum(self._selected)
        if self._request.limit is not None and n_encoded:
            return replace(outcome, rest_seconds=rest * outcome.seconds / n_encoded)
        return outcome

    def _dry(self, plan: BuildPlan) -> BuildOutcome:
        counts = plan.clips.counts
        listed = ", ".join(f"{count} {action}" for action, count in sorted(counts.items()))
        return BuildOutcome(
            dataset=plan.dataset,
            encoder=plan.spec.title,
            set_id=None,
            n_expected=plan.n_expected,
            n_ok=0,
            n_failed=counts["fail"],
            n_reused=counts["keep"] + counts["copy"] + counts["twin"],
            n_frames=0,
            dim=plan.spec.clip_dim,
            frame_dim=plan.spec.frame_dim,
            seconds=time.perf_counter() - self._began,
            units_open=len(plan.units),
            note=f"would: {listed or 'nothing'}",
        )


def build_sets(store: Store, request: BuildRequest, *, progress: Progress | None = None) -> list[BuildOutcome]:
    """Build the sets of a request and commit each that is complete; then embed prompt banks and store heads.

    What becomes of the banks is told to ``progress``; it never loses a set.

    Parameters
    ----------
    store : Store
    request : BuildRequest
    progress : Progress, optional

    Returns
    -------
    list of BuildOutcome
        One for each manifest and encoder, in the order asked for.

    Raises
    ------
    UnknownNameError
        An encoder, manifest, column or weights file is not known.
    NothingDecodedError
        Not one clip of a data set could be decoded.
    BusyError
        Another live build of one of the sets runs on this host.
    """
    told = progress or Progress()
    names = request.manifests or tuple(entry.name for entry in store.manifests())
    if not names:
        raise UnknownNameError(
            f"the store at {store.layout.root} has no manifest; add one with embedstore manifest add FILE"
        )
    encoders = _choose_encoders(request, told)
    outcomes: list[BuildOutcome] = []
    for name in names:
        manifest = store.manifest(name)
        root = request.roots.get(manifest.name, request.roots.get("", store.roots().get(manifest.name)))
        if name not in {entry.name for entry in store.manifests()}:
            store.add_manifest(manifest, root=root)
        if root is None:
            told.note(f"no media root is known for {manifest.name!r}; give one with --root {manifest.name}=DIR")
        outcomes += _DatasetBuild(store, manifest, root, request, told).run(encoders)
    if not request.dry_run:
        unfinished = {outcome.encoder for outcome in outcomes if outcome.units_open}
        owners = [chosen.owner(request.device) for chosen in encoders if chosen.spec.title not in unfinished]
        encoders.clear()  # makes room for the text towers
        embed_banks(store, owners, note=told.note, done=told.bank)
    return outcomes
