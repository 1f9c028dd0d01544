"""The alert rules: promtool reads and tries them, each says what to do, and each metric is one that we export."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from coordinator.adapters.prometheus import prometheus_name
from coordinator.metrics import CATALOGUE
from tests.conftest import require_promtool

FOLDER = Path(__file__).parents[2] / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
OPERATIONS = (FOLDER.parent / "docs" / "operations.md").read_text(encoding="utf-8")
# Prometheus itself makes `up`; the process's own metrics are those of prometheus-client.
OTHERS = {"up", "process_start_time_seconds"}


@pytest.mark.parametrize("command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_is_content(command: list[str]) -> None:
    done = subprocess.run([require_promtool(), *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:idlewheel_\w+|process_\w+|up)\b", expression))


def test_every_metric_of_a_rule_is_in_the_catalogue() -> None:
    known = {
        prometheus_name(measurement, field)
        for measurement in CATALOGUE
        if measurement.fleet_wide
        for field in measurement.fields
    }
    for rule in RULES:
        named = metrics_of(rule["expr"])
        assert named, rule["alert"]
        assert named <= known | OTHERS, rule["alert"]


def test_every_alert_is_tried_and_says_how_urgent_it_is_and_what_to_do() -> None:
    tried = (FOLDER / "alerts_test.yml").read_text()
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in tried
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert "\n" not in rule["annotations"]["runbook"]
        urgency = "yes" if rule["labels"]["severity"] == "page" else "in the morning"
        assert f"| {rule['alert']} | {urgency} |" in OPERATIONS
