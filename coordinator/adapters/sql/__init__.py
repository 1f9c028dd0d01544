"""SQL kept in files: queries by name, migrations by number. Only reads those files; never runs a statement."""

import re
from importlib.resources import files

__all__ = ["migrations", "named_queries"]

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def named_queries() -> dict[str, str]:
    """Each statement of queries.sql by its name, with the comment that describes it."""
    text = (files(__name__) / "queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def migrations() -> list[tuple[int, str]]:
    """Scripts by the version they lead to, in order."""
    scripts = [entry for entry in (files(__name__) / "migrations").iterdir() if entry.name.endswith(".sql")]
    return sorted((int(script.name.partition("_")[0]), script.read_text(encoding="utf-8")) for script in scripts)
