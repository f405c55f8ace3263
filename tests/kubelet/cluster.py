"""A cluster: etcd, a kube-apiserver, the controller of Jobs, two nodes, and Mayfly beside them.

Pods are bound by `spec.nodeName`, so no scheduler is needed. Most use their node's network; others
have one on their node, which other nodes reach at the ports of Services (`Node.start_proxy`).
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.clients.layout import Layout
from tests.clients.programs import Client, with_sbin
from tests.kubelet.api import Api, Object, Refused
from tests.kubelet.images import SLEEP, busybox, noise
from tests.kubelet.namespace import bridge
from tests.kubelet.node import GATEWAY, KUBERNETES, SANDBOX, Node, end
from tests.kubelet.pki import Authority, Pair
from tests.support.commands import run_mayfly
from tests.support.process import Mayfly, Process, find_program, need, poll

PORT = 5777
HOST = f"{GATEWAY}:{PORT}"
HUB_IMAGE = "docker.io/library/hello:1"
APPS = 9
ERRORS = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "InvalidImageName")

_API_PORT = 16443
_ETCD = "http://127.0.0.1:12379"
_SERVICES = "10.96.0.0/16"


class Cluster:
    """All of it, in the network namespace of the thread that makes it.

    Attributes:
        api: its API server.
        nodes: by number, from 1.
        mayfly: the registry beside it; `serve` starts another.
        admin_kubeconfig: configuration of kubectl with the rights of a cluster administrator.
    """

    def __init__(self, directory: Path, home: Path) -> None:
        need("etcd", "busybox", "skopeo", "openssl")
        need("kubelet", "kube-apiserver", "kube-controller-manager", directory=KUBERNETES)
        self.directory = directory
        self.home = home
        self._numbers = itertools.count(1)
        self._processes: list[Process] = []
        self.nodes: dict[int, Node] = {}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._images()
        bridge("kbr0", GATEWAY)
        self._authority = Authority(self.directory / "pki")
        self._control_plane()
        self._key = self.directory / "signing.key"
        self._key.touch(mode=0o600)
        self._key.write_text(secrets.token_urlsafe(48))
        self.mayfly = self._mayfly()
        for number in (1, 2):
            self.add_node(number)
        for number in range(1, APPS + 1):
            self.push(self.apps, f"app:{number}", f"team/app:{number}")
        self.push(self.apps, "app:1", "secret/app:1")
        for node in self.nodes.values():
            self.trust(node)

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes.values():
            node.stop()
        for process in reversed(self._processes):
            end(process)
        with suppress(AttributeError):
            end(self.mayfly)

    # --- Mayfly

    def serve(self, *options: str, keep_key: bool = True) -> Mayfly:
        """End Mayfly and start it anew with these options.

        Args:
            keep_key: with the operator's `--signing-key`, the same each time.
        """
        end(self.mayfly)
        self.mayfly = self._mayfly(*options, keep_key=keep_key)
        return self.mayfly

    def _mayfly(self, *options: str, keep_key: bool = True) -> Mayfly:
        key = ("--signing-key", str(self._key)) if keep_key else ()
        return Mayfly(
            self.directory / "store",
            self.directory / "state",
            *(str(self.bundle), "--hostname", GATEWAY, "--tls", "auto", "--auth", "auto"),
            *(*key, *options),
            listen=f"0.0.0.0:{PORT}",
        )

    @property
    def state_dir(self) -> Path:
        """Mayfly's state directory."""
        return self.directory / "state"

    def trust(self, node: Node, *options: str | Path) -> None:
        """The node's containerd trusts this Mayfly, and asks it for docker.io's images."""
        node.trust("--state-dir", self.state_dir, "--mirror", "docker.io", *options)

    def credentials(self, form: str, *options: str) -> str:
        """What ``mayfly credentials`` prints."""
        words = ("--state-dir", self.state_dir, "--format", form)
        return run_mayfly("credentials", *words, *options)

    def push(self, layout: Layout, name: str, target: str, **where: Any) -> None:
        """Copy an image of a layout to a registry: as admin to Mayfly, unless said otherwise."""
        host = where.get("host", HOST)
        ca = where.get("ca", self.state_dir / "ca.crt")
        certificates = self.directory / "certificates" / host
        certificates.mkdir(parents=True, exist_ok=True)
        shutil.copy(ca, certificates / "ca.crt")
        login = where.get("login") or f"admin:{self._admin()}"
        skopeo = Client("skopeo", self.home, "--insecure-policy")
        options = ("--quiet", f"--dest-creds={login}", f"--dest-cert-dir={certificates}")
        skopeo("copy", *options, f"oci:{layout.directory}:{name}", f"docker://{host}/{target}")

    def push_big(self, target: str, **where: Any) -> str:
        """Push an image that no node can have had: some seconds on a slow line; its full name."""
        directory = self.directory / f"big-{next(self._numbers)}"
        layout = Layout(directory)
        layout.add("big:1", busybox(str(directory)), noise(60), noise(60), Cmd=list(SLEEP))
        self.push(layout, "big:1", target, **where)
        shutil.rmtree(directory)
        return f"{where.get('host', HOST)}/{target}"

    def _admin(self) -> str:
        return str(json.loads((self.state_dir / "credentials.json").read_text())["admin"])

    # --- pods

    def secret(self, name: str = "mayfly", *options: str, namespace: str = "team") -> str:
        """The Secret that Mayfly prints, applied; its name."""
        where = ("--secret-name", name, "--namespace", namespace)
        self.api.apply(json.loads(self.credentials("secret", *where, *options)))
        return name

    def made_up_secret(self, name: str = "made-up", namespace: str = "team") -> str:
        """A Secret for this Mayfly that it never gave; its name."""
        config = json.dumps({"auths": {HOST: {"username": "x", "password": "y"}}})
        self.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": namespace},
                "type": "kubernetes.io/dockerconfigjson",
                "stringData": {".dockerconfigjson": config},
            }
        )
        return name

    def pod(
        self,
        image: str,
        secret: str = "",
        node: int = 1,
        *,
        policy: str = "IfNotPresent",
        namespace: str = "team",
    ) -> Pod:
        """Start a pod of one container."""
        name = f"pod-{next(self._numbers)}"
        self.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "nodeName": f"node-{node}",
                    "hostNetwork": True,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 0,
                    "imagePullSecrets": [{"name": secret}] if secret else [],
                    "containers": [{"name": "c", "image": image, "imagePullPolicy": policy}],
                },
            }
        )
        return Pod(self.api, namespace, name)

    # --- its parts

    def _images(self) -> None:
        self.apps = Layout(self.directory / "apps")
        self.digests = {
            number: self.apps.add(f"app:{number}", busybox(f"v{number}"), Cmd=list(SLEEP))
            for number in range(1, APPS + 1)
        }
        bundle = Layout(self.directory / "bundle")
        for name in ("hello", "other"):
            bundle.add(f"docker.io/library/{name}:1", busybox(name), Cmd=list(SLEEP))
        self.bundle = bundle.archive()
        sandbox = Layout(self.directory / "sandbox")
        sandbox.add(SANDBOX, busybox("sandbox"), Cmd=list(SLEEP))
        self.sandbox = sandbox.archive()

    def _control_plane(self) -> None:
        peers = "http://127.0.0.1:12380"
        self._background(
            find_program("etcd") or "",
            *("--name=e", f"--data-dir={self.directory}/etcd", "--log-level=warn"),
            *(f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=e={peers}",
            # Nothing here is to survive a power failure.
            "--unsafe-no-fsync",
        )
        authority = self._authority
        names = (GATEWAY, "127.0.0.1", "10.96.0.1", "kubernetes.default.svc")
        server = authority.issue("kube-apiserver", hosts=names)
        admin = authority.issue("admin", "system:masters")
        self.admin_kubeconfig = self.directory / "admin.kubeconfig"
        self.admin_kubeconfig.write_text(json.dumps(self._kubeconfig(admin)))
        accounts = authority.service_account_keys()
        process = self._background(
            str(KUBERNETES / "kube-apiserver"),
            *(f"--etcd-servers={_ETCD}", f"--secure-port={_API_PORT}"),
            *(f"--bind-address={GATEWAY}", f"--advertise-address={GATEWAY}"),
            *(f"--tls-cert-file={server.certificate}", f"--tls-private-key-file={server.key}"),
            *(f"--client-ca-file={authority.certificate}", f"--cert-dir={self.directory}/api"),
            *(
                f"--kubelet-client-certificate={admin.certificate}",
                f"--kubelet-client-key={admin.key}",
                f"--kubelet-certificate-authority={authority.certificate}",
                "--kubelet-preferred-address-types=InternalIP",
            ),
            *(
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={accounts.certificate}",
                f"--service-account-signing-key-file={accounts.key}",
                f"--service-cluster-ip-range={_SERVICES}",
            ),
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
        )
        self.api = Api(GATEWAY, _API_PORT, authority.certificate, admin)
        process.wait_for(self._ready, deadline=180)
        for namespace in ("default", "team"):
            self._namespace(namespace)
        self._background(
            str(KUBERNETES / "kube-controller-manager"),
            # Others would remove pods of nodes that a test holds up.
            "--controllers=job-controller,disruption-controller,namespace-controller,"
            "serviceaccount-controller,garbage-collector-controller,endpointslice-controller,"
            "persistentvolume-binder-controller",
            *(f"--kubeconfig={self.admin_kubeconfig}", "--leader-elect=false"),
            *("--bind-address=127.0.0.1", f"--cert-dir={self.directory}/controllers"),
        )

    def _ready(self) -> bool:
        try:
            self.api.request("GET", "/readyz")
        except (OSError, Refused):
            return False
        return True

    def _namespace(self, name: str) -> None:
        # The server makes "default" by itself, a little later; no controller makes the accounts.
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = {"name": "default", "namespace": name}
        self.api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})

    def add_node(self, number: int, containerd: str = "", disk: int = 0) -> Node:
        """Start a node; the arguments are those of `Node`."""
        name = f"node-{number}"
        pair = self._authority.issue(
            f"system:node:{name}", "system:nodes", (name, f"10.77.0.{10 + number}")
        )
        kubeconfig = self.directory / f"{name}.kubeconfig"
        kubeconfig.write_text(json.dumps(self._kubeconfig(pair)))
        files = (self._authority.certificate, pair, kubeconfig)
        node = Node(number, self.directory / name, self.home, self.api, files, containerd, disk)
        self.nodes[number] = node
        node.import_images(self.sandbox)
        return node

    def _kubeconfig(self, pair: Pair) -> Object:
        server = {
            "server": f"https://{GATEWAY}:{_API_PORT}",
            "certificate-authority": str(self._authority.certificate),
        }
        user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": server}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }

    def _background(self, program: str, *arguments: str) -> Process:
        log = self.directory / f"{Path(program).name}.log"
        process = Process([program, *arguments], log, env=with_sbin())
        self._processes.append(process)
        return process


