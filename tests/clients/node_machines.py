"""Machines for the node script: network, /etc, /var and /run of their own, sshd, a runtime."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.clients.programs import cri_config, with_sbin
from tests.kubelet.namespace import bridge, connect_machine, hold_machine, run
from tests.support.process import PATIENCE, REPO, Process, find_program, need
from tests.support.programs import versioned
from tests.support.trees import Node as Entry
from tests.support.trees import snapshot

NETWORK = "10.79.0"
GATEWAY = f"{NETWORK}.1"

_SOCKET = "/run/containerd/containerd.sock"
_K3S_SOCKET = "/run/k3s/containerd/containerd.sock"
CRIO_SOCKET = "/var/run/crio/crio.sock"

_SECONDS = 1800
_OF_RUNTIMES = (
    "lib/containerd",
    "lib/docker",
    "lib/containers",
    "lib/cni",
    "log",
    "docker/key.json",
    "cni/net.d",
)
_PREPARE = """
mkdir -p /run/sshd /run/containerd /root/.ssh
chmod 700 /root/.ssh
# Bash reads it for each command over ssh; what it starts there is about another machine.
: >/root/.bashrc
cp "$directory/key.pub" /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
"""


def network_of_machines() -> None:
    """Make the network of the machines, in the namespace of this thread."""
    bridge("mbr0", GATEWAY)


class Machine:
    """One of them.

    Args:
        number: of it, 1 to 200.
        directory: for its files; must not exist.
        containerd, docker: version of the runtime in `tests.support.programs`, "" for Debian's;
            None for without.
        config_path: whether its containerd reads /etc/containerd/certs.d for kubelet.
        crio: whether it has CRI-O beside podman, with one storage.
        variables: of what runs over ssh.
        k3s: whether its containerd is where k3s has its own.

    Attributes:
        name, address: of it.
        crio: its CRI-O; None without.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        *,
        containerd: str | None = None,
        docker: str | None = None,
        config_path: bool = True,
        crio: bool = False,
        variables: Mapping[str, str] | None = None,
        k3s: bool = False,
    ) -> None:
        need("sshd", "ssh", "ssh-keygen")
        self.name = f"machine-{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self.directory = directory
        self._variables = variables or {}
        self._socket = _K3S_SOCKET if k3s else _SOCKET
        self.crio: Process | None = None
        directory.mkdir()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "host")
        self._first = [
            versioned(name, version)
            for name, version in (("containerd", containerd), ("docker", docker))
            if version
        ]
        self._holder = hold_machine(
            directory, "etc", "var", "root", seconds=_SECONDS, more=_PREPARE
        )
        self._processes = [self._holder]
        try:
            connect_machine(self._holder, f"mv{number}", "mbr0", self.address, GATEWAY)
            if containerd is not None:
                self._start_containerd(config_path)
            if docker is not None:
                self._start_docker()
            if containerd is None and docker is None:
                self._configure_podman()
            if crio:
                self._start_crio()
            self._start_sshd()
        except BaseException:
            self.stop()
            raise

    def inside(self, *words: str | Path) -> list[str]:
        """The arguments that run a program on the machine, past ssh."""
        found = find_program(str(words[0]), *self._first) or str(words[0])
        enter = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", f"--wd={REPO}"]
        return [*enter, "--", found, *map(str, words[1:])]

    def shell(self, script: str, *arguments: str) -> str:
        """Run a POSIX script on the machine, past ssh; what it printed."""
        done = subprocess.run(
            self.inside("sh", "-euc", script, "sh", *arguments),
            env=with_sbin(*self._first) | {"CONTAINERD_ADDRESS": self._socket},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ssh(
        self, command: str, stdin: str, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over ssh, with a text as its standard input."""
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return subprocess.run(
            ["ssh", "-F", "/dev/null", *flags, "-i", self.directory / "key",
             f"root@{self.address}", command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )  # fmt: skip

    def ssh_config(self) -> str:
        """Lines of ssh's configuration by which this machine is reached under its name."""
        key = (self.directory / "host.pub").read_text()
        known = self.directory / "known_hosts"
        known.write_text(f"{self.name} {key}")
        return (
            f"Host {self.name}\n  HostName {self.address}\n  User root\n"
            f"  HostKeyAlias {self.name}\n  UserKnownHostsFile {known}\n"
            f"  IdentityFile {self.directory}/key\n"
        )

    def processes(self, *words: str) -> list[int]:
        """The machine's processes whose arguments begin with some words."""
        network = Path(f"/proc/{self._holder.pid}/ns/net").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (process / "cmdline").read_bytes().split(b"\0")
                if (process / "ns/net").readlink() == network and arguments[: len(words)] == [
                    word.encode() for word in words
                ]:
                    found.append(int(process.name))
        return found

    def tree(self) -> dict[str, Entry]:
        """Everything in the machine's /etc and /var/lib that is not the system's own."""
        found = {}
        for name in ("etc", "var"):
            for path, entry in snapshot(self.directory / f"{name}.u").items():
                # A directory of the system's is copied up when something is made in it.
                copied = entry[0] == "directory" and Path(f"/{name}", path).is_dir()
                if not copied and not path.startswith(_OF_RUNTIMES):
                    found[f"{name}/{path}"] = entry
        return found

    def stop(self) -> None:
        """End all of it."""
        for process in reversed(self._processes):
            if process.running:
                if process is self._holder:
                    self._end_others()
                process.popen.terminate()
                try:
                    process.popen.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.popen.kill()
                    process.popen.wait(PATIENCE)

    def _end_others(self) -> None:
        """End what others started, such as an sshd whose client is gone."""
        for pid in self.processes():
            if pid != self._holder.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _run(self, name: str, *words: str | Path) -> Process:
        made = Process(
            self.inside(*words), self.directory / f"{name}.log", env=with_sbin(*self._first)
        )
        self._processes.append(made)
        return made

    def _start_sshd(self) -> None:
        path = ":".join([*map(str, self._first), str(find_program("crictl") or "")])
        first = path.rpartition("/")[0] if path else ""
        more = "".join(f' "{name}={value}"' for name, value in self._variables.items())
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress {self.address}\nHostKey {self.directory}/host\nUsePAM no\n"
            "PidFile none\nStrictModes no\nAuthorizedKeysFile /root/.ssh/authorized_keys\n"
            # The default one takes 60 ms of processor time for each connection, this one 2 ms.
            "KexAlgorithms curve25519-sha256\n"
            f"SetEnv PATH={first}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin{more}\n"
        )
        daemon = self._run("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", config)
        daemon.wait_for(lambda: self.ssh("true", "").returncode == 0)

    def _start_containerd(self, config_path: bool) -> None:
        need("containerd", "ctr", directory=self._first[0] if self._first else None)
        need("crictl", "runc")
        directory = self.directory / "containerd"
        directory.mkdir()
        text = cri_config(directory, self._socket, Path("/etc/containerd/certs.d"))
        if not config_path:
            text = "".join(line for line in text.splitlines(True) if "config_path" not in line)
        (self.directory / "config.toml").write_text(text)
        place = "/etc/containerd/config.toml"
        if self._socket == _K3S_SOCKET:
            place = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
        self.shell(
            'mkdir -p "${2%/*}" "${3%/*}"; cp "$1" "$2"',
            *(str(self.directory / "config.toml"), place, self._socket),
        )
        daemon = self._run("containerd", "containerd", "--config", place)
        answered = ["crictl", "-r", f"unix://{self._socket}", "images"]
        daemon.wait_for(lambda: self._succeeds(*answered))

    def _start_docker(self) -> None:
        need("docker", "runc")
        need("dockerd", directory=self._first[-1] if self._first else None)
        daemon = self._run(
            "docker",
            "dockerd",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            f"--data-root={self.directory}/docker",
            "--exec-root=/run/docker-exec",
        )
        daemon.wait_for(lambda: self._succeeds("docker", "info"))

    def _configure_podman(self) -> None:
        need("podman")
        (self.directory / "storage.conf").write_text(
            # Not in /var, which is an overlay itself.
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.directory}/podman"\n'
            f'runroot = "/run/containers/storage"\n'
        )
        self.shell(
            'mkdir -p /etc/containers; cp "$1" /etc/containers/storage.conf',
            str(self.directory / "storage.conf"),
        )

    def _start_crio(self) -> None:
        need("crio", "conmon", "crun", "crictl")
        (self.directory / "crio.conf").write_text(
            "[crio]\ninternal_wipe = false\n"
            f'log_dir = "{self.directory}/pods"\nclean_shutdown_file = "/run/crio/clean"\n'
            # No containers are made: pinns, which is written in C, is not needed.
            '[crio.runtime]\npinns_path = "/bin/true"\ncgroup_manager = "cgroupfs"\n'
            'conmon_cgroup = "pod"\napparmor_profile = "unconfined"\n'
            "[crio.nri]\nenable_nri = false\n"
        )
        self.shell(
            'mkdir -p /etc/crio/crio.conf.d; cp "$1" /etc/crio/crio.conf.d/10-machine.conf',
            str(self.directory / "crio.conf"),
        )
        self.crio = self._run("crio", "crio")
        answered = ["crictl", "-r", f"unix://{CRIO_SOCKET}", "version"]
        self.crio.wait_for(lambda: self._succeeds(*answered))

    def _succeeds(self, *words: str) -> bool:
        done = subprocess.run(
            self.inside(*words),
            env=with_sbin(*self._first) | {"DOCKER_API_VERSION": ""},
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode == 0


def events(machine: Machine) -> str:
    """What the machine's daemons said, for the message of a failure."""
    return json.dumps({p.name: p.read_text()[-2000:] for p in machine.directory.glob("*.log")})
