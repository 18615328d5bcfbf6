"""The dashboard and the alerts ask only for what the service exposes, and show all of it."""

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import DEPLOY, binary
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.utils import floatToGoString

from service import metrics

DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/sequitur.json").read_text())
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]

RECORDED = {rule["record"] for rule in RULES if "record" in rule}
SCRAPED = {"up"}  # Prometheus adds it for every target
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
SERIES = re.compile(r"(?<![\w:\"{])([a-z_]+(?::\w+)*)(?:\{([^}]*)\})?(?=[\s\[\)]|$)")


def exposed() -> dict[str, MetricWrapperBase]:
    """Every series that the service exposes and the metric object behind it."""
    objects = {id(found): found for found in vars(metrics).values() if isinstance(found, MetricWrapperBase)}
    names = {}
    for found in objects.values():
        (family,) = found.describe()
        for suffix in SUFFIXES[family.type]:
            names[family.name + suffix] = found
    return names


def used(expression: str) -> dict[str, dict[str, str]]:
    """The series of an expression, and the label matchers of each."""
    found: dict[str, dict[str, str]] = {}
    for name, matchers in SERIES.findall(re.sub(r"\b(by|without) ?\([^)]*\)", "", expression)):
        if name.startswith("sequitur_") or name in SCRAPED or ":" in name:
            found.setdefault(name, {}).update(re.findall(r"(\w+)(?:=~|!~|!=|=)\"([^\"]*)\"", matchers))
    return found


def test_every_series_that_is_asked_for_is_exposed() -> None:
    asked = {name for expression in EXPRESSIONS for name in used(expression)}
    assert len(asked) > 20
    assert asked - set(exposed()) - RECORDED - SCRAPED == set()


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    shown = {name for expression in EXPRESSIONS for name in used(expression)}
    unseen = {found.describe()[0].name for name, found in exposed().items()}
    unseen -= {exposed()[name].describe()[0].name for name in shown & set(exposed())}
    assert unseen == set()


def test_every_rule_that_is_recorded_is_used() -> None:
    assert {name for expression in EXPRESSIONS for name in used(expression)} >= RECORDED


def test_every_label_that_is_asked_for_is_there() -> None:
    for expression in EXPRESSIONS:
        known = {"job", "instance"}
        for name, matchers in used(expression).items():
            labels = {"job", "instance"}
            if name in exposed():
                labels |= {*exposed()[name]._labelnames}  # the client has no public way to ask
            if name.endswith("_bucket"):
                labels.add("le")
            assert set(matchers) <= labels, expression
            known |= labels
        grouped = {label.strip() for inner in re.findall(r"by ?\(([^)]*)\)", expression) for label in inner.split(",")}
        assert grouped <= known, expression


def test_every_bucket_that_is_counted_by_has_its_edge() -> None:
    edges = {(name, found["le"]) for text in EXPRESSIONS for name, found in used(text).items() if "le" in found}
    assert edges == {("sequitur_request_seconds_bucket", "0.1")}
    for name, edge in edges:
        assert edge in {floatToGoString(bound) for bound in exposed()[name]._upper_bounds}, name


def test_the_values_that_are_asked_for_are_those_the_service_uses() -> None:
    vocabulary = {
        "sequitur_stage_seconds_bucket": ("stage", metrics.STAGES),
        "sequitur_degraded_total": ("reason", metrics.DEGRADED_REASONS),
    }
    checked = 0
    for expression in EXPRESSIONS:
        for name, matchers in used(expression).items():
            label, values = vocabulary.get(name, ("", ()))
            if label in matchers:
                assert matchers[label] in values
                checked += 1
    assert checked > len(metrics.STAGES)


def test_prometheus_can_parse_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:expression:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([binary("promtool", "prometheus"), "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_row_per_stage_with_its_quantiles() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert [title.removeprefix("Stage: ") for title in rows if title.startswith("Stage: ")] == list(metrics.STAGES)
    for stage in metrics.STAGES:
        panel = next(panel for panel in PANELS if panel["title"] == f"Seconds in {stage}")
        assert [target["legendFormat"] for target in panel["targets"]] == ["p50", "p90", "p99"]
        assert all(f'stage="{stage}"' in target["expr"] for target in panel["targets"])


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_the_provisioned_datasource_is_the_one_the_panels_name_and_prometheus_is_behind_it(
    stack: dict[str, Any],
) -> None:
    (source,) = provisioned("datasources/prometheus.yml")["datasources"]
    named = {panel["datasource"]["uid"] for panel in PANELS}
    named |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert named == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    assert "--web.listen-address=0.0.0.0:9090" in stack["services"]["prometheus"]["command"]
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


def test_grafana_finds_the_dashboard_where_it_is_mounted(stack: dict[str, Any]) -> None:
    (provider,) = provisioned("dashboards/sequitur.yml")["providers"]
    grafana = stack["services"]["grafana"]
    assert f"{DEPLOY}/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    assert f"{DEPLOY}/grafana/provisioning:/etc/grafana/provisioning:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DEPLOY / "grafana/dashboards" / home.name).is_file()


@pytest.mark.parametrize("alert", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_every_alert_names_its_panel_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["panel"] in {panel["title"] for panel in PANELS}
    assert alert["annotations"]["runbook"].endswith(".")
    assert alert["labels"]["severity"] in {"page", "ticket"}


def provisioned(name: str) -> dict[str, Any]:
    """A provisioning file of Grafana."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "grafana/provisioning" / name).read_text())
    return loaded