class Pod:
    """A pod that was started."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self.namespace = namespace
        self.name = name

    def read(self) -> Object:
        """It, as the API server has it."""
        return self._api.get("Pod", self.name, self.namespace)

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed."""
        return str(self.read()["status"].get("phase"))

    @property
    def image_id(self) -> str:
        """What the container runs, by digest."""
        return str(self.read()["status"]["containerStatuses"][0]["imageID"])

    @property
    def ready(self) -> bool:
        """Whether its container is."""
        statuses = self.read()["status"].get("containerStatuses", [])
        return bool(statuses) and all(status["ready"] for status in statuses)

    def describe(self) -> str:
        """For a test that fails: state and events."""
        return json.dumps(
            [self.read()["status"], self._api.events(self.namespace, self.name)], indent=1
        )

    def runs(self, seconds: float = 90) -> Pod:
        """Wait until it does."""
        poll(lambda: self.phase == "Running", self.describe, seconds=seconds)
        return self

    def fails(self, pattern: str = ".", seconds: float = 60) -> str:
        """Wait until its image cannot be pulled, with an event that says so; that event."""

        def found() -> str | None:
            if self._waiting() not in ERRORS:
                return None
            return next((told for told in self._failures() if re.search(pattern, told)), None)

        return poll(found, self.describe, seconds=seconds)

    def gone(self) -> None:
        """Remove it, and wait until it is."""
        self._api.delete("Pod", self.name, self.namespace)
        poll(lambda: not self._api.exists("Pod", self.name, self.namespace))

    def _waiting(self) -> str:
        statuses = self.read()["status"].get("containerStatuses", [])
        return str(statuses[0]["state"].get("waiting", {}).get("reason")) if statuses else ""

    def _failures(self) -> Iterator[str]:
        for told in self._api.events(self.namespace, self.name):
            if told.startswith("Failed: "):
                yield told
