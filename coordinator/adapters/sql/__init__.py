"""SQL kept in files: queries by name, migrations by number. Only reads those files; never runs a statement.

Both are written once, for SQLite. PostgreSQL gets the same text with other names for the column types and with its own
placeholders, so they use nothing else that differs: INTEGER, REAL, TEXT and BLOB are the only types, an upsert names
its key, and columns that it adds to are written with their table. Text sorts by its bytes in both. A statement that
writes takes the values of one row, all by `?`; PostgreSQL gets it for many rows at once, too. What only PostgreSQL has,
the table of cells, is in `cells.sql`.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import count
from typing import Final

__all__ = [
    "cell_queries",
    "for_many_rows",
    "migrations",
    "named_queries",
    "postgres_migrations",
    "postgres_queries",
    "postgres_writes",
    "prepared",
]

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT: Final = re.compile(r"--[^\n]*")
_PLACEHOLDER: Final = re.compile(r"\?|(?<!:):(\w+)")
_WRITES: Final = re.compile(r"\s*(INSERT|UPDATE)\b")
_VALUES: Final = re.compile(r"VALUES \([%s, ]+\)")
_TYPE: Final = re.compile(r"\b(INTEGER|REAL|TEXT|BLOB)\b| WITHOUT ROWID")
_POSTGRES_TYPES: Final = {
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "TEXT": 'TEXT COLLATE "C"',
    "BLOB": "BYTEA",
    " WITHOUT ROWID": "",
}


def named_queries() -> dict[str, str]:
    """Each statement of queries.sql by its name, with the comment that describes it."""
    return _named("queries.sql")


def postgres_queries() -> dict[str, str]:
    """The same with PostgreSQL's placeholders, and without comments, in which those would count."""
    return {name: _with_placeholders(text) for name, text in _named("queries.sql").items()}


def postgres_writes() -> dict[str, str]:
    """Those of them that write, each for one row, which its placeholders stand for in order."""
    return {name: text for name, text in postgres_queries().items() if _WRITES.match(text)}


def prepared(name: str, write: str) -> str:
    """What prepares a statement that writes, so that the server says which types its values have."""
    numbers = count(1)
    return f"PREPARE {name} AS {re.sub('%s', lambda _: f'${next(numbers)}', write)}"


def for_many_rows(write: str, types: Sequence[str]) -> str:
    """A statement that writes one row's values of these types, for an array of each value instead."""
    rows = f"unnest({', '.join(f'%s::{type_}[]' for type_ in types)})"
    if _VALUES.search(write):
        return _VALUES.sub(f"SELECT * FROM {rows}", write)  # noqa: S608 - of our own statements and types
    names = [f"new_{number}" for number in range(len(types))]
    left = iter(names)
    changing = re.sub("%s", lambda _: next(left), write)
    return changing.replace("WHERE", f"FROM {rows} AS new ({', '.join(names)}) WHERE", 1)


def cell_queries() -> dict[str, str]:
    """Each statement of cells.sql by its name."""
    return {name: _with_placeholders(text) for name, text in _named("cells.sql").items()}


def migrations() -> list[tuple[int, str]]:
    """Scripts by the version they lead to, in order."""
    scripts = [entry for entry in (files(__name__) / "migrations").iterdir() if entry.name.endswith(".sql")]
    return sorted((int(script.name.partition("_")[0]), script.read_text(encoding="utf-8")) for script in scripts)


def postgres_migrations() -> list[tuple[int, str]]:
    """The same with PostgreSQL's types."""
    return [(version, _TYPE.sub(lambda found: _POSTGRES_TYPES[found[0]], script)) for version, script in migrations()]


def _named(file: str) -> dict[str, str]:
    parts = _NAME.split((files(__name__) / file).read_text(encoding="utf-8"))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _with_placeholders(statement: str) -> str:
    plain = _COMMENT.sub("", statement).replace("%", "%%").strip()
    return _PLACEHOLDER.sub(lambda found: f"%({found[1]})s" if found[1] else "%s", plain)
