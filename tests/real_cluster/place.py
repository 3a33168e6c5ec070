"""A namespace on the cluster that KUBECONFIG names, with the chart in it, and what tests do there."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from self_reward.store import open_store
from tests.support import argo, servers

GROUP = {"group": "argoproj.io", "version": "v1alpha1"}
CRDS = ("workflows", "workflowtemplates", "workflowtaskresults", "workflowtasksets")
ENDED = ("Succeeded", "Failed", "Error")
REPOSITORY = "self-reward/run"
Workflow = dict[str, Any]


def missing() -> list[str]:
    """What is not there for these tests, with how to get it."""
    found = [f"{name} is not on the PATH" for name in ("kubectl", "argo") if not shutil.which(name)]
    if not os.environ.get("TAG"):
        found.append(
            "TAG names no images: make build-images, then load or push them and give TAG=... IMAGE_REGISTRY=..."
        )
    if not os.environ.get("KUBECONFIG"):
        return [*found, "KUBECONFIG names no cluster"]
    try:
        config.load_kube_config()
        client.VersionApi().get_code(_request_timeout=10)
    except Exception as error:
        return [*found, f"the cluster of KUBECONFIG={os.environ['KUBECONFIG']} does not answer: {error}"]
    definitions = {one.metadata.name for one in client.ApiextensionsV1Api().list_custom_resource_definition().items}
    if lacking := [name for name in CRDS if f"{name}.argoproj.io" not in definitions]:
        found.append(f"Argo Workflows is not installed: no CustomResourceDefinitions {', '.join(lacking)}")
    return found


class Place:
    """A namespace of its own, with Pod Security `restricted`, and volumes in the folder HOST_PATH where it is given."""

    def __init__(self, name: str):
        self.name = name
        self.core, self.objects = client.CoreV1Api(), client.CustomObjectsApi()
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.core.create_namespace({"metadata": {"name": name, "labels": labels}})
        self.volumes: list[str] = []

    def remove(self) -> None:
        """With what the chart has made outside the namespace."""
        command = [argo.helm(), "uninstall", "run", "--namespace", self.name, "--ignore-not-found"]
        subprocess.run(command, check=True, capture_output=True)
        self.core.delete_namespace(self.name)
        for volume in self.volumes:
            self.core.delete_persistent_volume(volume)

    def make_volume(self, claim: str) -> None:
        """A volume for `claim` in HOST_PATH, a folder of this machine that the node sees under the same name."""
        folder = Path(os.environ["HOST_PATH"]) / self.name / claim
        folder.mkdir(parents=True)
        folder.chmod(0o777)  # Kubernetes does not give a hostPath to the pod's group
        self.volumes.append(f"{self.name}-{claim}")
        spec = {
            "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": self.name, "name": claim},
        }  # fmt: skip
        self.core.create_persistent_volume({"metadata": {"name": self.volumes[-1]}, "spec": spec})

    def install(self, values: dict[str, Any], *more: str) -> None:
        """helm install, with the values of the file VALUES on top."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            files = [file.name, os.environ["VALUES"]] if os.environ.get("VALUES") else [file.name]
            self.helm("install", "run", str(argo.CHART), *(w for one in files for w in ("--values", one)), *more)

    def helm(self, *words: str) -> str:
        command = [argo.helm(), *words, "--namespace", self.name]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
        return ended.stdout

    def argo(self, *words: str) -> None:
        subprocess.run(["argo", "--namespace", self.name, *words], check=True, capture_output=True)

    def controller_answers(self) -> bool:
        """Whether a workflow without a pod is picked up within half a minute."""
        spec = {"entrypoint": "wait", "templates": [{"name": "wait", "suspend": {}}]}
        probe = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "probe"}, "spec": spec}
        # with `templateReferencing: Strict` it is refused, which is an answer
        self.objects.create_namespaced_custom_object(**GROUP, namespace=self.name, plural="workflows", body=probe)
        end = time.monotonic() + 30
        while not self.get("probe").get("status", {}).get("phase") and time.monotonic() < end:
            time.sleep(0.5)
        phase = self.get("probe").get("status", {}).get("phase")
        self.objects.delete_namespaced_custom_object(**GROUP, namespace=self.name, plural="workflows", name="probe")
        return bool(phase)

    # ---- workflows

    def submit(self, **parameters: str) -> str:
        """As `argo submit argo/self-reward.yaml -p NAME=VALUE ...` does it; returns the workflow's name."""
        workflow = argo.load((argo.ROOT / "argo/self-reward.yaml").read_text())[0]
        given = [{"name": name, "value": value} for name, value in parameters.items()]
        workflow["spec"]["arguments"] = {"parameters": given}
        made = self.objects.create_namespaced_custom_object(
            **GROUP, namespace=self.name, plural="workflows", body=workflow
        )
        return str(made["metadata"]["name"])

    def get(self, name: str) -> Workflow:
        found: Workflow = self.objects.get_namespaced_custom_object(
            **GROUP, namespace=self.name, plural="workflows", name=name
        )
        return found

    def wait(self, name: str, seconds: float, until: Callable[[Workflow], Any] | None = None) -> Workflow:
        """Until the workflow has ended, or `until` is true of it; AssertionError with what it is doing after that."""
        end = time.monotonic() + seconds
        while True:
            workflow = self.get(name)
            ended = workflow.get("status", {}).get("phase") in ENDED
            if ended or (until is not None and until(workflow)):
                return workflow
            assert time.monotonic() < end, f"{name} is not there after {seconds} s: {told(workflow)}"
            time.sleep(1)

    def run(self, seconds: float = 1800, **parameters: str) -> Workflow:
        """Submit and wait until it has ended."""
        return self.wait(self.submit(**parameters), seconds)

    def pods(self, workflow: Workflow) -> list[Any]:
        selector = f"workflows.argoproj.io/workflow={workflow['metadata']['name']}"
        return list(self.core.list_namespaced_pod(self.name, label_selector=selector).items)

    # ---- the server

    @contextlib.contextmanager
    def server(self, cache: Path) -> Iterator[Any]:
        """The data repository in the cluster, from here."""
        token = self.core.read_namespaced_secret("self-reward", self.name).data["OXEN_TOKEN"]
        os.environ["OXEN_TOKEN"] = base64.b64decode(token).decode()
        port = servers.free_port()
        command = ["kubectl", "--namespace", self.name, "port-forward", "service/self-reward-oxen", f"{port}:80"]
        forward = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while not servers.answers(f"http://127.0.0.1:{port}"):
                assert forward.poll() is None and time.monotonic() < end, "kubectl port-forward does not answer"
                time.sleep(0.2)
            address = f"oxen+http://127.0.0.1:{port}/{REPOSITORY}"
            yield open_store(address, branch="main", lock_timeout=1, store_timeout=60, cache_dir=cache)
        finally:
            forward.terminate()
            forward.wait()


