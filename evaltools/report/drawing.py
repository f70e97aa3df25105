"""What every figure shares: files as PNG and SVG, and how they are drawn.

matplotlib is imported when something is drawn, without pyplot and so without global state. Equal results give equal
SVG files under one matplotlib version.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

from embedstore.errors import MissingExtraError

__all__ = ["FORMATS", "QUIET", "figure_files"]

FORMATS = ("png", "svg")
QUIET = "#8a97a6"  # of edges and of lines to compare with


def figure_files(draw: Callable[[Any], Any], *, salt: str) -> dict[str, bytes]:
    """Return the files of a figure.

    Parameters
    ----------
    draw : callable
        Of the class ``matplotlib.figure.Figure``; returns a figure.
    salt : str
        What the ids inside the SVG file are made from.

    Returns
    -------
    dict of str to bytes
        File content by suffix, ``png`` and ``svg``.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing a figure needs matplotlib; install it with: pip install matplotlib"
        ) from error

    settings = {"svg.hashsalt": salt, "font.size": 9.0, "axes.edgecolor": QUIET, "axes.linewidth": 0.8}
    with mpl.rc_context(settings):
        figure = draw(Figure)
        return {suffix: _saved(figure, suffix) for suffix in FORMATS}


def _saved(figure: Any, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the font lacks: boxes
        figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
    return buffer.getvalue()
