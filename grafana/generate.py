"""Writes grafana/dashboards/*.json from the metric catalogue. Run it by `make docs`; a test tells when it is due."""

import json
from pathlib import Path

from grafana.pages import DASHBOARDS
from grafana.panels import dashboard_json

FOLDER = Path(__file__).with_name("dashboards")


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        FOLDER / f"{dashboard.title.lower()}.json": json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False)
        + "\n"
        for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
