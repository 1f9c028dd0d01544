"""Values of a column as an array in PostgreSQL's binary form. Never guesses a type: whoever sends one names it.

psycopg's own arrays take theirs from the values, so that NULLs alone, or small numbers, make one of another type.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from psycopg import pq
from psycopg.adapt import Dumper

__all__ = ["PostgresArray", "PostgresArrayDumper", "plain_text"]

_HEAD: Final = Struct(">iiIii").pack  # dimensions, whether there are NULLs, type, length, first index
_LENGTH: Final = Struct(">i").pack
_NULL: Final = _LENGTH(-1)


def plain_text(text: str) -> str:
    """What PostgreSQL's text can hold of it: not the character NUL, which a vehicle's error message may have."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


# The types that our tables have (see sql/__init__.py), with their numbers.
_ITEMS: Final[dict[str, tuple[int, Callable[[Any], bytes]]]] = {
    "bigint": (20, Struct(">q").pack),
    "double precision": (701, Struct(">d").pack),
    "text": (25, lambda text: plain_text(text).encode()),
    "bytea": (17, bytes),
}


@dataclass(frozen=True, slots=True)
class PostgresArray:
    """Values of one type, of which any may be None."""

    type: str
    values: Sequence[Any]

    def packed(self) -> bytes:
        """As PostgreSQL reads it. Raises struct.error for a number that has no room in its type."""
        number, pack = _ITEMS[self.type]
        parts = [_HEAD(1, 1, number, len(self.values), 1)]
        for value in self.values:
            if value is None:
                parts.append(_NULL)
            else:
                item = pack(value)
                parts += (_LENGTH(len(item)), item)
        return b"".join(parts)


class PostgresArrayDumper(Dumper):
    """Lets psycopg send it."""

    format = pq.Format.BINARY

    def dump(self, obj: PostgresArray) -> bytes:
        """Its bytes, whose type the statement names."""
        return obj.packed()
