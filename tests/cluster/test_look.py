"""How the look at a cluster asks kubectl and the nodes, without a server."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from mayfly.registry.cluster.look import Access, _Seen
from mayfly.registry.nodes.kubectl import Kubectl, is_name
from mayfly.registry.nodes.script import reading_script
from mayfly.registry.nodes.target import Target

ASKED: list[tuple[str, ...]] = []


class Recording(Kubectl):
    """Notes the arguments of kubectl, and answers as if nothing was found."""

    async def ask(self, *arguments: str, **options: Any) -> bytes:
        """Note them."""
        ASKED.append(arguments)
        return b""


def _seen() -> _Seen:
    access = Access(Recording(), None, "", 1, lambda names: (), lambda text: None, False)
    return _Seen(access, frozenset(), "registry.example")


@pytest.mark.parametrize(
    "name",
    [
        *("--server=http://attacker.example", "-o", "--", "", "a b", "a/b", "A", "a\n", "é"),
        *("../configz", "-a", "a-", ".a", "a" * 254, "--all-namespaces", "a\0b"),
    ],
)
async def test_names_that_no_object_can_have(name: str) -> None:
    """Kubernetes takes any text in imagePullSecrets: kubectl gets none that no Secret can have."""
    assert not is_name(name)
    ASKED.clear()
    found = await _seen().secrets({("team", name)})
    assert (found, ASKED) == ({("team", name): {}}, [])
    found = await _seen().secrets({("team", name), ("team", "pull"), ("team", "pull.2")})
    (words,) = ASKED
    assert words[words.index("--") :] == ("--", "pull", "pull.2")
    assert found == {("team", one): {} for one in (name, "pull", "pull.2")}


async def test_many_secrets_are_asked_for_in_parts() -> None:
    """A command's arguments have a bound."""
    ASKED.clear()
    wanted = {("team", f"pull-{n}") for n in range(1000)}
    assert (await _seen().secrets(wanted)).keys() == wanted
    assert max(len(words) for words in ASKED) < 300
    assert len(ASKED) > 1


@pytest.mark.parametrize("end", ["kubelet.sh", "probe.sh"])
def test_script_ends_while_its_input_stays_open(end: str) -> None:
    """The shell of a node reads it from ssh, which goes on after the script."""
    script = reading_script(Target("", tls=True), (), end)
    with subprocess.Popen(
        ["sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        try:
            shell.stdin.write(script.encode())
            shell.stdin.flush()
            assert shell.wait(120) == 0
            assert b" done yes\n" in shell.stdout.read()
        finally:
            shell.kill()
