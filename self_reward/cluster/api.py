"""Reading from the Kubernetes API server: objects by path, and lists of them."""

import json
from pathlib import Path

import urllib3
from kubernetes import client, config

from self_reward.cluster.pods import Object
from self_reward.errors import TryAgain, UserError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT = (5, 20)  # seconds to connect to the API server, and for its answer
PAGE = 500  # objects in one answer


class Forbidden(Exception):
    """The service account may not read this."""


class Api:
    """Read access to the API server."""

    def __init__(self, connection: client.ApiClient):
        self._client = connection

    def get(self, path: str, **query: str | int) -> Object | None:
        """The object at `path`; None where it does not exist. Raises Forbidden, and TryAgain where nobody answers."""
        request = self._client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        host = self._client.configuration.host
        try:
            answer = self._client.call_api(*request, _request_timeout=TIMEOUT)
            body = answer.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TryAgain(f"the Kubernetes API at {host} cannot be reached: {error}") from error
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise Forbidden(path)
        if answer.status != 200:
            raise TryAgain(f"the Kubernetes API at {host} answers {answer.status} to GET {path}: {body[:200]!r}")
        return json.loads(body)

    def list(self, path: str) -> list[Object]:
        """All objects at `path`; none where their kind is unknown. Raises as `get`."""
        items: list[Object] = []
        more: dict[str, str] = {}
        while (page := self.get(path, limit=PAGE, **more)) is not None:
            items += page["items"]
            if not (token := page["metadata"].get("continue")):
                break
            more = {"continue": token}
        return items


def connect() -> tuple[Api, str]:
    """The cluster and namespace of this pod; outside a pod those of KUBECONFIG, for trying things out."""
    try:
        config.load_incluster_config()
        settings = client.Configuration.get_default_copy()
        settings.proxy = None  # HTTPS_PROXY is for the way out of the cluster; Argo's own container does the same
        return Api(client.ApiClient(settings)), NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        try:
            context = config.list_kube_config_contexts()[1]
            config.load_kube_config()
        except (config.ConfigException, OSError):
            raise UserError(f"in_cluster is set, but this is not a pod with a service account: {error}") from None
        return Api(client.ApiClient()), context["context"].get("namespace", "default")
