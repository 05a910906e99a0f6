"""The rules and the dashboard of a generated service, for real: `make prometheus`.

By Debian's Prometheus, or what PROMETHEUS names. Debian 12's sends no header of ours yet; 3.13, 3.14
and Debian's build of 3.5 send it once more with each request (prometheus/common, issue 981), which
the guard refuses. So a small proxy stands between, which sends the key once.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.project import Project, environment, get, render, run

Rendered = Callable[..., Project]

CONFIGURATIONS = ("prometheus.yaml", "kubernetes.yaml")
JOB = "my-api-service"
PARTS = {"metrics": "yes", "limits": "yes", "deploy": "yes"}
TELLS = (  # reasons and outcomes
    "auth/access/rule",
    "auth/log",
    "auth/store/queries",
    "limits/allowed_from",
    "limits/policy",
)

ENDPOINTS = """
from asyncio import sleep


@guarded.get("/failing")
async def failing() -> None:
    raise RuntimeError("failed")


@guarded.get("/slow")
async def slow() -> None:
    await sleep(1.2)
"""


def rules(project: Project) -> dict[str, Any]:
    """By the name of the alert."""
    (group,) = yaml.safe_load(project.read("deploy/prometheus/rules.yaml"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels(project: Project) -> dict[str, list[str]]:
    """What each asks, by its title."""
    dashboard = json.loads(project.read("deploy/grafana/dashboard.json"))
    return {
        panel["title"]: [
            each["expr"].replace("$__rate_interval", "1m") for each in panel["targets"]
        ]
        for panel in dashboard["panels"]
    }


def expressions(project: Project) -> list[str]:
    asked = [expression for each in panels(project).values() for expression in each]
    return [rule["expr"] for rule in rules(project).values()] + asked


# As text.


def test_whatever_is_asked_for_is_told(rendered: Rendered) -> None:
    project = rendered(PARTS)
    code = project.read("app/metrics/__init__.py")
    told = set(re.findall(r'(?:Counter|Histogram|GaugeMetricFamily)\(\s*"(\w+)"', code))
    labels = {*re.findall(r'"(\w+)"', "".join(re.findall(r"\[(\"[^\]]*)\]", code)))}
    assert len(told) == 7
    for expression in expressions(project):
        names = set(re.findall(r"\b(api_\w+|up)\b", expression))
        assert names
        assert {re.sub("_(total|bucket|count|sum)$", "", name) for name in names} <= told | {"up"}
        used = set(re.findall(r"(\w+)=", expression))
        used |= {
            each for by in re.findall(r"by \(([^)]*)\)", expression) for each in by.split(", ")
        }
        assert used <= labels | {"job", "instance", "le"}, expression


def test_reasons_and_outcomes_that_are_asked_for_are_those_of_the_code(rendered: Rendered) -> None:
    project = rendered(PARTS)
    code = "".join(project.read(f"app/{name}.py") for name in TELLS)
    for expression in expressions(project):
        for asked in re.findall(r'(?:reason|outcome)=~?"([^"]*)"', expression):
            for each in asked.split("|"):
                assert f'"{each}"' in code, each


def test_each_alert_says_what_to_do(rendered: Rendered) -> None:
    for rule in rules(rendered(PARTS)).values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["summary"]) > 100


@pytest.mark.parametrize("name", ["My API Service", 'A "quoted" \\ name', "Null", "x" * 60])
def test_the_dashboard_is_whole(rendered: Rendered, name: str) -> None:
    dashboard = json.loads(
        rendered({"project_name": name, "project_slug": "a-slug", **PARTS}).read(
            "deploy/grafana/dashboard.json"
        )
    )
    assert dashboard["title"] == name
    assert len(dashboard["uid"]) <= 40
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize("header", ["api-key", "Null"])
def test_the_key_is_sent_from_a_file(rendered: Rendered, header: str) -> None:
    project = rendered({"api_key_header": header, **PARTS})
    for name in CONFIGURATIONS:
        (job,) = yaml.safe_load(project.read(f"deploy/prometheus/{name}"))["scrape_configs"]
        assert job["job_name"] == JOB
        assert job["http_headers"] == {header: {"files": ["/run/secrets/metrics_key"]}}


def test_it_asks_each_replica_of_compose(rendered: Rendered) -> None:
    project = rendered({"deploy": "yes", **PARTS})
    (job,) = yaml.safe_load(project.read("deploy/prometheus/prometheus.yaml"))["scrape_configs"]
    replicas = [
        each
        for each in yaml.safe_load(project.read("compose.yaml"))["services"]
        if each.startswith("replica")
    ]
    assert job["static_configs"] == [{"targets": [f"{each}:8000" for each in replicas]}]


# By promtool.

# When each alert is raised: series at each minute, and when to look; and the labels that it has.
# As much in twice the time, or half of it, and nobody is called.
SECONDS = {"0.5": "0+9x30", "2.5": "0+10x30", "+Inf": "0+10x30"}
RAISED: dict[str, tuple[dict[str, str], int, dict[str, str]]] = {
    "NotScraped": ({"up": "1 0 0 0"}, 3, {"instance": "a"}),
    "KeysOutOfReach": (
        {'api_key_refusals_total{reason="keys out of reach"}': "0 0 5 5 5 5"},
        3,
        {},
    ),
    "Errors": (
        {
            'api_requests_total{route="/x",status="200"}': "0+90x30",
            'api_requests_total{route="/x",status="500"}': "0+10x30",
        },
        10,
        {"route": "/x"},
    ),
    "Slow": (
        {
            f'api_request_seconds_bucket{{route="/x",le="{le}"}}': values
            for le, values in SECONDS.items()
        },
        12,
        {"route": "/x"},
    ),
    "Strangers": ({'api_key_refusals_total{reason="no key"}': "0+70x30"}, 15, {}),
    "EndedKeyInUse": (
        {'api_key_refusals_total{reason="expired key"}': "0+2x30"},
        15,
        {"reason": "expired key"},
    ),
    "KeyRefused": (
        {
            'api_key_requests_total{key_id="k",outcome="refused"}': "0+6x30",
            'api_key_requests_total{key_id="k",outcome="served"}': "0+4x30",
        },
        15,
        {"key_id": "k"},
    ),
    "KeyOverItsLimit": (
        {
            'api_key_requests_total{key_id="k",outcome="limited"}': "0+6x30",
            'api_key_requests_total{key_id="k",outcome="served"}': "0+4x30",
        },
        15,
        {"key_id": "k"},
    ),
    "UsageNotWritten": ({"api_key_usage_age_seconds": "0+60x30"}, 9, {"instance": "a"}),
    "CountersGoBack": (
        {'api_requests_total{route="/x",status="200"}': "5 1 5 1 5 1 5 1"},
        7,
        {"instance": "a"},
    ),
}
QUIET = {  # the same, and no reason to call anybody
    "NotScraped": {"up": "1 1 1 0"},
    "KeysOutOfReach": {'api_key_refusals_total{reason="keys out of reach"}': "0 0 0 0 0"},
    "Errors": {
        'api_requests_total{route="/x",status="200"}': "0+90x30",
        'api_requests_total{route="/x",status="500"}': "0+4x30",
    },
    "Slow": {
        'api_request_seconds_bucket{route="/x",le="0.5"}': "0+999x30",
        'api_request_seconds_bucket{route="/x",le="+Inf"}': "0+1000x30",
    },
    "Strangers": {'api_key_refusals_total{reason="no key"}': "0+50x30"},
    "EndedKeyInUse": {'api_key_refusals_total{reason="expired key"}': "0+0.9x30"},
    "KeyRefused": {
        'api_key_requests_total{key_id="k",outcome="refused"}': "0+6x30",
        'api_key_requests_total{key_id="k",outcome="served"}': "0+7x30",
    },
    "KeyOverItsLimit": {
        'api_key_requests_total{key_id="k",outcome="limited"}': "0+6x30",
        'api_key_requests_total{key_id="k",outcome="served"}': "0+7x30",
    },
    "UsageNotWritten": {"api_key_usage_age_seconds": "0 60 60 60 60 60 60 60 60 60"},
    "CountersGoBack": {'api_requests_total{route="/x",status="200"}': "5 1 5 6 7 8 1 2"},
}


def with_labels(series: dict[str, str]) -> list[dict[str, str]]:
    """As Prometheus adds them to what it asks for."""
    return [
        {
            "series": re.sub(r"^(\w+)\{?([^}]*)\}?$", rf'\1{{job="{JOB}",instance="a",\2}}', name),
            "values": values,
        }
        for name, values in series.items()
    ]


@pytest.mark.slow
@pytest.mark.prometheus
class TestPromtool:
    def test_it_takes_the_rules(self, rendered: Rendered) -> None:
        said = (
            rendered(PARTS).run("promtool", "check", "rules", "deploy/prometheus/rules.yaml").stdout
        )
        assert f"{len(RAISED)} rules found" in said

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_it_takes_the_configuration(self, rendered: Rendered, name: str) -> None:
        project = rendered(PARTS)
        file = project.path / "deploy" / "prometheus" / name
        configuration = yaml.safe_load(file.read_text("utf-8"))
        (job,) = configuration["scrape_configs"]
        job.pop("kubernetes_sd_configs", None)  # Debian leaves them out
        if not sends_headers("promtool"):
            del job["http_headers"]
        file.write_text(yaml.safe_dump(configuration), "utf-8")
        project.run("promtool", "check", "config", f"deploy/prometheus/{name}")

    def test_each_alert_is_raised_when_it_should_be_and_only_then(
        self, rendered: Rendered, tmp_path: Path
    ) -> None:
        project = rendered(PARTS)
        alerts = rules(project)
        assert alerts.keys() == RAISED.keys() == QUIET.keys()
        tests = []
        for alert, (series, minute, labels) in RAISED.items():
            rule = alerts[alert]
            raised = {
                "exp_labels": {"job": JOB, **labels, **rule["labels"]},
                "exp_annotations": rule["annotations"],
            }
            for input_series, expected in ((series, [raised]), (QUIET[alert], [])):
                at = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}
                test = {"interval": "1m", "input_series": with_labels(input_series)}
                tests.append({**test, "alert_rule_test": [at]})
        file = tmp_path / "tests.yaml"
        rule_file = f"{project.path}/deploy/prometheus/rules.yaml"
        file.write_text(yaml.safe_dump({"rule_files": [rule_file], "tests": tests}), "utf-8")
        run("promtool", "test", "rules", file, cwd=tmp_path)


# By Prometheus.


def sends_headers(command: str) -> bool:
    said = run(command, "--version", cwd=Path.cwd())
    version = re.search(r"version (\d+)\.(\d+)", said.stdout + said.stderr)
    assert version
    return (int(version[1]), int(version[2])) >= (2, 55)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def adding(key: str, url: str, brought: set[str]) -> Iterator[str]:
    """An address that passes on what it is asked, with the key; and collects what was brought."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            brought.update(self.headers.get_all("api-key", []))
            accept = {"Accept": self.headers["Accept"], "api-key": key}
            try:
                status, headers, body = get(url + self.path, accept)
            except OSError:
                status, headers, body = 502, {}, ""
            self.send_response(status)
            self.send_header("Content-Type", headers.get("content-type", "text/plain"))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        status, _, body = get(f"{self.url}/api/v1/query?{query}")
        assert status == 200, body
        told: list[Any] = json.loads(body)["data"]["result"]
        return told

    def value(self, expression: str) -> float:
        return sum(float(each["value"][1]) for each in self.ask(expression))

    def until(self, expression: str) -> list[Any]:
        """What it tells as soon as it tells anything but nothings."""
        give_up_at = time.monotonic() + 60
        while not (told := [each for each in self.ask(expression) if each["value"][1] != "NaN"]):
            assert time.monotonic() < give_up_at, expression
            time.sleep(0.2)
        return told


