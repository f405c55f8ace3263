"""`mayfly sync` with files of skopeo sync and regsync."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.support.certificates import Pair
from tests.support.commands import mayfly_here, printed_here
from tests.support.images import image_body, push, put
from tests.support.others import PASSWORD, USER, Other, distribution, olareg
from tests.upstream.content import APP, Content

TAGS = ("1.0", "1.1", "1.2-rc1", "2.0", "latest")


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, content: Content, pair: Pair
) -> Iterator[Other]:
    """A registry with TLS and a user, with versions of one image, and the other images."""
    place = tmp_path_factory.mktemp("secure")
    shutil.copytree(content.root, place / "root")
    with closing(DistributionStore(place / "root")) as store:
        push(store, "team/versions", b"{}")
        for tag in TAGS:
            put(store, "team/versions", image_body(b"{}", annotations={"tag": tag}), tag)
    with distribution(place, "registry", pair) as found:
        yield found


def _sync(*words: object, code: int = 0) -> list[dict[str, Any]]:
    """Run ``mayfly sync --json``; its events. It finds no logins but those of the file."""
    done = mayfly_here("sync", "--json", *words, env={"DOCKER_CONFIG": "/nowhere"})
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _names(root: Path) -> set[str]:
    listed = json.loads(printed_here("ls", "--root", root, "--json"))["images"]
    return {one["name"] for one in listed if "sha256-" not in one["name"]}


def test_skopeo_s_file(secure: Other, pair: Pair, tmp_path: Path) -> None:
    """Tags by name, regex and range; login and certificates of the file."""
    certificates = tmp_path / "certs"
    certificates.mkdir()
    shutil.copy(pair.certificate, certificates / "ca.crt")
    listed = tmp_path / "sync.yaml"
    listed.write_text(f"""
{secure.host}:
  cert-dir: {certificates}
  credentials: {{username: {USER}, password: {PASSWORD}}}
  images:
    tool: ["1"]
  images-by-tag-regex:
    team/versions: ^1\\.[01]$
  images-by-semver:
    team/versions: ">= 2.0"
""")
    _sync(listed, tmp_path / "root")
    expected = {"tool:1", *(f"team/versions:{tag}" for tag in ("1.0", "1.1", "2.0"))}
    assert _names(tmp_path / "root") == expected


def test_regsync_s_file(secure: Other, content: Content, tmp_path: Path) -> None:
    """Targets, allow and deny, platforms and referrers; nothing is deleted, a tag is kept."""
    listed = tmp_path / "regsync.yml"
    with olareg(tmp_path / "olareg") as other:
        listed.write_text(f"""
version: 1
creds:
  - {{registry: "{secure.host}", user: {USER}, pass: {PASSWORD}, tls: insecure}}
defaults: {{interval: 60m}}
sync:
  - source: {secure.host}/team/versions
    target: {other.host}/versions
    type: repository
    tags: {{allow: ["1.*", "latest"], deny: [".*-rc.*"]}}
  - source: {secure.host}/{APP}:1
    target: {other.host}/app:stable
    type: image
    referrers: true
""")
        options = ("--upstream", f"{secure.host}=https://{secure.host}")
        events = _sync(listed, *options)
        assert any("interval has no effect" in one.get("message", "") for one in events)
        targets = {one["target"]: one["state"] for one in events if one["event"] == "image"}
        wanted = {f"{other.host}/versions:{tag}" for tag in ("1.0", "1.1", "latest")}
        assert targets == dict.fromkeys((*wanted, f"{other.host}/app:stable"), "copied")
        again = _sync(listed, *options)
        assert (again[-1]["present"], again[-1]["size"]) == (4, 0)
        printed_here("copy", f"{other.host}/versions:1.0", f"{other.host}/app:stable", "--override")
        kept = _sync(listed, *options, code=3)
        assert kept[-1]["skipped"] == 1
        moved = _sync(listed, *options, "--override")
        assert moved[-1]["copied"] == 1


def test_a_certificate_of_nobody_is_refused(secure: Other, tmp_path: Path) -> None:
    """Without what the file says, a strange certificate is not trusted; copy does not do as it
    says, and says so.
    """
    listed = tmp_path / "sync.yaml"
    body = f"{secure.host}: {{images: {{tool: ['1']}}, tls-verify: %s}}\n"
    upstream = ("--upstream", f"{secure.host}=https://{secure.host}")
    listed.write_text(body % "true")
    events = _sync(listed, tmp_path / "root", *upstream, code=3)
    assert "certificate is not trusted" in json.dumps(events)
    listed.write_text(body % "false")
    done = mayfly_here("copy", listed, tmp_path / "root", *upstream)
    assert done.returncode == 3
    assert "not verifying TLS has no effect" in done.stderr
    assert "certificate is not trusted" in done.stderr


def test_without_a_destination(tmp_path: Path) -> None:
    """A file without targets needs DEST; a file that is none is named."""
    listed = tmp_path / "sync.yaml"
    listed.write_text("localhost:1: {images: {tool: ['1']}}\n")
    done = mayfly_here("sync", listed)
    assert (done.returncode, "names no target" in done.stderr) == (2, True)
    done = mayfly_here("sync", tmp_path / "none.yaml")
    assert (done.returncode, "No such file" in done.stderr) == (2, True)
    listed.write_text("localhost:1: {images: {tool: ['1']}, cert-dir: /nowhere/at/all}\n")
    done = mayfly_here("sync", listed, tmp_path / "root")
    assert (done.returncode, "cert-dir /nowhere/at/all" in done.stderr) == (2, True)
