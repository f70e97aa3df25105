"""`Where`: which rows of a manifest, as a tiny expression that runs no code.

::

    expression  = condition { "and" condition }
    condition   = column ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | column "in" ( "(" value { "," value } ")" | value { "," value } )
    column, value = a bare word, or anything in single or double quotes

Numbers compare with numeric columns, words with text columns, ``true`` and ``false`` with boolean ones. An empty
cell equals nothing: it fails every condition but ``!=``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Condition", "Where", "parse_where"]

_GRAMMAR = "COLUMN OP VALUE, joined by 'and', where OP is ==, !=, <, <=, >, >= or in"
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>'[^']*'|"[^"]*")|(?P<op>==|!=|<=|>=|<|>|=)|(?P<mark>[(),\[\]])|(?P<word>[^\s'"()\[\],<>=!]+))"""
)
_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Condition:
    """One comparison.

    Attributes
    ----------
    column : str
        Column name.
    op : str
        ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` or ``in``.
    values : tuple of str
        What is compared with; one value for every operator but ``in``.
    """

    column: str
    op: str
    values: tuple[str, ...]

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which rows of ``table`` fulfil the condition; raises as `Where.mask`."""
        import pyarrow as pa

        if self.column not in table.column_names:
            raise UnknownNameError(
                f"no column {self.column!r} to select rows by{did_you_mean(self.column, table.column_names)}"
            )
        column = table.column(self.column)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        cells = column.to_pylist()
        if pa.types.is_boolean(kind):
            return self._match(cells, [self._truth(value) for value in self.values])
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return self._compare(cells, [self._number(value) for value in self.values])
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._match(cells, list(self.values))
        if pa.types.is_null(kind):
            return np.full(len(cells), self.op == "!=")
        raise UnknownNameError(f"column {self.column!r} holds {kind}, which rows cannot be selected by")

    def _match(self, cells: list[Any], values: list[Any]) -> npt.NDArray[np.bool_]:
        if self.op in _ORDERED:
            raise UnknownNameError(f"column {self.column!r} holds no numbers, so {self.op} has no meaning there")
        wanted = set(values)
        inside = np.fromiter((cell in wanted for cell in cells), dtype=np.bool_, count=len(cells))
        return ~inside if self.op == "!=" else inside

    def _compare(self, cells: list[Any], values: list[float]) -> npt.NDArray[np.bool_]:
        numbers = np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
        if self.op in _ORDERED:
            ordered: npt.NDArray[np.bool_] = _ORDERED[self.op](numbers, values[0])
            return ordered
        inside = np.isin(numbers, values)
        return ~inside if self.op == "!=" else inside

    def _number(self, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UnknownNameError(f"column {self.column!r} holds numbers, got {value!r}")
        return number

    def _truth(self, value: str) -> bool:
        if value.lower() not in _TRUTH:
            raise UnknownNameError(f"column {self.column!r} holds true or false, got {value!r}")
        return _TRUTH[value.lower()]


@dataclass(frozen=True)
class Where:
    """Conditions that all hold.

    Attributes
    ----------
    text : str
        The expression as given.
    conditions : tuple of Condition
        At least one.
    """

    text: str
    conditions: tuple[Condition, ...]

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which rows of ``table`` fulfil every condition.

        Parameters
        ----------
        table : pyarrow.Table
            n rows, such as `Manifest.table`.

        Returns
        -------
        (n,) bool array

        Raises
        ------
        UnknownNameError
            A column is not there, or a value does not fit its type.
        """
        kept = np.ones(table.num_rows, dtype=np.bool_)
        for condition in self.conditions:
            kept &= condition.mask(table)
        return kept


def parse_where(text: str) -> Where:
    """Read an expression.

    Raises
    ------
    UnknownNameError
        The text is not in the grammar.

    Examples
    --------
    >>> parse_where("view in (A4C, A2C) and fps >= 30").conditions[0]
    Condition(column='view', op='in', values=('A4C', 'A2C'))
    >>> import pyarrow as pa
    >>> parse_where("fps >= 30").mask(pa.table({"fps": [25.0, 50.0, None]})).tolist()
    [False, True, False]
    """
    tokens = _tokens(text)
    conditions, at = [], 0
    while True:
        condition, at = _condition(text, tokens, at)
        conditions.append(condition)
        if at == len(tokens):
            return Where(text, tuple(conditions))
        if not (tokens[at][0] == "word" and tokens[at][1].lower() == "and"):
            raise _refusal(text, tokens, at)
        at += 1


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, body = [], 0, text.rstrip()
    while at < len(body):
        match = _TOKEN.match(body, at)
        if match is None:
            raise UnknownNameError(f"cannot read {body[at:].strip()!r} in the expression {text!r}; write {_GRAMMAR}")
        kind = str(match.lastgroup)
        token = match.group(kind)
        tokens.append((kind, token[1:-1] if kind == "quoted" else token))
        at = match.end()
    return tokens


def _refusal(text: str, tokens: list[tuple[str, str]], at: int) -> UnknownNameError:
    got = f"{tokens[at][1]!r}" if at < len(tokens) else "the end"
    hint = " (equality is ==)" if at < len(tokens) and tokens[at] == ("op", "=") else ""
    return UnknownNameError(f"did not expect {got}{hint} in the expression {text!r}; write {_GRAMMAR}")


def _condition(text: str, tokens: list[tuple[str, str]], at: int) -> tuple[Condition, int]:
    def value(position: int) -> str:
        if position >= len(tokens) or tokens[position][0] not in ("word", "quoted"):
            raise _refusal(text, tokens, position)
        return tokens[position][1]

    column = value(at)
    if at + 1 >= len(tokens):
        raise _refusal(text, tokens, at + 1)
    kind, op = tokens[at + 1]
    if kind == "op" and op != "=":
        return Condition(column, op, (value(at + 2),)), at + 3
    if not (kind == "word" and op.lower() == "in"):
        raise _refusal(text, tokens, at + 1)
    at += 2
    closing = {"(": ")", "[": "]"}.get(tokens[at][1]) if at < len(tokens) and tokens[at][0] == "mark" else None
    at += closing is not None
    values = [value(at)]
    at += 1
    while at < len(tokens) and tokens[at] == ("mark", ","):
        values.append(value(at + 1))
        at += 2
    if closing is not None:
        if at >= len(tokens) or tokens[at] != ("mark", closing):
            raise _refusal(text, tokens, at)
        at += 1
    return Condition(column, "in", tuple(values)), at
