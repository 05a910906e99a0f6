"""The generated `compose.yaml` and `deploy/`: what they say, and what happens when it is done.

For the latter: docker, or what ENGINE names, with its `compose`; and podman, to play Kubernetes.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.project import FLAVOURS, UUID4, Project

Rendered = Callable[..., Project]
Objects = dict[str, Any]

BASE = "deploy/kubernetes"
REPLICAS = ("replica-1", "replica-2")


@pytest.fixture(params=FLAVOURS)
def project(request: pytest.FixtureRequest, rendered: Rendered) -> Project:
    return rendered({"key_store": request.param, "deploy": "yes"})


def compose_file(project: Project) -> Any:
    return yaml.safe_load(project.read("compose.yaml"))


def kubernetes(project: Project) -> Objects:
    """What the base holds, by kind."""
    told = project.run("kubectl", "kustomize", BASE).stdout
    objects = list(yaml.safe_load_all(told))
    assert len({each["kind"] for each in objects}) == len(objects)
    return {each["kind"]: each for each in objects}


def pods(objects: Objects) -> dict[str, Any]:
    """By the kind of what makes them."""
    return {
        kind: objects[kind]["spec"]["template"] for kind in ("Deployment", "Job") if kind in objects
    }


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["My API Service", "2024", "Null"])
def test_they_are_valid(rendered: Rendered, tmp_path: Path, flavour: str, name: str) -> None:
    project = rendered({"project_name": name, "key_store": flavour, "deploy": "yes"})
    project.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(project.run("kubectl", "kustomize", BASE).stdout)
    for version in ("1.30", "1.37"):
        project.run("kubernetes-validate", "--strict", "-k", version, str(manifests))


def test_every_manifest_is_applied(project: Project) -> None:
    listed = yaml.safe_load(project.read(f"{BASE}/kustomization.yaml"))["resources"]
    files = {path.name for path in (project.path / BASE).iterdir()}
    assert {*listed, "kustomization.yaml"} == files


def test_they_agree_with_the_image(project: Project) -> None:
    dockerfile, objects = project.read("Dockerfile"), kubernetes(project)
    port = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert f"'localhost', {port[0]})" in dockerfile  # the health check
    user = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    drain = int(*re.findall(r"^GRACE: Final = (\d+)", project.read("app/auth/cli/serve.py"), re.M))

    for pod in pods(objects).values():
        identity = pod["spec"]["securityContext"]
        assert [(f"{identity['runAsUser']}", f"{identity['runAsGroup']}")] == user
    pod = pods(objects)["Deployment"]["spec"]
    (container,) = pod["containers"]
    assert [f"{each['containerPort']}" for each in container["ports"]] == port
    (ingress,) = objects["NetworkPolicy"]["spec"]["ingress"]
    assert [f"{each['port']}" for each in ingress["ports"]] == port
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + drain

    services = compose_file(project)["services"]
    for replica in REPLICAS:
        assert seconds(services[replica]["stop_grace_period"]) > drain
    addresses = services["proxy"]["environment"].values()
    assert [address.partition(":")[2] for address in addresses] == port * len(REPLICAS)


def test_what_belongs_together_finds_each_other(project: Project) -> None:
    objects = kubernetes(project)
    made = {kind: pod["metadata"]["labels"].items() for kind, pod in pods(objects).items()}
    spec = objects["Deployment"]["spec"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    for selected in (
        spec["selector"]["matchLabels"],
        spread["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert [kind for kind in made if selected.items() <= made[kind]] == ["Deployment"]
    everything = objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items()
    assert all(everything <= labels for labels in made.values())
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment",
        objects["Deployment"]["metadata"]["name"],
    )
    assert "replicas" not in spec  # or applying it again would undo what the autoscaler did
    (container,) = spec["template"]["spec"]["containers"]
    names = {port["name"] for port in container["ports"]}
    probes = [
        container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")
    ]
    assert {each["port"] for each in probes} == names
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == names
    for probe in probes:
        assert f'@public.get("{probe["path"]}"' in project.read("app/routes.py")


def test_pods_have_no_more_rights_than_they_need(project: Project) -> None:
    for pod in pods(kubernetes(project)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} == container["resources"].keys()


def test_settings_come_from_the_folder_that_is_mounted(project: Project) -> None:
    for pod in pods(kubernetes(project)).values():
        (container,) = pod["spec"]["containers"]
        settings = {each["name"]: each["value"] for each in container["env"]}
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        assert volumes[mounts[settings["SECRETS_DIR"]]]["secret"] == {"secretName": "settings"}
    for name, service in compose_file(project)["services"].items():
        if folder := service["environment"].get("SECRETS_DIR"):
            assert service["volumes"] == [f"./secrets/service:{folder}:ro"], name


def test_the_proxy_alone_is_believed(project: Project) -> None:
    compose = compose_file(project)
    (network,) = compose["networks"]["front"]["ipam"]["config"]
    subnet = ipaddress.ip_network(network["subnet"])
    address = {
        name: service["networks"]["front"]["ipv4_address"]
        for name, service in compose["services"].items()
        if "front" in service["networks"]
    }
    assert address.keys() == {"proxy", *REPLICAS}
    assert len({*address.values()}) == len(address)
    assert all(ipaddress.ip_address(each) in subnet for each in address.values())
    proxy = compose["services"]["proxy"]
    assert [each.partition(":")[0] for each in proxy["environment"].values()] == [
        address[replica] for replica in REPLICAS
    ]
    for replica in REPLICAS:
        service = compose["services"][replica]
        assert service["environment"]["FORWARDED_ALLOW_IPS"] == address["proxy"]
        assert "ports" not in service


# deploy/up.sh, with something else than an engine in the place of its `compose`.


@pytest.fixture
def told(tmp_path: Path) -> Callable[[Project, str], list[str]]:
    """Run it, on a machine where the proxy runs or does not, and say what `compose` was told."""
    log, compose = tmp_path / "told", tmp_path / "compose"
    compose.write_text(
        f"""#!/bin/sh
