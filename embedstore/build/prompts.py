"""`add_banks`: the library function behind ``embedstore prompts add``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path

from embedstore.build.bank_owner import BankOwner, TextTower, find_owner, load_tower
from embedstore.build.banks import BankOutcome, embed_prompts
from embedstore.build.candidates import FORMATS_GROUP, add_candidates
from embedstore.build.weights import find_weights
from embedstore.encoder import EncoderCard, LoadRequest, get_card, split_title
from embedstore.errors import StorageError, UnknownNameError, did_you_mean
from embedstore.given_paths import settle_paths
from embedstore.prompts.cardiobench import read_cardiobench
from embedstore.prompts.prompt_bank import find_prompt_bank
from embedstore.store import Store

__all__ = ["AddRequest", "add_banks", "bank_formats"]


@dataclass(frozen=True, kw_only=True)
class AddRequest:
    """What to add and for whom.

    Attributes
    ----------
    file : str
        A YAML bank or an installed bank's name; for other formats their file or folder.
    encoders : tuple of str
        ``NAME[@VARIANT]``.
    file_format : str
        ``bank``, ``cardiobench``, or a format of an installed package.
    weights, trusted : mapping by encoder name
        As of a `embedstore.build.request.BuildRequest`.
    pickles : mapping of str to str
        By file name, the SHA-256 of the pickles of a folder that may be converted.
    """

    file: str
    encoders: tuple[str, ...]
    file_format: str = "bank"
    weights: Mapping[str, Path] = field(default_factory=dict)
    trusted: Mapping[str, str] = field(default_factory=dict)
    pickles: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        settle_paths(self, "weights")


def bank_formats() -> list[str]:
    """Return the names of the formats that can be added, those of installed packages too."""
    return ["bank", "cardiobench", *sorted({point.name for point in entry_points(group=FORMATS_GROUP)})]


def add_banks(
    store: Store, request: AddRequest, *, note: Callable[[str], None] = lambda sentence: None
) -> list[BankOutcome]:
    """Add one bank for each of some encoders.

    Raises
    ------
    UnknownNameError
        The format, the file, an encoder or its text tower is not there.
    ContentError, EnvironmentFailure
        The bank breaks a rule, or the text tower cannot be loaded.
    """
    known = bank_formats()
    if request.file_format not in known:
        near = did_you_mean(request.file_format, known)
        raise UnknownNameError(f"unknown format {request.file_format!r} of a bank{near}")
    names = {split_title(title)[0] for title in request.encoders}
    for option, named in (("--weights", request.weights), ("--trust-checkpoint", request.trusted)):
        if set(named) - names:
            raise UnknownNameError(
                f"{option} names {sorted(set(named) - names)[0]!r}, which is not among the encoders"
            )
    if request.file_format not in ("bank", "cardiobench"):
        owners = [_candidates_owner(store, request, title) for title in request.encoders]
        folder, pickles = Path(request.file), request.pickles
        return [add_candidates(store, folder, owner, request.file_format, pickles) for owner in owners]
    if request.pickles:
        raise UnknownNameError(
            f"--trust-pickle goes with folders that hold pickles; format {request.file_format!r} has none"
        )
    is_bank = request.file_format == "bank"
    bank = find_prompt_bank(request.file) if is_bank else read_cardiobench(Path(request.file))
    outcomes = []
    for title in request.encoders:
        owner = find_owner(title, weights=request.weights, trusted=request.trusted, device=request.device, note=note)

        def tower(owner: BankOwner = owner) -> TextTower:
            loaded = load_tower(owner)
            note(f"{owner.name}: embedding the {len(bank)} prompts of {bank.name}")
            return loaded

        outcomes.append(embed_prompts(store, owner, bank, tower=tower))
    return outcomes


def _candidates_owner(store: Store, request: AddRequest, title: str) -> BankOwner:
    """Return whose vectors the candidates are compared with; its model is not needed.

    The weights are those given, else the folder's own, by the digest under which the store has sets of them (a file
    and the folder around it have two), else the only ones of which the store has sets.

    Raises
    ------
    UnknownNameError
        None of these tells the weights.
    """
    name, variant = split_title(title)
    card = get_card(name)
    built = {
        opened.spec.weights_sha256
        for opened in (store.open_set(entry.set_id) for entry in store.entries() if entry.encoder == name)
    }
    digests: list[str | None] = []
    given = request.weights.get(name)
    if given is not None:
        digests = [find_weights(card, given).sha256]
    else:
        digests = _own_digests(card, Path(request.file)) or (list(built) if len(built) == 1 else [])
    if not digests:
        raise UnknownNameError(
            f"which weights of {name!r} these candidates belong to is not clear: {request.file} has none; give "
            f"--weights {name}=FILE_OR_FOLDER as for embedstore build"
        )
    digest = next((one for one in digests if one in built), digests[0])
    spec = replace(card.spec(variant=variant or "published"), weights_sha256=digest)
    return BankOwner(card, LoadRequest(spec=spec, weights=None, device=request.device))


def _own_digests(card: EncoderCard, folder: Path) -> list[str | None]:
    """Return the digests of the weights in a folder of candidates: as a file and as the folder; none without any."""
    try:
        files = card.deciding_files(folder) if folder.is_dir() else ()
    except StorageError:
        return []
    return [find_weights(card, path).sha256 for path in (files[0], folder)] if len(files) == 1 else []
