"""`mayfly copy` between registries, bundles and stores, disturbed and killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.cli.copy import _Below, _destination, _Named, _Store
from mayfly.registry.settings.errors import ConfigError
from tests.clients.proxy import FaultyProxy, SlowProxy
from tests.support.certificates import Pair
from tests.support.commands import command_line, environment, mayfly, run_mayfly
from tests.support.others import Other, distribution, olareg
from tests.support.process import Mayfly, find_program, need
from tests.upstream.content import APP, TOOL, Content
from tests.upstream.disturbed import kill_until_done, repeat_until_done
from tests.upstream.test_create import blobs_of

TARGETS = ("mayfly", "registry", "docker-registry", "secure", "olareg")


@contextlib.contextmanager
def _started(kind: str, place: Path, pair: Pair) -> Iterator[Other]:
    if kind == "mayfly":
        with Mayfly(place / "root", place / "state") as served:
            yield Other(served.host)
    elif kind == "olareg":
        with olareg(place) as found:
            yield found
    else:
        program = "docker-registry" if kind == "docker-registry" else "registry"
        with distribution(place, program, pair if kind == "secure" else None) as found:
            yield found


def _copy(other: Other, *words: object, code: int = 0) -> list[dict[str, Any]]:
    """Run ``mayfly copy --json``; its events."""
    done = mayfly("copy", "--json", *words, *other.options, env=other.environment)
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _content_of(content: Content, other: Other, prefix: str, output: Path) -> set[str]:
    """Every digest of the images that a registry has, and of what refers to them."""
    names = content.names(f"{other.host}/{prefix}")
    words = ("bundle", "create", *names, "-o", output, *other.options)
    done = mayfly(*words, env=other.environment)
    assert done.returncode == 0, done.stderr
    return blobs_of(output)


def _crane(other: Other, *words: str) -> bytes:
    need("crane")
    argv = [find_program("crane") or "", *words]
    done = subprocess.run(
        argv, capture_output=True, timeout=60, env=environment(**other.environment), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", TARGETS)
def test_images_arrive_whole(
    content: Content, upstream: Mayfly, tmp_path: Path, pair: Pair, kind: str
) -> None:
    """Bit for bit with all that refers to them; a blob is sent once, and nothing the second time.

    The target's login and certificate are those of docker login and --ca.
    """
    with _started(kind, tmp_path / kind, pair) as other:
        first = _copy(other, *content.names(upstream.host), f"{other.url}/in/here")
        assert [one["state"] for one in first if one["event"] == "image"] == ["copied", "copied"]
        assert (first[-1]["blobs"], first[-1]["mounted"]) == (4, 2)
        assert _content_of(content, other, "in/here", tmp_path / "out.tar") == content.all
        for name, reference in content.tags().items():
            digest = str(content.digests[reference])
            here = f"{other.host}/in/here/{name}"
            assert _crane(other, "digest", here).decode().strip() == digest
            there = _crane(Other(upstream.host), "manifest", f"{upstream.host}/{name}")
            assert _crane(other, "manifest", here) == there
        again = _copy(other, *content.names(upstream.host), f"{other.url}/in/here")
        assert [one["state"] for one in again if one["event"] == "image"] == ["present"] * 2
        assert (again[-1]["blobs"], again[-1]["mounted"], again[-1]["size"]) == (0, 0, 0)
        moved = _copy(other, *content.names(f"{other.host}/in/here"), f"{other.url}/moved")
        # --upstream makes a mirror of the source, which is not known to be the target.
        mounted = (4, 2) if kind == "secure" else (0, 6)
        assert (moved[-1]["blobs"], moved[-1]["mounted"]) == mounted
        assert _content_of(content, other, "moved/in/here", tmp_path / "moved.tar") == content.all


def test_the_same_as_skopeo_and_crane(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """The image itself is what they make of it; they leave signatures behind."""
    need("skopeo")
    with olareg(tmp_path / "olareg") as other:
        name = f"{upstream.host}/{APP}:1"
        _copy(other, name, f"{other.host}/ours/app:1")
        _crane(other, "copy", name, f"{other.host}/crane/app:1")
        argv = [find_program("skopeo") or "", "copy", "--all", "--preserve-digests", "-q"]
        argv += ["--src-tls-verify=false", "--dest-tls-verify=false"]
        argv += [f"docker://{name}", f"docker://{other.host}/skopeo/app:1"]
        subprocess.run(argv, check=True, timeout=120)
        for tool in ("crane", "skopeo"):
            found = {
                one: _crane(other, "manifest", f"{other.host}/{one}/app@{digest}")
                for one in ("ours", tool)
                for digest in (content.digests["index"],)
            }
            assert found["ours"] == found[tool]
        for platform in ("amd64", "arm64", "attestation"):
            digest = content.digests[platform]
            ours = _crane(other, "manifest", f"{other.host}/ours/app@{digest}")
            assert ours == _crane(other, "manifest", f"{other.host}/skopeo/app@{digest}")
        assert "sha256-" not in _crane(other, "ls", f"{other.host}/crane/app").decode()


def test_every_direction(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """Store and bundle to a registry, registry and store to a store, all with the same content."""
    bundle = tmp_path / "up.tar"
    run_mayfly("bundle", "create", *content.names(upstream.host), "-o", bundle)
    with olareg(tmp_path / "olareg") as other:
        _copy(other, bundle, f"http://{other.host}/bundle/")
        _copy(other, content.root, f"{other.host}/store")
        for prefix in ("bundle", "store"):
            assert _content_of(content, other, prefix, tmp_path / f"{prefix}.tar") == content.all
        _copy(other, *content.names(f"{other.host}/store"), tmp_path / "first")
        _copy(other, *content.names(upstream.host), "--root", tmp_path / "second")
        _copy(other, tmp_path / "second", tmp_path / "third")
    for root, prefix in (("first", "store/"), ("second", ""), ("third", "")):
        run_mayfly("verify", "--root", tmp_path / root)
        output = tmp_path / f"{root}.tar"
        names = [f"localhost/{prefix}{name}" for name in content.tags()]
        run_mayfly("bundle", "create", *names, "--from", tmp_path / root, "-o", output)
        assert blobs_of(output) == content.all


def test_lists_say_where_images_go(upstream: Mayfly, tmp_path: Path) -> None:
    """mapping.txt's destinations are names below DEST; digests alone keep no tag."""
    listed = tmp_path / "mapping.txt"
    listed.write_text(f"{upstream.host}/{TOOL}:1=elsewhere.example/other/name:9\n")
    with olareg(tmp_path / "olareg") as other:
        done = _copy(other, listed, f"{other.host}/base")
        assert done[1]["target"] == f"{other.host}/base/other/name:9"
        assert _crane(other, "ls", f"{other.host}/base/other/name") == b"9\n"