@contextmanager
def asking(
    project: Project, url: str, key: str, folder: Path, brought: set[str]
) -> Iterator[Prometheus]:
    """The shipped configuration, every half second, of one address; the rules too."""
    file = project.path / "deploy" / "prometheus" / "prometheus.yaml"
    configuration = yaml.safe_load(file.read_text("utf-8"))
    configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    configuration["rule_files"] = [f"{file.parent}/rules.yaml"]
    (job,) = configuration["scrape_configs"]
    (folder / "key").write_text(f"{key}\n")
    job["http_headers"]["api-key"]["files"] = [f"{folder}/key"]
    command = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    assert command, "A Prometheus is needed, for example Debian's: apt-get install prometheus"
    if not sends_headers(command):
        del job["http_headers"]
        brought.add(key)
    with adding(key, url, brought) as address:
        job["static_configs"] = [{"targets": [address]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), "utf-8")
        port = free_port()
        with (
            (folder / "said").open("wb") as said,
            subprocess.Popen(
                [
                    command,
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=said,
            ) as server,
        ):
            try:
                prometheus = Prometheus(port)
                give_up_at = time.monotonic() + 60
                while not is_ready(f"{prometheus.url}/-/ready"):
                    assert server.poll() is None, (folder / "said").read_text()
                    assert time.monotonic() < give_up_at
                    time.sleep(0.1)
                yield prometheus
            finally:
                server.terminate()


def is_ready(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    answers = {**PARTS, "management": "yes"}
    project = render(template, tmp_path_factory.mktemp("prometheus"), answers)
    routes = project.path / "app" / "routes.py"
    routes.write_text(routes.read_text("utf-8") + ENDPOINTS, "utf-8")
    project.run("uv", "sync", "--quiet")
    return project


@pytest.mark.slow
@pytest.mark.prometheus
def test_prometheus_is_told_the_truth_and_calls_for_help(project: Project, tmp_path: Path) -> None:
    owner = project.keys[0]
    project.run("uv", "run", "--no-sync", JOB, "db", "upgrade")
    reader = project.manage_keys("create", "prometheus", "--scope", "metrics:read")["key"]
    weak = project.manage_keys("create", "weak")
    metered = project.manage_keys("create", "metered", "--quota", "1/month")
    gone = project.manage_keys("create", "gone")
    project.manage_keys("revoke", gone["id"])
    alerts = {name: rule["expr"] for name, rule in rules(project).items()}
    database = project.path / "keys.db"
    brought: set[str] = set()

    command = ("uv", "run", "--no-sync", "uvicorn", "app.main:app", "--port", "{port}")
    several = {"PROMETHEUS_MULTIPROC_DIR": f"{tmp_path}/metrics", "LOG_LEVEL": "ERROR"}
    with (
        ThreadPoolExecutor(8) as threads,
        project.serving(*command, "--workers", "2", **several) as url,
        asking(project, url, reader, tmp_path, brought) as prometheus,
    ):

        def call(path: str, key: str, times: int, *statuses: int) -> None:
            """Each on a connection of its own, so that both workers answer."""
            answers = threads.map(lambda _: get(url + path, {"api-key": key})[0], range(times))
            assert set(answers) <= {*statuses}

        def everything(times: int) -> None:
            call("/secure-endpoint", owner, 2 * times, 200)
            call("/failing", owner, times, 500)
            call("/slow", owner, 8, 200)
            call("/api-keys", weak["key"], times, 403)
            call("/secure-endpoint", metered["key"], times, 429)
            call("/secure-endpoint", gone["key"], times, 403)
            call("/secure-endpoint", f"{uuid4()}", 14 * times, 403, 429)  # who is slowed

        call("/", metered["key"], 1, 200)
        # Counters are seen to grow once they are seen.
        everything(1)
        served = f'sum(api_requests_total{{job="{JOB}",route="/secure-endpoint",status="200"}})'
        prometheus.until(f"{served} == 2")
        everything(50)

        # It is the truth, and asked for with the key of the file.
        assert brought == {reader}
        prometheus.until(f"{served} == 102")
        by_key = f'api_key_requests_total{{key_id="{weak["id"]}",outcome="refused"}}'
        prometheus.until(f"sum({by_key}) == 51")
        assert prometheus.value("sum(api_request_seconds_count{route='/slow'})") == 16
        strangers = 'api_key_refusals_total{reason=~"unknown key|too many wrong keys"}'
        prometheus.until(f"sum({strangers}) == 714")
        assert len(list((tmp_path / "metrics").glob("counter_*.db"))) == 2

        # Each panel has something to show, and each alert can be told of.
        for title, asked in panels(project).items():
            for expression in asked:
                assert prometheus.until(expression), title
        raised = ("Errors", "Slow", "Strangers", "EndedKeyInUse", "KeyRefused", "KeyOverItsLimit")
        for name in raised:
            assert prometheus.until(alerts[name]), name
        routes = {each["metric"]["route"] for each in prometheus.ask(alerts["Slow"])}
        assert routes == {"/slow"}
        assert {each["metric"]["route"] for each in prometheus.ask(alerts["Errors"])} == {
            "/failing"
        }
        (refused,) = prometheus.ask(alerts["KeyRefused"])
        assert refused["metric"]["key_id"] == weak["id"]
        (limited,) = prometheus.ask(alerts["KeyOverItsLimit"])
        assert limited["metric"]["key_id"] == metered["id"]
        for name in ("NotScraped", "KeysOutOfReach", "UsageNotWritten", "CountersGoBack"):
            assert prometheus.ask(alerts[name]) == [], name
        written = alerts["UsageNotWritten"].replace("> 300", "> 0")
        assert prometheus.until(written)

        # The database is away, and comes back.
        database.rename(tmp_path / "away.db")
        prometheus.until(alerts["NotScraped"])
        call("/secure-endpoint", owner, 20, 503)
        (tmp_path / "away.db").rename(database)
        prometheus.until(alerts["KeysOutOfReach"])
        assert prometheus.ask(alerts["NotScraped"]) == []

        # Prometheus itself calls for help.
        for name in ("KeysOutOfReach", *raised[2:]):
            prometheus.until(f'ALERTS{{alertname="{name}", alertstate="firing"}}')
        prometheus.until('ALERTS{alertname="Errors"}')
