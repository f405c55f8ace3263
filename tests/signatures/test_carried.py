"""A bundle of sixty images, made from two registries, disturbed, and served: nothing is lost.

The signatures are made and verified by cosign 2 (tags) and 3 (bundles that refer to the image),
the chart by helm, the artifact by oras; against Mayfly each finds what it put upstream.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.proxy import FaultyProxy, SlowProxy
from tests.signatures.conftest import COUNT, Tools, Upstream, image
from tests.support.process import REPO, Mayfly

OLD, NEW = "2.6.5", "3.1.3"
SIGNED = 5
ARTIFACT, CHART = "things/artifact", "charts/upgrade"
SBOM = "application/vnd.example.sbom"
KILLS, CUTS = 20, 20

RATE = 200_000
"""Bytes a second of the disturbed network: slow enough that kills meet transfers."""


@dataclass(frozen=True)
class Put:
    """What the tools put upstream.

    Attributes:
        list: the images, for `bundle create`.
        chart: the packed chart.
        discovered: what oras discovers of the artifact.
    """

    list: Path
    chart: bytes
    discovered: object


@pytest.fixture(scope="module")
def everything(tools: Tools, secure: Upstream, plain: Upstream) -> Put:
    """Signatures of both kinds, a chart, an artifact with an SBOM, and one image in olareg."""
    place = tools.directory
    tools.cosign(OLD, "generate-key-pair")
    for number in range(SIGNED):
        reference = f"{secure.host}/{image(number)}:1"
        if number % 2:
            _sign_new(tools, reference)
        else:
            old = ("--tlog-upload=false", "--yes", "--recursive")
            tools.cosign(OLD, "sign", "--key", "cosign.key", *old, reference)
    chart = place / "upgrade"
    chart.mkdir()
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: upgrade\nversion: 1.2.3+build.4\n")
    tools.program("helm", "package", chart)
    packed = place / "upgrade-1.2.3+build.4.tgz"
    tools.program("helm", "push", packed, f"oci://{secure.host}/charts")
    (place / "notes.txt").write_text("the artifact\n")
    (place / "sbom.json").write_text("{}\n")
    artifact = f"{plain.host}/{ARTIFACT}:1"
    kind = "--artifact-type=application/vnd.example.thing"
    tools.program("oras", "push", "--plain-http", kind, artifact, "notes.txt:text/plain")
    attach = ("attach", "--plain-http", f"--artifact-type={SBOM}")
    tools.program("oras", *attach, artifact, "sbom.json")
    _sign_new(tools, artifact)
    names = [f"{secure.name}/{image(number)}:1" for number in range(COUNT)]
    names += [f"{secure.name}/{CHART}:1.2.3_build.4", f"{plain.name}/{ARTIFACT}:1"]
    listed = place / "images.txt"
    listed.write_text("\n".join(names))
    return Put(listed, packed.read_bytes(), _discovered(tools, artifact))


def _sign_new(tools: Tools, reference: str) -> None:
    new = ("--use-signing-config=false", "--tlog-upload=false", "--yes")
    tools.cosign(NEW, "sign", "--key", "cosign.key", *new, "--allow-http-registry", reference)


def _discovered(tools: Tools, reference: str) -> object:
    """The tree of what refers to an artifact: digests, types and annotations."""
    found = json.loads(
        tools.program("oras", "discover", "--plain-http", "--format=json", reference)
    )

    def strip(entry: object) -> object:
        if isinstance(entry, list):
            return sorted((strip(one) for one in entry), key=json.dumps)
        if isinstance(entry, dict):
            return {key: strip(one) for key, one in entry.items() if key != "reference"}
        return entry

    return strip(found)


def _create(tools: Tools, put: Put, output: Path, secure: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mayfly", "bundle", "create", str(put.list), "-o", str(output)),
        *("--upstream", f"registry.example=https://{secure}"),
        *("--ca", tools.environment["SSL_CERT_FILE"]),
    ]


@pytest.fixture(scope="module")
def bundle(tools: Tools, everything: Put, secure: Upstream) -> Path:
    """Made in one go."""
    output = tools.directory / "whole.tar"
    _run(tools, _create(tools, everything, output, secure.host))
    return output


def _run(tools: Tools, argv: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {**tools.environment, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        argv, cwd=REPO, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """Mayfly with that bundle, over plain HTTP on loopback."""
    place = tmp_path_factory.mktemp("served")
    with Mayfly(place / "root", place / "state", str(bundle)) as running:
        yield running


def _at(served: Mayfly, repository: str) -> str:
    return f"{served.host.replace('127.0.0.1', 'localhost')}/{repository}"


def test_a_disturbed_run_gives_the_same_file(
    tools: Tools, everything: Put, bundle: Path, secure: Upstream
) -> None:
    """Killed twenty times, its network cut twenty times, the same command finishes."""
    output = tools.directory / "disturbed.tar"
    unfinished = output.with_name(f".{output.name}.partial")
    chance = random.Random(21)
    was_fetching = killed = 0
    address = secure.host.replace("localhost", "127.0.0.1")
    with SlowProxy(address, RATE) as slow, FaultyProxy(slow.host, 21, CUTS, 1_000_000) as proxy:
        host = proxy.host.replace("127.0.0.1", "localhost")
        logins = json.loads((tools.directory / "config.json").read_text())
        logins["auths"][host] = logins["auths"][secure.host]
        (tools.directory / "config.json").write_text(json.dumps(logins))
        argv = _create(tools, everything, output, host)
        environment = {**tools.environment, "PYTHONPATH": str(REPO)}
        began = time.monotonic()
        _run(tools, [*argv, "--dry-run"])
        looked_up = time.monotonic() - began
        for kill in range(KILLS):
            # Every other one while images are looked up, the others later.
            longest = looked_up if kill % 2 else 2 * looked_up
            process = subprocess.Popen(
                argv, cwd=REPO, env=environment, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                process.wait(timeout=chance.uniform(0.5, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
                was_fetching += unfinished.exists()
            process.wait()
        for _ in range(CUTS):
            if output.exists():
                break
            subprocess.run(argv, cwd=REPO, env=environment, capture_output=True, timeout=300)
        assert proxy.happened
    assert output.read_bytes() == bundle.read_bytes()
    assert killed >= KILLS // 2
    assert was_fetching


@pytest.mark.parametrize("number", range(SIGNED))
def test_cosign_verifies(tools: Tools, served: Mayfly, number: int) -> None:
    """The old signatures by their tags, the new ones as referrers."""
    version = NEW if number % 2 else OLD
    offline = ("--insecure-ignore-tlog", "--allow-http-registry")
    reference = _at(served, f"{image(number)}:1")
    tools.cosign(version, "verify", "--key", "cosign.pub", *offline, reference)


def test_cosign_refuses_what_is_not_signed(tools: Tools, served: Mayfly) -> None:
    """An image without a signature has none here either."""
    offline = ("--insecure-ignore-tlog", "--allow-http-registry")
    with pytest.raises(AssertionError, match=r"no signatures|no matching"):
        tools.cosign(OLD, "verify", "--key", "cosign.pub", *offline, _at(served, f"{image(9)}:1"))


def test_oras_discovers_the_same(tools: Tools, served: Mayfly, everything: Put) -> None:
    """The artifact's SBOM and signature, with their annotations; and the file comes back."""
    reference = _at(served, f"{ARTIFACT}:1")
    assert _discovered(tools, reference) == everything.discovered
    tools.program("oras", "pull", "--plain-http", "--output=pulled", reference)
    assert (tools.directory / "pulled/notes.txt").read_text() == "the artifact\n"


