"""Alerts, the dashboard, and the documented manifests for Kubernetes."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Render
from tests.support import ROOT, Project
from tests.support import copy as render_project

from alembic_safety.database.url import DatabaseURL
from alembic_safety.state import State
from core import health

Document = dict[str, Any]

MONITORING = ROOT / "template" / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
UNIT_TESTS = Path(__file__).with_name("alerts.test.yml")
DASHBOARD: Document = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
RUNBOOK = (MONITORING / "README.md").read_text("utf-8")
PAGE = (ROOT / "template" / "docs" / "monitoring.md").read_text("utf-8")
RULES: list[Document] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]

STATES = [str(state) for state in State]
METRICS: dict[str, set[str]] = {
    "http_requests_total": {"method", "route", "status"},
    "http_request_duration_seconds": {"method", "route", "status"},
    "database_pool_in_use_connections": set(),
    "database_pool_idle_connections": set(),
    "database_pool_waiting_requests": set(),
    "database_pool_max_connections": set(),
    "database_schema_state": {"state"},
    "database_schema_info": {"current", "head"},
    "database_schema_pending_revisions": set(),
    "migration_last_info": {"revision", "direction"},
    "migration_last_timestamp_seconds": set(),
    "migration_last_duration_seconds": set(),
    "migration_failures_total": set(),
    "migration_last_failure_timestamp_seconds": set(),
    "backup_last_timestamp_seconds": set(),
    "database_invalid_indexes": set(),
}
"""What /metrics has, with the labels of each."""
OF_THE_PROCESS = ("process_", "python_")
OF_PROMETHEUS = {"job", "namespace", "instance", "le"}
_METRIC = re.compile(r"\b(?:http|database|migration|backup)_\w+")
_PART_OF_HISTOGRAM = re.compile(r"(_seconds)_(?:bucket|count|sum)$")

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not found (Debian: the package prometheus)"
)


def promtool(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def metrics_in(text: str) -> set[str]:
    return {_PART_OF_HISTOGRAM.sub(r"\1", name) for name in _METRIC.findall(text)}


def labels_in(expression: str) -> set[str]:
    """Return the labels that PromQL groups by or selects by."""
    groups = re.findall(r"\bby \(([^)]*)\)", expression)
    matchers = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    return {label.strip() for group in groups for label in group.split(",")} | set(matchers)


SCRAPE = """
import asyncio, httpx
from main import create_app

async def scrape():
    app = create_app()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
    ):
        await client.get("/metrics")
        print((await client.get("/metrics")).text)

