"""What deploy/ holds fits Kubernetes' schemas, itself, and the commands of this package; no cluster runs it here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from vit_core.app.cli.app import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The documents of tf-serving.yaml by their kind."""
    yaml = pytest.importorskip("yaml")
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "tf-serving.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_kubernetes_takes_the_manifests(manifests: dict[str, Any], version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    assert list(manifests) == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for document in manifests.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_manifests_speak_of_each_other(manifests: dict[str, Any]) -> None:
    deployment, service, scaler = manifests.values()
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= template["metadata"]["labels"].items()
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe].get("httpGet") or container[probe]["tcpSocket"]
        assert asked["port"] in ports
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "cpu" in container["resources"]["requests"]  # of which the scaler takes a share
    model = re.search(r"MODEL_NAME=(\w+)", (DEPLOY / "tf-serving" / "Dockerfile").read_text())
    assert model is not None and container["readinessProbe"]["httpGet"]["path"] == f"/v1/models/{model[1]}"


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*/Dockerfile")), ids=lambda path: path.parent.name)
def test_a_dockerfile_runs_commands_that_there_are(path: Path) -> None:
    """And copies what there is, or what the comment above writes."""
    text = path.read_text()
    commands = [shlex.split(line.removeprefix("#")) for line in text.splitlines() if line.startswith("#   vit ")]
    commands += [re.findall(r'"([^"]*)"', line) for line in text.splitlines() if line.startswith("CMD")]
    assert commands
    written = []
    for _, name, *arguments in commands:
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= flags
        written.append(arguments[1])
    for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert source in (*written, "${MODEL}") or (ROOT / source).exists(), source