echo "$*" >> {log}
case "$*" in
*"show info"*) exit "$STOPPED" ;;
*"show stat"*) printf 'service,replica-%s,0,0,UP,\\n' 1 2 ;;
esac
"""
    )
    compose.chmod(0o755)

    def up(project: Project, stopped: str) -> list[str]:
        log.unlink(missing_ok=True)
        (project.path / "uv.lock").touch()
        project.run("sh", "deploy/up.sh", COMPOSE=f"{compose}", STOPPED=stopped)
        return log.read_text().splitlines()

    return up


Told = Callable[[Project, str], list[str]]


def test_secrets_are_made_once_and_stay_out_of_the_repository(project: Project, told: Told) -> None:
    theirs = project.path / "secrets" / "service" / "api_keys"
    told(project, "1")
    made = {name: text for name, text in project.files().items() if name.startswith("secrets/")}
    assert UUID4.fullmatch(made["secrets/service/api_keys"].decode().strip())
    known = {name.lower() for name in re.findall(r"^#?(\w+)=", project.read(".env.example"), re.M)}
    assert {Path(name).name for name in made if name.startswith("secrets/service/")} <= known
    if "secrets/service/database_url" in made:
        password = made["secrets/database/password"].decode().strip()
        assert len(password) == 32
        url = f"postgresql://service:{password}@database/service\n"
        assert made["secrets/service/database_url"].decode() == url
    assert b"PRIVATE KEY" in made["secrets/proxy/tls.pem.key"]
    # Others read the files, as the containers' users are others, but do not get to them.
    assert (project.path / "secrets").stat().st_mode & 0o777 == 0o700
    for name in made:
        assert (project.path / name).stat().st_mode & 0o777 == 0o644
        assert (project.path / name).parent.stat().st_mode & 0o777 == 0o755

    theirs.write_text(f"{uuid4()}\n")
    before = project.files()
    told(project, "1")
    assert project.files() == before
    project.run("git", "init", "--quiet")
    added = project.run("git", "add", "--all", "--dry-run").stdout
    assert "deploy/up.sh" in added
    assert "secrets/" not in added


def test_the_first_time_everything_is_started(project: Project, told: Told) -> None:
    commands = [each for each in told(project, "1") if not each.startswith("exec")]
    assert commands == ["build", "up --detach"]


def test_afterwards_each_replica_is_taken_out_before_it_is_replaced(
    project: Project, told: Told
) -> None:
    commands = [re.sub(r"exec -T proxy .*'(.*)'.*", r"\1", each) for each in told(project, "0")]
    migrations = ["run --rm migration"] * ("migration" in compose_file(project)["services"])
    replacements = [
        line
        for replica in REPLICAS
        for line in (
            f"set server service/{replica} state drain",
            f"up --detach --no-deps --force-recreate {replica}",
            f"set server service/{replica} health down; set server service/{replica} state ready",
            "show stat",
        )
    ]
    assert commands == ["build", "show info", *migrations, *replacements]