asyncio.run(scrape())
"""


def test_metrics_and_labels_are_those_that_a_service_tells(
    render: Render, database_url: DatabaseURL
) -> None:
    project = render()
    project.environment |= {"DATABASE_URL": database_url.libpq, "PYTHONPATH": "src"}
    project.make("migrate-up")
    project.make("backup")
    project.make("migrate-create", "MSG=Fail", "EMPTY=1")
    revision = project.revisions()[-1]
    done = '"""Bring the schema to this revision."""'
    revision.write_text(revision.read_text("utf-8").replace(done, "raise RuntimeError", 1))
    project.make("migrate-up", expect=2)
    told: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(project.python(SCRAPE).stdout):
        name = family.name + ("_total" if family.type == "counter" else "")
        told[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    own = {name: labels for name, labels in told.items() if not name.startswith(OF_THE_PROCESS)}
    assert own == METRICS


# Alerts


@needs_promtool
def test_promtool_finds_the_alerts_right_and_their_unit_tests_pass() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("test", "rules", UNIT_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def unit_tests() -> Document:
    """Return the unit tests, for rules in the same folder."""
    return {**yaml.safe_load(UNIT_TESTS.read_text("utf-8")), "rule_files": ["alerts.yml"]}


def with_rule(rule: Document, **changes: object) -> Document:
    return {**copy.deepcopy(rule), **changes}


GROUPS = r"\(job, namespace\)"


def mutants(rule: Document) -> Iterator[tuple[str, list[Document]]]:
    """Return the rule with a mistake in it, one for each that one could make."""
    yield "it is gone", []
    if "for" in rule:
        number, unit = int(rule["for"][:-1]), rule["for"][-1]
        yield "it fires at once", [{key: rule[key] for key in rule if key != "for"}]
        yield "it waits longer", [with_rule(rule, **{"for": f"{number + 1}{unit}"})]
        shorter = {"d": f"{number * 24 - 1}h", "h": f"{number * 60 - 1}m", "m": f"{number - 1}m"}
        yield "it waits less", [with_rule(rule, **{"for": shorter[unit]})]
    else:
        yield "it waits", [with_rule(rule, **{"for": "5m"})]
    other = "warning" if rule["labels"]["severity"] == "critical" else "critical"
    yield "another severity", [with_rule(rule, labels={"severity": other})]
    for name in rule["annotations"]:
        rest = {key: text for key, text in rule["annotations"].items() if key != name}
        yield f"no {name}", [with_rule(rule, annotations=rest)]
    for pattern, wrong in (
        (GROUPS, "(job)"),
        (GROUPS, "(namespace)"),
        (GROUPS, "(job, namespace, instance)"),
        (r"\bunless\b", "and"),
        (r">=", "<"),
        (r">=", ">"),
        (r"> 0", ">= 0"),
        (r"> 0", "> 9"),
        (r"24 \*", "23 *"),
        (r"24 \*", "25 *"),
        (r"\[6h\]", "[5h]"),
        (r"\[6h\]", "[7h]"),
        (r"\[1d\]", "[1m]"),
        (r"state=\"[a-z ]+\"", 'state="unversioned"'),
        (r"\b(?:database|migration|backup)_\w+", "absent"),
    ):
        # All groupings at once: one alone would only stop the two sides from matching.
        if pattern == GROUPS:
            yield f"by {wrong}", [with_rule(rule, expr=re.sub(pattern, wrong, rule["expr"]))]
            continue
        for match in re.finditer(pattern, rule["expr"]):
            expr = rule["expr"][: match.start()] + wrong + rule["expr"][match.end() :]
            yield f"{match[0]} became {wrong} at {match.start()}", [with_rule(rule, expr=expr)]


@needs_promtool
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_any_mistake_in_an_alert_makes_its_unit_test_fail(rule: Document, tmp_path: Path) -> None:
    suite = unit_tests()
    for test in suite["tests"]:
        test.pop("promql_expr_test", None)
        test["alert_rule_test"] = [
            case for case in test.get("alert_rule_test", []) if case["alertname"] == rule["alert"]
        ]
    suite["tests"] = [test for test in suite["tests"] if test["alert_rule_test"]]
    (tmp_path / "alerts.test.yml").write_text(yaml.safe_dump(suite), "utf-8")

    def passes(rules: list[Document]) -> bool:
        rule_file = {"groups": [{"name": "service", "rules": rules}]}
        (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rule_file), "utf-8")
        done = promtool("test", "rules", "alerts.test.yml", cwd=tmp_path)
        # It is the answer that is wrong, and not the rule that can't be read.
        assert done.returncode == 0 or "exp:" in done.stdout + done.stderr, done
        return done.returncode == 0

    assert passes([rule])
    survivors = [mistake for mistake, rules in mutants(rule) if passes(rules)]
    assert survivors == []


@needs_promtool
def test_without_their_patience_alerts_fire_in_an_ordinary_roll_out(tmp_path: Path) -> None:
    (tmp_path / "alerts.test.yml").write_text(yaml.safe_dump(unit_tests()), "utf-8")
    hasty = re.sub(r"^ +for: .*\n", "", ALERTS.read_text("utf-8"), flags=re.MULTILINE)
    (tmp_path / "alerts.yml").write_text(hasty, "utf-8")
    done = promtool("test", "rules", tmp_path / "alerts.test.yml")
    for name in ("SchemaBehind", "SchemaAhead", "DatabaseUnreachable"):
        assert f'got: {{__name__="ALERTS", alertname="{name}"' in done.stdout + done.stderr


def headings(markdown: str) -> set[str]:
    """Return the anchors that GitHub and GitLab make of the headings."""
    found = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in found}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_to_do_and_where_more_is_said(rule: Document) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert "{{ $labels.job }}" in rule["annotations"]["summary"]
    document, anchor = rule["annotations"]["runbook"].split("#")
    assert document == "deploy/monitoring/README.md"
    assert anchor == rule["alert"].lower()
    assert anchor in headings(RUNBOOK)
    table = re.search(rf"^\| \[{rule['alert']}\]\(#{anchor}\) \|.*$", RUNBOOK, re.MULTILINE)
    assert table
    assert table[0].endswith(f"| {rule['labels']['severity']} |")
    for amount, unit in re.findall(r"(\d+)([mh])", rule.get("for", "")):
        words = {"m": "minutes", "h": "an hour"}[unit]
        assert f"{amount} {words}" in table[0] or words == "an hour" in table[0]


def test_what_is_looked_at_is_what_the_service_tells() -> None:
    texts = [rule["expr"] for rule in RULES] + [query for _, query in queries()]
    for text in texts:
        assert metrics_in(text)
        known = set().union(*(METRICS[name] for name in metrics_in(text)))
        assert labels_in(text) <= known | OF_PROMETHEUS, text
    in_table = set(
        re.findall(r"^\| `(\w+_\w+)` \| (?:counter|gauge|histogram)", PAGE, re.MULTILINE)
    )
    assert in_table == set(METRICS)
    for name, labels in METRICS.items():
        row = re.search(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        assert row
        if name != "http_request_duration_seconds":  # by the same
            assert labels <= set(re.findall(r"`(\w+)`", row[0]))
    for state in re.findall(r'state="([^"]*)"', "".join(texts)):
        assert state in STATES


# The dashboard


def panels() -> list[Document]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Return the title and the query of everything that asks Prometheus."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        if "target" in annotation:
            yield annotation["name"], annotation["target"]["expr"]


def filled_in(query: str) -> str:
    """Return the query as Grafana sends it."""
    values = {"$job": "shop", "$namespace": ".*", "$__rate_interval": "4m"}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD["uid"]
    assert DASHBOARD.get("id") is None  # it would overwrite another one
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_each_panel_has_a_name_a_unit_and_the_chosen_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == chosen
        assert panel["targets"]
        assert (
            panel["type"] in {"table", "state-timeline"} or panel["fieldConfig"]["defaults"]["unit"]
        )
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            # What a series is called by is what it is grouped by.
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in labels_in(target["expr"])
    for title, query in queries():
        assert query.count('job="$job", namespace=~"$namespace"') == len(_METRIC.findall(query)), (
            f"{title} shows more than the chosen job"
        )
        assert set(re.findall(r"\$(\w+)", query)) <= {*variables, "__rate_interval"}


def test_the_dashboard_shows_all_that_the_service_tells() -> None:
    shown = set().union(*(metrics_in(query) for _, query in queries()))
    # The time of the last failure is the alert's.
    assert shown == set(METRICS) - {"migration_last_failure_timestamp_seconds"}


def test_the_timeline_has_every_state_with_a_text_and_a_colour_of_its_own() -> None:
    (timeline,) = [panel for panel in panels() if panel["type"] == "state-timeline"]
    (query,) = [target["expr"] for target in timeline["targets"]]
    numbers = dict(re.findall(r"(\d) \* sum by \(instance\) \(.*state=\"([^\"]*)\"}\)", query))
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    assert sorted(numbers.values()) == sorted(STATES)
    assert {number: item["text"] for number, item in mapping["options"].items()} == numbers
    assert len({item["color"] for item in mapping["options"].values()}) == len(STATES)


def example_series() -> Iterator[dict[str, str]]:
    """Return an hour of everything that two instances tell."""
    values = {
        "method": ["GET"], "route": ["/users/{user_id}", "unmatched"], "status": ["200", "500"],
        "state": STATES, "current": ["a"], "head": ["b"], "revision": ["a"], "direction": ["up"],
    }  # fmt: skip
    for name, labels in METRICS.items():
        series: list[dict[str, str]] = [{}]
        for label in sorted(labels):
            series = [{**item, label: value} for item in series for value in values[label]]
        if name.endswith("duration_seconds") and labels:
            name, buckets = f"{name}_bucket", ("0.1", "1", "+Inf")  # noqa: PLW2901
            series = [{**item, "le": bucket} for item in series for bucket in buckets]
        for instance in ("10.0.0.1:8000", "10.0.0.2:8000"):
            for item in series:
                all_labels = {"job": "shop", "namespace": "live", "instance": instance, **item}
                shown = ", ".join(f'{label}="{text}"' for label, text in all_labels.items())
                if name == "database_schema_state":
                    steady = f"{int(item['state'] == 'at head')}x60"
                else:
                    steady = "0+6x60"
                yield {"series": f"{name}{{{shown}}}", "values": steady}


@needs_promtool
def test_every_query_of_the_dashboard_finds_what_two_instances_tell(tmp_path: Path) -> None:
    cases = [
        {
            "expr": f"count({filled_in(query)}) > bool 0",
            "eval_time": "30m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for _, query in queries()
    ]
    test = {"interval": "1m", "input_series": list(example_series()), "promql_expr_test": cases}
    suite = {"rule_files": [], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "dashboard.test.yml").write_text(yaml.safe_dump(suite), "utf-8")
    done = promtool("test", "rules", tmp_path / "dashboard.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


# The documentation


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose name is as long as one may be."""
    answers = {"project_slug": "a" * 40}
    return Project(render_project(template, tmp_path_factory.mktemp("watched") / "p", answers))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/deploying.md",
        "docs/development.md",
        "docs/kubernetes.md",
        "docs/monitoring.md",
        "docs/updating.md",
        "deploy/monitoring/README.md",
        "deploy/monitoring/alerts.yml",
        "packages/alembic-safety/README.md",
        "packages/alembic-safety/docs/backups.md",
        "packages/alembic-safety/docs/migrations-in-production.md",
        "packages/alembic-safety/docs/plan-and-gate.md",
        "packages/alembic-safety/docs/zero-downtime.md",
    ],
)
def test_no_target_no_link_and_no_file_is_made_up(project: Project, name: str) -> None:
    text = project.read(name)
    makefiles = project.read("Makefile") + project.read("deploy/deploy.mk")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefiles, re.MULTILINE)
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", text):
        document, _, anchor = link.partition("#")
        path = Path(name).parent / document if document else Path(name)
        assert (project.path / path).exists()
        assert not anchor or anchor in headings(project.read(str(path)))
    for path in re.findall(r"deploy/monitoring/[\w.]+", text):
        assert (project.path / path).exists()


