"""Write the golden banks of format 1: one of each kind, with what a reader must find in them.

Run once for a format: ``python tests/data/make_golden_banks.py tests/data/stores/v1-banks``. What was written stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "plugin"))

from small_banks import add_bank

from embedstore.store import Store


def make(folder: Path) -> None:
    """Write the store and its expected values into a new folder."""
    store = Store.create(folder / "store")
    banks = [add_bank(store, "prompts", n_rows=300), add_bank(store, "heads"), add_bank(store, "candidates")]
    banks.append(add_bank(store, "prompts", "theirs", weights_sha256="ab" * 32, logit_bias=-10.5))
    expected = {
        bank.bank_id: {
            "kind": bank.kind,
            "name": bank.name,
            "spec": dict(bank.spec),
            "vectors_sha256": hashlib.sha256(bank.vectors[:].astype("<f4").tobytes()).hexdigest(),
            "shape": list(bank.vectors.shape),
            "tables": {name: bank.table(name).to_pylist() for name in sorted(bank.described["tables"])},
        }
        for bank in banks
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(store.layout.builds)
    for empty in (store.layout.sets, store.layout.manifests, store.layout.tags):
        empty.rmdir()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
