"""A node of the cluster: network, /etc, /var and /run of its own, containerd and kubelet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.clients.programs import Client, with_sbin
from tests.kubelet.api import Api
from tests.kubelet.namespace import connect_machine, hold_machine, run
from tests.kubelet.pki import Pair
from tests.support.process import REPO, Process, find_program, need, poll
from tests.support.programs import versioned, versions

NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.1"
SANDBOX = "localhost/pause:1"
PLUGINS = "/usr/lib/cni"
"""Directory of the plugins for networks of pods."""
KUBERNETES = versioned("kubernetes", versions("kubernetes")[0])

_SECONDS = 7200
_PREPARE = "mkdir -p /var/lib/kubelet /var/log/pods /etc/containerd/certs.d"

_DISK = """
truncate --size "$2" "$1/disk.img"
mkfs.ext4 -q -m 0 "$1/disk.img"
mkdir -p "$1/containerd/root"
mount -o loop "$1/disk.img" "$1/containerd/root"
"""

_TOOLS = """
mount -t tmpfs tmpfs /opt
mkdir -p /opt/bin /run/containerd
ln -s "$1" /run/containerd/containerd.sock
ln -s "$2" /opt/bin/
"""


class Node:
    """One of them, called ``node-NUMBER``.

    Args:
        containerd: version of it, as `tests.support.programs` has it; "" is the machine's own.
        disk: bytes of a file system for its images alone; 0 for none.

    Attributes:
        name: of it.
        address: of it in the cluster's network.
        directory: its files, which all namespaces see at the same place.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        home: Path,
        api: Api,
        files: tuple[Path, Pair, Path],
        containerd: str = "",
        disk: int = 0,
    ) -> None:
        self._first = [versioned("containerd", containerd)] if containerd else []
        self.number = number
        self.name = f"node-{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self.directory = directory
        self._api = api
        self._authority, self._pair, self._kubeconfig = files
        self._home = home
        directory.mkdir()
        self._holder = hold_machine(directory, "etc", "var", seconds=_SECONDS, more=_PREPARE)
        connect_machine(self._holder, f"kv{number}", "kbr0", self.address, GATEWAY)
        if disk:
            need("mkfs.ext4")
            self.shell(_DISK, directory, str(disk))
        self.socket = directory / "containerd/containerd.sock"
        self.containerd = self._start_containerd()
        self.kubelet = self.start_kubelet()

    @property
    def pid(self) -> int:
        """A process in its namespaces."""
        return self._holder.pid

    def inside(self, program: str | Path, *args: str | Path) -> list[str]:
        """The arguments that run a program in the node's namespaces."""
        found = program if isinstance(program, Path) else find_program(program, *self._first)
        assert found is not None, program
        enter = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", f"--wd={REPO}"]
        return [*enter, "--", str(found), *map(str, args)]

    def shell(self, script: str, *args: str | Path) -> str:
        """Run a POSIX script on the node; what it printed."""
        return run(*self.inside("sh", "-euc", script, "sh", *args))

    def run_script(self, script: str, *verbs: str) -> str:
        """Run the script of `mayfly node script` on the node; what it printed."""
        tools = find_program("crictl")
        assert tools is not None
        path = os.pathsep.join(
            [*map(str, self._first), str(Path(tools).parent), os.environ["PATH"]]
        )
        done = subprocess.run(
            self.inside("sh", "-s", "--", *verbs),
            input=script,
            env={"PATH": path, "CONTAINERD_ADDRESS": str(self.socket)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def put_tools(self) -> None:
        """Put crictl and the runtime's socket where pods find them that run scripts on the node."""
        crictl = find_program("crictl")
        assert crictl is not None
        if self.shell("ls /opt").strip() != "bin":
            self.shell(_TOOLS, self.socket, crictl)

    def mayfly(self, *words: str | Path) -> str:
        """Run ``mayfly`` on the node."""
        return run(*self.inside(sys.executable, "-m", "mayfly", *words))

    def trust(self, *words: str | Path) -> str:
        """``mayfly node-config apply`` for its containerd."""
        return self.mayfly("node-config", "apply", "--runtime", "containerd", *words)

    def start_proxy(self, kubeconfig: Path) -> Process:
        """Start kube-proxy, by which the node answers at the ports of Services.

        Args:
            kubeconfig: with a user that is allowed to read Services and their endpoints.
        """
        need("iptables")
        need("kube-proxy", directory=KUBERNETES)
        self.shell("echo 1 >/proc/sys/net/ipv4/ip_forward")
        return Process(
            self.inside(
                KUBERNETES / "kube-proxy",
                f"--kubeconfig={kubeconfig}",
                f"--hostname-override={self.name}",
                "--proxy-mode=iptables",
                # These are the machine's, not the node's.
                *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
                *("--conntrack-tcp-timeout-close-wait=0", "--metrics-bind-address="),
                "--healthz-bind-address=",
            ),
            self.directory / "kube-proxy.log",
            env=with_sbin(),
        )

    def slow(self, rate: str) -> None:
        """Bound what reaches the node, for instance to "100mbit"."""
        options = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms")
        run("tc", "qdisc", "replace", "dev", f"kv{self.number}", *options)

    def fast(self) -> None:
        """Take the bound back."""
        run("tc", "qdisc", "del", "dev", f"kv{self.number}", "root", check=False)

    @property
    def crictl(self) -> Client:
        """Kubernetes' interface of its containerd."""
        endpoints = [f"--{kind}-endpoint=unix://{self.socket}" for kind in ("runtime", "image")]
        return Client("crictl", self._home, *endpoints, "--timeout=60s")

    def remove_image(self, image: str) -> None:
        """Have the node lose an image, if it has it."""
        self.crictl.run("rmi", image)

    def has_image(self, image: str) -> bool:
        """Whether the node has an image."""
        listed = json.loads(self.crictl("images", "--output=json"))["images"]
        return any(image in known["repoTags"] for known in listed)

    def import_images(self, archive: Path) -> None:
        """Put an archive's images on the node, past every registry."""
        client = Client("ctr", self._home, f"--address={self.socket}", "--namespace=k8s.io")
        client("images", "import", archive)

    def start_kubelet(self, *flags: str, **settings: Any) -> Process:
        """A kubelet with these flags and configuration, in place of one that was ended."""
        directory = self.directory
        value = {**self._kubelet_configuration(), **settings}
        (directory / "kubelet.json").write_text(json.dumps(value))
        kubelet = Process(
            self.inside(
                KUBERNETES / "kubelet",
                f"--config={directory}/kubelet.json",
                f"--kubeconfig={self._kubeconfig}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                "--root-dir=/var/lib/kubelet",
                "--v=2",
                *flags,
            ),
            directory / "kubelet.log",
            env=with_sbin(),
        )
        kubelet.wait_for(lambda: self._api.exists("Node", self.name))
        self.kubelet = kubelet
        return kubelet

    def restart_kubelet(self, *flags: str, **settings: Any) -> None:
        """End kubelet and start it anew."""
        end(self.kubelet)
        self.start_kubelet(*flags, **settings)

    def forget_pulls(self) -> None:
        """Start kubelet anew without its records of what it pulled, and with which Secrets.

        Otherwise images with the content of those that it pulled for another test need a Secret,
        although nodes got them by the script.
        """
        end(self.kubelet)
        self.shell("rm -rf /var/lib/kubelet/image_manager")
        self.start_kubelet()

    def stop(self) -> None:
        """End all of it; its pods' processes, too."""
        end(self.kubelet)
        listed = self.crictl.run("pods", "--quiet", timeout=60)
        for sandbox in listed.stdout.decode().split():
            self.crictl.run("rmp", "--force", sandbox, timeout=60)
        for process in (self.containerd, self._holder):
            end(process)

    def _start_containerd(self) -> Process:
        need("containerd", "ctr", directory=self._first[0] if self._first else None)
        need("crictl", "runc", f"{PLUGINS}/bridge")
        directory = self.directory / "containerd"
        directory.mkdir(exist_ok=True)
        networks = directory / "networks"
        networks.mkdir()
        # For pods that have a network of their own; most have their node's.
        ipam = {"type": "host-local", "subnet": f"10.78.{self.number}.0/24"}
        bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": ipam}
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
        (networks / "10-pods.conflist").write_text(json.dumps(network))
        config = self.directory / "config.toml"
        config.write_text(_containerd_configuration(directory, self.socket, networks))
        self.shell('cp "$1" /etc/containerd/config.toml', config)
        daemon = Process(
            self.inside("containerd", "--config", "/etc/containerd/config.toml"),
            self.directory / "containerd.log",
            env=with_sbin(*self._first),
        )
        daemon.wait_for(lambda: self.crictl.run("version").returncode == 0)
        return daemon

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": ["none"],
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "address": self.address,
            "healthzPort": 0,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self._authority)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": str(self._pair.certificate),
            "tlsPrivateKeyFile": str(self._pair.key),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "volumePluginDir": str(self.directory / "plugins"),
            "resolvConf": "",
            "registerNode": True,
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "15s",
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "serializeImagePulls": False,
            "maxParallelImagePulls": 4,
            "imageMinimumGCAge": "30s",
        }


def end(process: Process) -> None:
    """End a process that has nothing to say about it."""
    if process.running:
        process.popen.terminate()
        poll(lambda: not process.running, process.describe)


def _containerd_configuration(directory: Path, socket: Path, networks: Path) -> str:
    return (
        "version = 2\n"
        f'root = "{directory}/root"\n'
        f'state = "{directory}/state"\n'
        f'[grpc]\naddress = "{socket}"\n'
        f'[ttrpc]\naddress = "{socket}.ttrpc"\n'
        '[plugins."io.containerd.grpc.v1.cri"]\n'
        "  disable_apparmor = true\n"
        "  restrict_oom_score_adj = true\n"
        f'  sandbox_image = "{SANDBOX}"\n'
        '[plugins."io.containerd.grpc.v1.cri".cni]\n'
        f'  bin_dir = "{PLUGINS}"\n'
        f'  conf_dir = "{networks}"\n'
        '[plugins."io.containerd.grpc.v1.cri".registry]\n'
        '  config_path = "/etc/containerd/certs.d"\n'
        '[plugins."io.containerd.internal.v1.opt"]\n'
        f'path = "{directory}/opt"\n'
    )