@needs_promtool
def test_the_documented_configuration_of_prometheus_takes_the_alerts(project: Project) -> None:
    (configuration,) = blocks(RUNBOOK, "yaml")
    file = project.write("prometheus.yml", configuration)
    try:
        done = promtool("check", "config", file)
    finally:
        file.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def manifests(project: Project) -> dict[str, Document]:
    """Return the documented objects by their kind, as the roll-out applies them."""
    text = project.read("docs/kubernetes.md").replace("TAG", "1a2b3c4")
    documents = [item for block in blocks(text, "yaml") for item in yaml.safe_load_all(block)]
    found = {item["kind"]: item for item in documents}
    assert len(found) == len(documents)
    return found


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_manifests_are_valid_by_kubernetes_s_own_schema(project: Project, version: str) -> None:
    objects = manifests(project)
    assert {"Job", "Deployment", "Service"} <= set(objects)
    for kind, item in objects.items():
        if kind != "PodMonitor":  # of Prometheus's operator
            kubernetes_validate.validate(item, version, strict=True)
        name = item["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name), name


def test_a_manifest_with_a_mistake_would_be_found(project: Project) -> None:
    deployment = copy.deepcopy(manifests(project)["Deployment"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, "1.30", strict=True)


def test_probes_and_metrics_lead_to_where_the_service_answers(project: Project) -> None:
    objects = manifests(project)
    pod = objects["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    dockerfile = project.read("Dockerfile")
    assert re.search(rf"^EXPOSE {ports['http']}$", dockerfile, re.MULTILINE)

    app = FastAPI(openapi_url=None)
    health.add_health_checks(app)
    routes = {getattr(route, "path", None) for route in app.routes}
    probed = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {probe["path"] for probe in probed.values()} == routes
    assert probed["readiness"]["path"] == "/health/ready"
    assert probed["liveness"]["path"] == "/health/live"
    assert {probe["port"] for probe in probed.values()} == {"http"}
    assert container["readinessProbe"]["timeoutSeconds"] > health.DEADLINE

    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert variables["METRICS_PORT"] == str(ports["metrics"])
    assert variables["METRICS_HOST"] == "0.0.0.0"  # noqa: S104
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    (endpoint,) = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    (served,) = objects["Service"]["spec"]["ports"]
    assert served["targetPort"] == "http"


def test_requests_reach_the_service_s_pods_and_never_the_migration_s(project: Project) -> None:
    objects = manifests(project)
    api = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    migration = objects["Job"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        objects["Service"]["spec"]["selector"],
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodMonitor"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= api.items()
        assert not selector.items() <= migration.items()


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_pods_are_not_root_and_write_only_where_they_must(project: Project, kind: str) -> None:
    pod = manifests(project)[kind]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = pod["securityContext"]["runAsUser"]
    assert f"\nUSER {user}:" in project.read("Dockerfile")
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert mounted["tmp"] == "/tmp"  # noqa: S108
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]


def test_the_migration_runs_once_keeps_its_backup_and_ends(project: Project) -> None:
    objects = manifests(project)
    job = objects["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["alembic", "upgrade", "head"]
    assert job["backoffLimit"] == 0
    assert job["activeDeadlineSeconds"] > 0
    assert pod["restartPolicy"] == "Never"
    assert "1a2b3c4" in objects["Job"]["metadata"]["name"]
    (claimed,) = [item for item in pod["volumes"] if "persistentVolumeClaim" in item]
    claim = claimed["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    (folder,) = [
        mount["mountPath"]
        for mount in container["volumeMounts"]
        if mount["name"] == claimed["name"]
    ]
    assert f"MIGRATION_BACKUP_FOLDER={folder}" in project.read("Dockerfile")
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    deployed = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert container["image"] == deployed
    for kind in ("Job", "Deployment"):
        text = yaml.safe_dump(objects[kind])
        assert "secretKeyRef" in text or "secretRef" in text
        assert "postgresql://" not in text


def test_the_old_pods_serve_until_the_new_ones_are_ready_and_end_their_requests(
    project: Project,
) -> None:
    deployment = manifests(project)["Deployment"]["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = deployment["template"]["spec"]
    seconds = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = re.search(r"GRACEFUL_SHUTDOWN=(\d+)", project.read("Dockerfile"))
    assert drain is not None
    assert pod["terminationGracePeriodSeconds"] > seconds + int(drain[1])


FAKE_KUBECTL = """#!/bin/sh
# What kubectl would do, with a Job that ends on the third look.
echo "$*" >> "$HERE/calls"
case "$1" in
apply) cat >> "$HERE/applied" ;;
get)
    echo look >> "$HERE/looks"
    [ "$(grep -c . "$HERE/looks")" -lt 3 ] || printf %s "$END" ;;
logs) echo the log of the migration ;;
wait) case "$END" in *Complete*) ;; *) echo 'error: timed out waiting for the condition' >&2; exit 1 ;; esac ;;
esac
"""


@pytest.mark.parametrize(
    ("end", "code"), [("SuccessCriteriaMetComplete", 0), ("FailureTargetFailed", 1)]
)
def test_the_roll_out_waits_for_the_migration_and_stops_if_it_failed(
    project: Project, tmp_path: Path, end: str, code: int
) -> None:
    text = project.read("docs/kubernetes.md")
    (script,) = [block for block in blocks(text, "sh") if "kubectl rollout" in block]
    migrate, service, _ = blocks(text, "yaml")
    folder = tmp_path / "deploy" / "kubernetes"
    folder.mkdir(parents=True)
    (folder / "migrate.yaml").write_text(migrate, "utf-8")
    (folder / "service.yaml").write_text(service, "utf-8")
    for name, program in (("kubectl", FAKE_KUBECTL), ("sleep", "#!/bin/sh\n")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(program, "utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{project.environment['PATH']}", "HERE": str(tmp_path), "END": end,
    }  # fmt: skip
    done = project.run(
        "sh", "-c", script, "rollout", "1a2b3c4", cwd=tmp_path, env=environment, expect=None
    )
    assert done.returncode == code, done.stderr
    assert "the log of the migration" in done.stdout
    calls = (tmp_path / "calls").read_text("utf-8").splitlines()
    verbs = [call.split()[0] for call in calls]
    start = ["apply", "get", "get", "get", "logs", "wait"]
    assert verbs == (start if code else [*start, "apply", "rollout"])
    applied = list(
        yaml.safe_load_all((tmp_path / "applied").read_text("utf-8").split("apiVersion: apps")[0])
    )
    job = next(item for item in applied if item["kind"] == "Job")
    assert f"job/{job['metadata']['name']}" in calls[1]
    assert "TAG" not in (tmp_path / "applied").read_text("utf-8")
