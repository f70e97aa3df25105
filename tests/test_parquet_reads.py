"""Parquet is read on the calling thread alone.

A thread of Arrow's pool that still holds a Python buffer when the interpreter ends is torn down inside a C++
destructor, and the process aborts after its work is done (apache/arrow#34314): seen in about one of eighty short
commands on a loaded machine, and every script would have read it as a failure.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READS = {"read", "read_row_group", "read_row_groups", "iter_batches", "read_table"}
FILES = sorted(
    path
    for package in ("embedstore", "evaltools", "encoders", "manifests")
    for path in (ROOT / package).rglob("*.py")
    if "pyarrow.parquet" in path.read_text()
)


def parquet_reads(tree: ast.AST) -> list[ast.Call]:
    """Calls that read a Parquet file: methods of what is named parquet, and functions of the module pq."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in READS
        and any(word in ast.unparse(node.func.value).lower() for word in ("parquet", "pq"))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_reads_use_no_threads(path: Path) -> None:
    for call in parquet_reads(ast.parse(path.read_text())):
        threads = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "use_threads"]
        assert threads == ["False"], f"{path}:{call.lineno} reads with Arrow's threads"


def test_the_rule_sees_a_read() -> None:
    assert len(parquet_reads(ast.parse("pq.read_table(path)\nself._parquet.iter_batches()\nfile.read()"))) == 2
