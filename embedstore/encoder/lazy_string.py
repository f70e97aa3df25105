"""Lazy strings: ``module:name``, imported when it is needed and not before."""

from __future__ import annotations

import importlib
from typing import Any

from embedstore.errors import MissingExtraError

__all__ = ["resolve_string"]


def resolve_string(reference: str, *, needed_by: str | None = None) -> Any:
    """Import ``module:name``; a missing third-party package becomes an error that names the extra.

    Parameters
    ----------
    reference : str
    needed_by : str or None
        What the error says needs the package, the module itself where None.

    Raises
    ------
    MissingExtraError
        A package that the module needs is not installed.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        ours = {module_name.partition(".")[0], "embedstore", "encoders", "manifests"}
        if error.name is not None and error.name.partition(".")[0] in ours:
            raise
        raise MissingExtraError(
            f"{needed_by or module_name} needs the package {error.name or error!s}, which is not installed; "
            "install the extra with: pip install 'embedstore[build]'"
        ) from error
    return getattr(module, attribute)
