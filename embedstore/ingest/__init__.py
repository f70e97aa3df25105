"""Bring your own vectors: files of other programs, joined by id to a manifest and committed as a set."""

from embedstore.ingest.run import IngestOutcome, IngestProgress, IngestRequest, ingest_vectors
from embedstore.ingest.source import IngestSource, PlainRows, SourceRows
from embedstore.ingest.sources import open_source

__all__ = [
    "IngestOutcome",
    "IngestProgress",
    "IngestRequest",
    "IngestSource",
    "PlainRows",
    "SourceRows",
    "ingest_vectors",
    "open_source",
]
