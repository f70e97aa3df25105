"""The store against a plain Python model: write, kill, commit, tag, diff, sweep and forget in any order."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from read_once import age_everything, forget_all, is_known, make_known, read_files_once, stamps_of
from small_sets import content_of, expected_content, kill_at, manifest_of, spec_of, where_found, write_set

from embedstore import disk
from embedstore.errors import ContentError, StorageError, UnknownNameError
from embedstore.snapshot.diff import diff_snapshots
from embedstore.snapshot.references import needed
from embedstore.snapshot.tags import create_tag, delete_tag, find_snapshot, list_tags
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store
from embedstore.upkeep.forget import forget_patient
from embedstore.upkeep.gc import collect_garbage

DATASETS = ("mine", "yours")
SPECS = {name: spec_of(name) for name in ("small", "wide")}
TAGS = ("v1", "v2", "v3")
NUMBERS = st.integers(0, 4)
# One step in four is killed, or meets a full disk, at one of its operations on files (about 60 to write and commit).
OPERATIONS = st.sampled_from([None] * 270 + list(range(1, 91)))
HOUR = 3600.0
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many small files, none to outlive the test


@dataclass(frozen=True)
class SetContent:
    """A set: the version of each clip, in order, and the clips that failed."""

    dataset: str
    encoder: str
    clips: tuple[tuple[str, int], ...]
    failed: frozenset[str]

    @property
    def all_clips(self) -> set[str]:
        return {clip_id for clip_id, _ in self.clips} | self.failed


@dataclass
class Model:
    """What the store must hold. Sets and manifests are known by id once they were written."""

    sets: dict[str, SetContent] = field(default_factory=dict)
    manifests: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    snapshots: dict[str, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ended_tags: set[str] = field(default_factory=set)
    lost: dict[str, set[str]] = field(default_factory=dict)
    # Sets and manifests that held a patient who was forgotten, and that no commit lists since.
    forgotten: set[str] = field(default_factory=set)
    # Days since the beginning when a set or manifest was last of use; None where a kill leaves it open.
    last_use: dict[str, int | None] = field(default_factory=dict)
    day: int = 0

    @property
    def head(self) -> tuple[frozenset[str], frozenset[str]]:
        return self.snapshots[self.log[-1]] if self.log else (frozenset(), frozenset())

    def needed(self) -> set[str]:
        kept = set().union(*self.head)
        for name, snapshot_id in self.tags.items():
            kept |= set().union(*self.snapshots[snapshot_id]) - self.lost.get(name, set())
        return kept


class StoreMachine(RuleBasedStateMachine):
    """Steps on a real store and on the model; invariants compare them after every step."""

    lengths: list[int]  # of the examples so far: steps, the beginning among them

    @initialize()
    def begin(self) -> None:
        self.lengths.append(0)
        forget_all()
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        self.store = Store.create(self.folder / "store")
        self.model = Model()
        self.was_written = True
        # Something to tag, replace and forget from the first step on.
        for dataset in DATASETS:
            self.add_manifest(name=dataset, owners={0: 0, 1: 0, 2: 1, 3: 2, 4: 1}, kill=None, fail=None)
            versions = {2: 1, 0: 1, 4: 1, 3: 1}
            self.build(dataset, "small", versions, frozenset({1}), kill=None, fail=None)

    def teardown(self) -> None:
        disk.fault_hook = None
        forget_all()
        # Whatever was read once while it stayed the same is read again at the end.
        outcome = verify_store(self.store, quick=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert outcome.ok, outcome.problems

    # -- helpers --------------------------------------------------------------------------------------------

    def on_disk(self) -> set[str]:
        layout = self.store.layout
        sets = {path.name for path in layout.sets.iterdir() if not path.name.startswith(".")}
        return sets | {path.stem for path in layout.manifests.glob("*.parquet")}

    def use(self, ids: set[str] | frozenset[str], *, maybe: bool = False) -> None:
        self.model.last_use.update(dict.fromkeys(ids, None if maybe else self.model.day))

    def follow_head(self) -> bool:
        """Take over a commit that the store made, and note what it dropped; return whether there was one."""
        entries = self.store.log()
        if len(entries) == len(self.model.log):
            return False
        assert len(entries) == len(self.model.log) + 1
        before = set().union(*self.model.head)
        snapshot = self.store.snapshot()
        sets = frozenset(entry.set_id for entry in snapshot.sets)
        manifests = frozenset(entry.manifest_id for entry in snapshot.manifests)
        self.model.log.append(entries[0].snapshot_id)
        self.model.snapshots[entries[0].snapshot_id] = (sets, manifests)
        after = set(sets | manifests)
        self.model.forgotten -= after
        self.use(before - after)
        self.use(after - before)
        return True

    def attempt(self, act: Callable[[], object], kill: int | None, fail: int | None) -> bool:
        """Act whole, killed at an operation, or with a full disk at one; return whether it came to its end."""
        if kill is not None:
            return not kill_at(kill, act)
        seen = 0

        def hook(operation: str, path: Path) -> None:
            nonlocal seen
            seen += 1
            if seen == fail:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.fault_hook = hook
        try:
            act()
        except StorageError as error:
            assert "the disk is full" in str(error)
            return False
        finally:
            disk.fault_hook = None
        return True

    # -- rules ----------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(DATASETS),
        owners=st.dictionaries(NUMBERS, st.integers(0, 2), min_size=1),
        kill=OPERATIONS,
        fail=OPERATIONS,
    )
    def add_manifest(self, name: str, owners: dict[int, int], kill: int | None, fail: int | None) -> None:
        patients = {f"{name}-clip{clip}": f"{name}-pat{owner}" for clip, owner in owners.items()}
        manifest = manifest_of(patients, name=name)
        self.was_written = True
        self.model.manifests[manifest.id] = (name, patients)
        done = self.attempt(lambda: self.store.add_manifest(manifest), kill, fail)
        committed = self.follow_head()
        if done:
            assert manifest.id in self.model.head[1]
        elif not committed and manifest.id in self.on_disk():
            self.use({manifest.id}, maybe=True)

    @rule(
        dataset=st.sampled_from(DATASETS),
        encoder=st.sampled_from(sorted(SPECS)),
        versions=st.dictionaries(NUMBERS, st.integers(1, 2), min_size=1),
        failed=st.frozensets(NUMBERS, max_size=2),
        kill=OPERATIONS,
        fail=OPERATIONS,
    )
    def build(
        self,
        dataset: str,
        encoder: str,
        versions: dict[int, int],
        failed: frozenset[int],
        kill: int | None,
        fail: int | None,
    ) -> None:
        clips = {f"{dataset}-clip{clip}": version for clip, version in versions.items()}
        failures = frozenset(f"{dataset}-clip{clip}" for clip in failed - set(versions))
        content = SetContent(dataset, encoder, tuple(clips.items()), failures)
        before = self.on_disk()
        self.was_written = True

        def act() -> None:
            with self.store.publishing():
                entry = write_set(self.store, clips, dataset=dataset, spec=SPECS[encoder], failed=sorted(failures))
                self.store.commit(lambda head: head.with_set(entry), reason="build")

        done = self.attempt(act, kill, fail)
        if not self.follow_head():
            self.use({set_id for set_id, known in self.model.sets.items() if known == content}, maybe=True)
        new = {name for name in self.on_disk() - before if name not in self.model.manifests}
        assert len(new) <= 1
        for set_id in new:
            assert content_of(self.store.open_set(set_id)) == expected_content(clips, SPECS[encoder])
            self.model.sets[set_id] = content
            self.use({set_id}, maybe=set_id not in self.model.head[0])
        if done:
            assert [self.model.sets[set_id] for set_id in self.model.head[0]].count(content) == 1

    @rule(
        dataset=st.sampled_from(DATASETS),
        versions=st.dictionaries(NUMBERS, st.integers(1, 2), min_size=2),
        name=st.none() | st.sampled_from(TAGS),
        grace_h=st.none() | st.sampled_from([0.0, 24.0]),
    )
    def build_over(self, dataset: str, versions: dict[int, int], name: str | None, grace_h: float | None) -> None:
        """What happens most: the head is tagged or not, a set is replaced, what it left is swept or not."""
        if name is not None:
            self.tag(name=name, choice=len(self.model.log) - 1)
        self.build(dataset, "small", versions, frozenset(), kill=None, fail=None)
        self.diff(left=len(self.model.log) - 1, right=max(0, len(self.model.log) - 2))
        if grace_h is not None:
            self.gc(grace_h=grace_h, kill=None)

    @precondition(lambda self: self.model.log)
    @rule(name=st.sampled_from(TAGS), choice=st.integers(0, 1 << 20))
    def tag(self, name: str, choice: int) -> None:
        snapshot_id = self.model.log[choice % len(self.model.log)]
        listed = set().union(*self.model.snapshots[snapshot_id])
        if name in self.model.ended_tags or self.model.tags.get(name, snapshot_id) != snapshot_id:
            with pytest.raises(ContentError, match="already names|was deleted"):
                create_tag(self.store, name, snapshot_id=snapshot_id)
        elif name in self.model.tags:
            create_tag(self.store, name, snapshot_id=snapshot_id)
        elif listed <= self.on_disk():
            create_tag(self.store, name, snapshot_id=snapshot_id)
            self.model.tags[name] = snapshot_id
            self.use(listed)
        else:
            with pytest.raises(ContentError, match="cannot be tagged"):
                create_tag(self.store, name, snapshot_id=snapshot_id)

    @precondition(lambda self: self.model.tags)
    @rule(choice=st.integers(0, 1 << 20))
    def untag(self, choice: int) -> None:
        name = sorted(self.model.tags)[choice % len(self.model.tags)]
        delete_tag(self.store, name)
        self.use(set().union(*self.model.snapshots[self.model.tags.pop(name)]))
        self.model.ended_tags.add(name)

    @precondition(lambda self: len(self.model.log) > 1)
    @rule(left=st.integers(0, 1 << 20), right=st.integers(0, 1 << 20))
    def diff(self, left: int, right: int) -> None:
        ids = [self.model.log[choice % len(self.model.log)] for choice in (left, right)]
        found = diff_snapshots(self.store, *(self.store.snapshot(snapshot_id) for snapshot_id in ids))
        sides = [
            {
                (self.model.sets[s].dataset, self.model.sets[s].encoder): s
                for s in self.model.snapshots[snapshot_id][0]
            }
            for snapshot_id in ids
        ]
        assert {(entry.dataset, entry.encoder) for entry in found.sets} == set(sides[0]) | set(sides[1])
        for entry in found.sets:
            a, b = (side.get((entry.dataset, entry.encoder)) for side in sides)
            assert (entry.set_a, entry.set_b) == (a, b)
            if any(set_id is not None and set_id not in self.on_disk() for set_id in (a, b)):
                assert entry.status == "not-restorable"
                continue
            before, after = (dict(self.model.sets[s].clips) if s else {} for s in (a, b))
            common = before.keys() & after.keys()
            assert set(entry.added) == after.keys() - before.keys()
            assert set(entry.removed) == before.keys() - after.keys()
            assert set(entry.changed) == {clip_id for clip_id in common if before[clip_id] != after[clip_id]}
            assert entry.n_identical == len(common) - len(entry.changed) and entry.n_equivalent == 0
        manifests = [
            {self.model.manifests[m][0]: m for m in self.model.snapshots[snapshot_id][1]} for snapshot_id in ids
        ]
        for line in found.manifests:
            a, b = (side.get(line.name) for side in manifests)
            expected = "added" if a is None else "removed" if b is None else "same" if a == b else "changed"
            assert line.status == expected

    @rule()
    def a_day_passes(self) -> None:
        self.model.day += 1
        age_everything(self.store.layout.root, 24.5 * HOUR)
        self.store = Store.open(self.folder / "store")

    @rule(grace_h=st.sampled_from([0.0, 24.0, 72.0]), kill=OPERATIONS)
    def gc(self, grace_h: float, kill: int | None) -> None:
        before = self.on_disk()
        self.was_written = True
        kept = self.model.needed()
        dry = collect_garbage(self.store, grace_h=grace_h)
        assert self.on_disk() == before

        def act() -> object:
            return collect_garbage(self.store, grace_h=grace_h, apply=True)

        if kill is None or kill_at(kill, act):
            assert self.on_disk() >= kept
            act()
        gone = before - self.on_disk()
        assert not gone & kept
        for name in before - kept:
            last = self.model.last_use.get(name)
            if last is not None:
                # A day passes in steps of 24.5 hours: exactly the graces of 0 and 24 are told from 72 here.
                assert (name in gone) == ((self.model.day - last) * 24.5 >= grace_h), name
        if kill is None:
            assert {leftover.path.stem for leftover in dry.removed if leftover.kind in ("set", "manifest")} >= gone
        assert not list(self.store.layout.sets.glob(".trash-*"))

    def _owners(self, dataset: str) -> dict[str, str]:
        """Whose each clip is, by the newest manifest that is still there."""
        disk = self.on_disk()
        listed = [m for s in reversed(self.model.log) for m in self.model.snapshots[s][1]]
        ordered = [m for m in dict.fromkeys([*listed, *sorted(self.model.manifests)]) if m in disk]
        owner: dict[str, str] = {}
        for manifest_id in ordered:
            name, patients = self.model.manifests[manifest_id]
            if name == dataset:
                for clip_id, patient in patients.items():
                    owner.setdefault(clip_id, patient)
        return owner

    @rule(dataset=st.sampled_from(DATASETS), number=st.integers(0, 2), kill=OPERATIONS)
    def forget(self, dataset: str, number: int, kill: int | None) -> None:
        patient = f"{dataset}-pat{number}"
        self.was_written = True
        disk = self.on_disk()
        theirs = {clip_id for clip_id, owner in self._owners(dataset).items() if owner == patient}
        going = {
            name
            for name in disk & self.model.manifests.keys()
            if self.model.manifests[name][0] == dataset
            and (patient in self.model.manifests[name][1].values() or theirs & self.model.manifests[name][1].keys())
        }
        if not going:
            layout = self.store.layout
            brought_back = {
                name
                for name in self.model.forgotten
                if layout.set_folder(name).exists() or layout.manifest_record(name).exists()
            }
            if not brought_back:
                with pytest.raises(UnknownNameError):
                    forget_patient(self.store, patient, datasets=[dataset], apply=True)
                return
            # A writer that was cut off wrote again what was forgotten: that is cleared up, whoever is named.
            forget_patient(self.store, patient, datasets=[dataset], apply=True)
            assert not brought_back & self.on_disk()
            return
        going |= {
            name
            for name in disk & self.model.sets.keys()
            if self.model.sets[name].dataset == dataset and theirs & self.model.sets[name].all_clips
        }
        head = [self.model.sets[name] for name in self.model.head[0]]
        rows = {self.model.manifests[name][0]: self.model.manifests[name][1] for name in self.model.head[1]}

        def act() -> object:
            return forget_patient(self.store, patient, datasets=[dataset], apply=True)

        if kill is None or kill_at(kill, act):
            assert verify_store(self.store, quick=True).ok
            act()
        for snapshot_id, name in [(snapshot_id, name) for name, snapshot_id in self.model.tags.items()]:
            self.model.lost.setdefault(name, set()).update(set().union(*self.model.snapshots[snapshot_id]) & going)
        for entry in self.store.entries():
            if entry.set_id not in self.model.sets:
                old = next(s for s in head if (s.dataset, s.encoder) == (entry.dataset, entry.encoder))
                left = tuple((clip_id, version) for clip_id, version in old.clips if clip_id not in theirs)
                self.model.sets[entry.set_id] = SetContent(old.dataset, old.encoder, left, old.failed - theirs)
        for line in self.store.manifests():
            if line.manifest_id not in self.model.manifests:
                left_rows = {c: p for c, p in rows[line.name].items() if c not in theirs}
                self.model.manifests[line.manifest_id] = (line.name, left_rows)
        self.follow_head()
        self.model.forgotten |= going
        # The head is what it was, less the patient; nothing that held them is left, not a byte.
        left_sets = [(s, [c for c in s.clips if c[0] not in theirs or s.dataset != dataset]) for s in head]
        assert {
            (self.model.sets[name].dataset, self.model.sets[name].encoder): list(self.model.sets[name].clips)
            for name in self.model.head[0]
        } == {(s.dataset, s.encoder): clips for s, clips in left_sets if clips}
        assert not going & self.on_disk()
        assert where_found(self.store.layout.root, patient, *theirs) == []

    # -- invariants -----------------------------------------------------------------------------------------

    @invariant()
    def the_log_is_the_models(self) -> None:
        self.lengths[-1] += 1
        entries = self.store.log()
        assert [entry.snapshot_id for entry in reversed(entries)] == self.model.log
        assert [entry.parent_id for entry in reversed(entries)] == [None, *self.model.log][: len(entries)]

    @invariant()
    def everything_needed_reads_as_written(self) -> None:
        kept = self.model.needed()
        found = needed(self.store)
        assert found.sets | found.manifests == kept and kept <= self.on_disk()
        if not self.was_written:
            return
        self.was_written = False
        outcome = verify_store(self.store, quick=False)
        assert outcome.ok, outcome.problems
        for name in kept & self.model.sets.keys():
            content, stamps = self.model.sets[name], stamps_of(self.store.layout.set_folder(name))
            if is_known("as written", self.store.layout.set_folder(name), stamps):
                continue
            opened = self.store.open_set(name)
            assert content_of(opened) == expected_content(dict(content.clips), SPECS[content.encoder])
            assert opened.index.column("clip_id").to_pylist() == [clip_id for clip_id, _ in content.clips]
            assert set(opened.failures.column("clip_id").to_pylist()) == content.failed
            make_known("as written", opened.folder, stamps)
        for name, patients in (self.model.manifests[m] for m in self.model.head[1]):
            manifest = self.store.manifest(name)
            assert dict(zip(manifest.clip_ids, manifest.patients, strict=True)) == patients

    @invariant()
    def tags_are_the_models(self) -> None:
        assert {tag.name: tag.snapshot_id for tag in list_tags(self.store)} == self.model.tags
        for name, snapshot_id in self.model.tags.items():
            assert find_snapshot(self.store, name) == find_snapshot(self.store, snapshot_id[:16]) == snapshot_id


def _run(monkeypatch: pytest.MonkeyPatch, *, number: int, examples: int, steps: int) -> list[int]:
    """Run the machine, other examples for each number, the same ones every time; return how long each was."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    read_files_once(monkeypatch)
    machine = type("StoreMachine", (StoreMachine,), {"lengths": []})
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    return machine.lengths


def test_the_store_is_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, number=0, examples=40, steps=30)


# In parts, so that a run that is cut short says how far it came: 1,000 examples of 200 steps in all.
@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 41))
def test_the_store_is_its_model_at_length(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Hypothesis tries short examples too, by its own choice: they do not count.
    n_long, number = 0, part
    while n_long < 25:
        lengths = _run(monkeypatch, number=number, examples=27 - n_long, steps=200)
        n_long += sum(length == 200 for length in lengths)
        assert n_long, lengths
        number += 100
