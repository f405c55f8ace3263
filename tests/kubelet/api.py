"""The Kubernetes API, as far as the tests speak it."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any, TypeVar

from tests.kubelet.pki import Pair

T = TypeVar("T")
Object = dict[str, Any]

_PATHS = {
    "CronJob": "/apis/batch/v1/namespaces/{namespace}/cronjobs",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "PersistentVolumeClaim": "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
}


class Refused(Exception):
    """The API server's answer was no success."""


class Api:
    """One API server, spoken to as an administrator."""

    def __init__(self, host: str, port: int, ca: Path, admin: Pair) -> None:
        self._address = (host, port)
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._tls.load_cert_chain(admin.certificate, admin.key)

    def request(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> Any:
        """One request; its answer read.

        Raises:
            Refused: it is no success.
            OSError: the server does not answer.
        """
        host, port = self._address
        connection = http.client.HTTPSConnection(host, port, timeout=30, context=self._tls)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 400:
            raise Refused(f"{method} {path}: {answer.status} {text[:500]}")
        return json.loads(text) if text.startswith("{") else text

    def apply(self, value: Object) -> Object:
        """Make an object, or make it what it is to be (server-side apply)."""
        where = f"{self._where(value)}?fieldManager=tests&force=true"
        return dict(self.request("PATCH", where, value, "application/apply-patch+yaml"))

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """One object."""
        return dict(self.request("GET", f"{_PATHS[kind].format(namespace=namespace)}/{name}"))

    def delete(self, kind: str, name: str, namespace: str = "default", grace: int = 0) -> None:
        """Remove an object, as `kubectl delete` does; one that is not there is removed."""
        path = _PATHS[kind].format(namespace=namespace)
        where = f"{path}/{name}?gracePeriodSeconds={grace}&propagationPolicy=Background"
        try:
            self.request("DELETE", where)
        except Refused as refused:
            if " 404 " not in str(refused):
                raise

    def exists(self, kind: str, name: str, namespace: str = "default") -> bool:
        """Whether an object is there."""
        try:
            self.get(kind, name, namespace)
        except Refused:
            return False
        return True

    def events(self, namespace: str, pod: str) -> list[str]:
        """What kubelet said of a pod: reason and message, oldest first."""
        where = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{pod}"
        found = self.request("GET", where)["items"]
        return [f"{event['reason']}: {event['message']}" for event in found]

    def _where(self, value: Object) -> str:
        metadata = value["metadata"]
        path = _PATHS[value["kind"]].format(namespace=metadata.get("namespace", "default"))
        return f"{path}/{metadata['name']}"
