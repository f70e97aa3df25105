"""A store of synthetic vectors in CardioBench's true sizes: its data sets, six encoders, three with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedstore import DatasetFacts, EncoderSpec, Manifest, ManifestField, Store
from embedstore.bank import BankHeader, write_bank
from embedstore.embedding_set import FAILURES_SCHEMA, INDEX_SCHEMA, SetWriter
from embedstore.identity import sha256_hex
from embedstore.tables import rows_to_table

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
    rows: list[tuple[str, str | None, float | None, int | None]]
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


def build_suite_store(root: Path, encoders: Sequence[str]) -> Store:
    """Write every data set with the vectors of some of `ENCODERS`, and prompts where they have a text tower."""
    store = Store.create(root)
    for at, (name, (n, columns)) in enumerate(DATASETS.items()):
        manifest = build_manifest(name, n, columns, seed=at)
        store.add_manifest(manifest)
        for encoder in encoders:
            add_set(store, manifest, encoder, ENCODERS[encoder])
    for encoder in encoders:
        if encoder in WITH_TEXT:
            add_bank(store, encoder, ENCODERS[encoder])
    return store