def test_helm_pulls_the_chart(tools: Tools, served: Mayfly, everything: Put) -> None:
    """Bit for bit what was packed."""
    words = ("--plain-http", "--version", "1.2.3+build.4", "--destination", "charts-pulled")
    (tools.directory / "charts-pulled").mkdir()
    tools.program("helm", "pull", f"oci://{_at(served, CHART)}", *words)
    (pulled,) = (tools.directory / "charts-pulled").iterdir()
    assert pulled.read_bytes() == everything.chart


def test_every_manifest_is_there(
    tools: Tools, served: Mayfly, everything: Put, secure: Upstream
) -> None:
    """What crane shows of each image upstream and here is the same; so are the attestations."""
    for number in range(COUNT):
        reference = _at(served, f"{image(number)}:1")
        found = tools.program("crane", "manifest", "--insecure", reference)
        assert found == tools.program("crane", "manifest", f"{secure.host}/{image(number)}:1")
        if number in (1, 2):
            kinds = [one.get("annotations") for one in json.loads(found)["manifests"]]
            assert len([kind for kind in kinds if kind]) == 2
    listed = json.loads(
        _run(tools, [sys.executable, "-m", "mayfly", "ls", served.url, "--json"]).stdout
    )
    assert len([one for one in listed["images"] if one["name"].startswith("kolla/")]) >= COUNT