def test_a_dry_run_sends_nothing(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """It says what it would do."""
    with olareg(tmp_path / "olareg") as other:
        events = _copy(other, *content.names(upstream.host), other.host, "--dry-run")
        assert [one["state"] for one in events if one["event"] == "image"] == ["copied"] * 2
        assert events[-1]["event"] == "planned"
        assert events[-1]["blobs"] == 4
        again = _copy(other, *content.names(upstream.host), other.host, "--dry-run")
        assert again[-1]["blobs"] == 4


def test_platforms_and_referrers_can_be_left_out(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """A store takes an index without some platforms; the other half follows later."""
    root = tmp_path / "root"
    name = f"{upstream.host}/{APP}:1"
    none = Other("")
    _copy(none, name, root, "--platform", "linux/amd64", "--no-referrers")
    listed = json.loads(run_mayfly("ls", "--root", root, "--json"))["images"]
    assert [one["digest"] for one in listed] == [str(content.digests["index"])]
    assert listed[0]["referrers"] == []
    found = {path.parent.name for path in root.rglob("data")}
    assert content.digests["amd64"].hex in found
    assert content.digests["arm64"].hex not in found
    _copy(none, name, root)
    found = {path.parent.name for path in root.rglob("data")}
    assert found >= content.all - {content.digests["tool"].hex}


def test_another_digest_needs_override(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """A tag that points elsewhere is named, counted and kept; with --override it is moved."""
    with olareg(tmp_path / "olareg") as other:
        there = f"{other.host}/{APP}:1"
        _copy(other, f"{upstream.host}/{TOOL}:1", there)
        events = _copy(other, *content.names(upstream.host), other.host, code=3)
        states = {one["target"]: one["state"] for one in events if one["event"] == "image"}
        assert states == {there: "skipped", f"{other.host}/{TOOL}:1": "copied"}
        assert (events[-1]["skipped"], events[-1]["copied"]) == (1, 1)
        assert _crane(other, "digest", there).decode().strip() == str(content.digests["tool"])
        _copy(other, *content.names(upstream.host), other.host, "--override")
        assert _crane(other, "digest", there).decode().strip() == str(content.digests["index"])


def test_two_images_of_one_name_are_refused(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """The first of the list gets it, also with --override; the other is named."""
    listed = tmp_path / "mapping.txt"
    lines = [f"{name}=x.example/same:1" for name in content.names(upstream.host)]
    listed.write_text("\n".join(lines))
    events = _copy(Other(""), listed, tmp_path / "root", "--override", code=3)
    images = {one["source"]: one for one in events if one["event"] == "image"}
    assert images[f"{upstream.host}/{APP}:1"]["state"] == "copied"
    second = images[f"{upstream.host}/{TOOL}:1"]
    assert (second["state"], second["problems"][0]["code"]) == ("skipped", "conflict")


def test_one_bad_image_stops_no_other(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """Exit code 3; what is not there is named."""
    bad = [f"{upstream.host}/{APP}:none", f"{upstream.host}/nowhere:1"]
    done = mayfly("copy", *bad, *content.names(upstream.host), tmp_path / "root")
    assert done.returncode == 3
    assert all(f"{name} is not in" in done.stderr for name in bad)
    assert "copied 2 images (0 there already, 2 failed)" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_network_that_breaks_changes_nothing(
    content: Content, upstream: Mayfly, tmp_path: Path, side: str
) -> None:
    """Twenty broken connections at either side, and all arrives."""
    with olareg(tmp_path / "olareg") as other:
        broken = upstream.host if side == "source" else other.host
        with FaultyProxy(broken, 7, 20, 300_000) as proxy:
            source, target = (
                (proxy.host, other.host) if side == "source" else (upstream.host, proxy.host)
            )
            words = ("copy", *content.names(source), f"{target}/x", "--json")
            repeat_until_done(lambda: mayfly(*words, timeout=300))
            assert proxy.happened
        assert _content_of(content, other, "x", tmp_path / "out.tar") == content.all


@pytest.mark.parametrize("kind", ["olareg", "store"])
def test_kills_at_any_moment_lose_nothing(
    content: Content, upstream: Mayfly, tmp_path: Path, pair: Pair, kind: str
) -> None:
    """The same command continues after each kill -9; a store is whole all the time."""
    root = tmp_path / "root"

    def check() -> None:
        if kind == "store" and root.exists():
            run_mayfly("verify", "--root", root)

    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(SlowProxy(upstream.host, 2_000_000))
        other = stack.enter_context(olareg(tmp_path / "olareg"))
        target = root if kind == "store" else f"{other.host}/x"
        kill_until_done(command_line("copy", *content.names(proxy.host), target), 0.8, check)
        check()
        if kind == "store":
            assert {path.parent.name for path in root.rglob("data")} >= content.all
        else:
            assert _content_of(content, other, "x", tmp_path / "out.tar") == content.all


def test_destinations(tmp_path: Path) -> None:
    """A registry, a path of it, the name of an image, or a directory."""
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert isinstance(_destination("registry.example"), _Below)
    assert isinstance(_destination("localhost:5000"), _Below)
    assert isinstance(_destination("https://registry.example/a/b/"), _Below)
    assert isinstance(_destination("registry.example/a/b:1"), _Named)
    assert isinstance(_destination(str(tmp_path / "new")), _Store)
    assert isinstance(_destination("./new"), _Store)
    assert _destination("http://registry.example").insecure == {"registry.example"}
    for text, words in (
        ("mirror", "neither a registry nor a directory"),
        ("ftp://registry.example", "expected HOST"),
        ("https://me:secret@registry.example", "docker login"),
        ("registry.example/UPPER", "invalid repository name"),
        (str(tmp_path / "file"), "mayfly bundle create"),
        (str(tmp_path / "new.tar"), "mayfly bundle create"),
        (str(tmp_path / "full"), "is no store"),
    ):
        with pytest.raises(ConfigError, match=words):
            _destination(text)


def test_a_login_in_a_destination_is_not_repeated() -> None:
    """Nobody's password goes into a log."""
    for words in (
        ("x:1", "https://me:hunter2@registry.example"),
        ("https://me:hunter2@registry.example/x:1", "registry.example"),
    ):
        done = mayfly("copy", *words)
        assert done.returncode == 2
        assert "hunter2" not in done.stderr


def test_the_name_of_one_image_takes_one(content: Content, upstream: Mayfly) -> None:
    """Two images have two names."""
    done = mayfly("copy", *content.names(upstream.host), "localhost:1/x:1")
    assert done.returncode == 2
    assert "name of one image" in done.stderr
