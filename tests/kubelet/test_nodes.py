"""Credentials of nodes, not of pods: hosts.toml, kubelet's file, a provider plugin, a NodePort."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.kubelet.cluster import HOST, PORT, Cluster
from tests.kubelet.node import GATEWAY, Node, end
from tests.support.commands import run_mayfly
from tests.support.process import poll

PROVIDER = f"""#!/bin/sh
exec {sys.executable} -m mayfly "$@"
"""
"""The command where kubelet looks for it; on a node it is `mayfly` itself."""

CREDENTIAL = "/etc/mayfly/credential.json"


def test_credential_in_hosts_toml_outlives_mayfly(
    trusting: None, served: Cluster, other_node: Node
) -> None:
    """`node-config apply --node`: no Secret is needed, nor kubelet restarted; later any will do."""
    image = f"{HOST}/team/app:2"
    other_node.remove_image(image)
    listed, nodes = served.directory / "header-images", served.directory / "header-nodes"
    listed.write_text(f"{image}\n")
    nodes.write_text("node-2\n")
    served.serve("--until-pulled", str(listed), "--nodes", str(nodes))
    served.trust(other_node, "--node", "node-2")
    mode = other_node.shell('stat -c %a "/etc/containerd/certs.d/$1/hosts.toml"', HOST)
    assert mode.strip() == "600"
    served.pod(image, node=2).runs().gone()
    poll(lambda: not served.mayfly.running, served.mayfly.describe)
    assert served.mayfly.popen.returncode == 0, served.mayfly.describe()
    for secret in ("", served.made_up_secret()):
        served.pod(image, secret, node=2).runs().gone()
    pod = served.pod(image, node=2, policy="Always")
    pod.fails()
    pod.gone()


def test_credentials_that_kubelet_has(kubelets: Cluster) -> None:
    """In /var/lib/kubelet/config.json, and by a credential provider: coverage names the nodes."""
    image = f"{HOST}/team/app:8"
    one, two = kubelets.nodes[1], kubelets.nodes[2]
    for node in (one, two):
        end(node.kubelet)
        node.remove_image(image)
    made = kubelets.credentials("docker", "--node", one.name, "--name", one.name)
    one.shell('umask 077; printf %s "$1" > /var/lib/kubelet/config.json', made)
    one.start_kubelet()
    two.start_kubelet(*_provider(kubelets, two))
    for number in (1, 2):
        kubelets.pod(image, node=number).runs().gone()
    listed, nodes = kubelets.directory / "named-images", kubelets.directory / "named-nodes"
    listed.write_text(f"{image}\n")
    nodes.write_text("node-1\nnode-2\n")
    kubelets.mayfly.kill()  # the run continues, and with it what the nodes have
    kubelets.serve("--until-pulled", str(listed), "--nodes", str(nodes))
    for number in (1, 2):
        kubelets.pod(image, node=number, policy="Always").runs().gone()
    poll(lambda: not kubelets.mayfly.running, kubelets.mayfly.describe)
    assert kubelets.mayfly.popen.returncode == 0, kubelets.mayfly.describe()
    kubelets.pod(image).runs().gone()


def test_credential_provider(kubelets: Cluster) -> None:
    """A new credential counts at once, a file that is gone is no credential, nor an old one."""
    node = kubelets.nodes[1]
    images = [f"{HOST}/team/app:{number}" for number in (1, 2, 3)]
    for image in images:
        node.remove_image(image)
    node.restart_kubelet(*_provider(kubelets, node, expires=1))
    pod = kubelets.pod(images[0])
    pod.fails("authorization|401")
    _write_credential(kubelets, node)
    pod.runs(120).gone()
    node.shell('rm "$1"', CREDENTIAL)
    node.restart_kubelet(*_provider_flags(node))  # kubelet keeps a credential for five minutes
    pod = kubelets.pod(images[1])
    pod.fails("authorization|401")
    pod.gone()
    _write_credential(kubelets, node)
    kubelets.pod(images[2]).runs(120).gone()


def _provider(cluster: Cluster, node: Node, **fields: object) -> tuple[str, str]:
    """The flags of a kubelet that asks `mayfly credential-provider` for the node's credential."""
    programs = node.directory / "providers"
    programs.mkdir(exist_ok=True)
    plugin = programs / "mayfly"
    plugin.write_text(PROVIDER)
    plugin.chmod(0o755)
    _write_credential(cluster, node, **fields)
    config = run_mayfly("credential-provider", "--config", "--host", HOST, "--file", CREDENTIAL)
    (node.directory / "providers.json").write_text(config)
    return _provider_flags(node)


def _provider_flags(node: Node) -> tuple[str, str]:
    return (
        f"--image-credential-provider-config={node.directory}/providers.json",
        f"--image-credential-provider-bin-dir={node.directory}/providers",
    )


def _write_credential(cluster: Cluster, node: Node, **fields: object) -> None:
    made = json.loads(cluster.credentials("json", "--node", node.name, "--name", node.name))
    write = 'mkdir -p "${2%/*}"; umask 077; printf %s "$1" > "$2"'
    node.shell(write, json.dumps(made | fields), CREDENTIAL)


def test_secret_for_a_node_port(cluster: Cluster, other_node: Node, trusting: None) -> None:
    """Another port than the one announced: the Secret needs `--host ADDRESS:NODEPORT`."""
    with forwarded(30500) as host:
        other_node.trust("--registry", host, "--ca", cluster.state_dir / "ca.crt")
        pod = cluster.pod(f"{host}/team/app:7", cluster.secret(), 2)
        pod.fails("authorization|401")
        pod.gone()
        secret = cluster.secret("node-port", "--host", host, "--node", "node-2")
        cluster.pod(f"{host}/team/app:7", secret, 2).runs().gone()


@contextmanager
def forwarded(port: int) -> Iterator[str]:
    """A port that leads to Mayfly's, as a Service's NodePort does; HOST:PORT."""
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(target: Callable[..., None], *arguments: socket.socket) -> None:
        threads.append(threading.Thread(target=target, args=arguments))
        threads[-1].start()

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((GATEWAY, PORT))
                ends.extend((client, server))
                start(_pass_on, client, server)
                start(_pass_on, server, client)

    with socket.create_server((GATEWAY, port)) as listener:
        start(accept, listener)
        yield f"{GATEWAY}:{port}"
        for one in (listener, *ends):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(30)
    for one in ends:
        one.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