def new_name() -> str:
    return f"self-reward-test-{secrets.token_hex(3)}"


def nodes(workflow: Workflow) -> list[dict[str, Any]]:
    return list(workflow.get("status", {}).get("nodes", {}).values())


def node(workflow: Workflow, template: str, **inputs: str) -> dict[str, Any] | None:
    """The node of the leaf `template` with these inputs: the one that holds its tries."""
    for one in nodes(workflow):
        reference = one.get("templateRef", {}).get("template") or one.get("templateName")
        given = {p["name"]: p.get("value") for p in one.get("inputs", {}).get("parameters", ())}
        if one["type"] == "Retry" and reference == template and inputs.items() <= given.items():
            return one
    return None


def tries(workflow: Workflow, node: dict[str, Any]) -> list[dict[str, Any]]:
    return [workflow["status"]["nodes"][child] for child in node.get("children", ())]


def outputs(workflow: Workflow) -> dict[str, str]:
    return {one["name"]: one["value"] for one in workflow["status"].get("outputs", {}).get("parameters", ())}


def told(workflow: Workflow) -> str:
    """What became of each pod, for messages."""
    of_pods = [
        (one["displayName"], one["phase"], one.get("message", "")) for one in nodes(workflow) if one["type"] == "Pod"
    ]
    return json.dumps([workflow.get("status", {}).get("phase"), workflow.get("status", {}).get("message"), of_pods])
