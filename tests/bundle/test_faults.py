"""A real server finds content of its bundle wrong: what clients, logs and the report say of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.builders import Layout, layers, tar
from tests.support.client import get_cut
from tests.support.commands import mayfly_here
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly

StartMayfly = Callable[..., Mayfly]

GOOD, BAD = layers("good", "bad")
NAME = "quay.example/team/app"
IMAGES = ["team/app:bad"]


def damaged(data: bytes) -> bytes:
    """The same with one byte changed, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.fixture
def layout() -> Layout:
    """Two images, of which one has a layer that is not what it is called."""
    made = Layout()
    made.name(made.image(GOOD), f"{NAME}:good")
    made.name(made.image(GOOD, BAD), f"{NAME}:bad")
    made.files[f"blobs/{digest_of(BAD).replace(':', '/')}"] = damaged(BAD)
    return made


def get(server: Mayfly, path: str) -> tuple[int, bytes]:
    """The status and body of a GET; what a cut left of the body, when it was cut."""
    return get_cut(server.host, f"/v2/team/app/{path}")


def status(server: Mayfly) -> dict[str, Any]:
    """What `mayfly status --json` says."""
    done = mayfly_here("status", "--json", "--state-dir", server.state_dir)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def report(server: Mayfly) -> dict[str, Any]:
    """The report of a server that has ended."""
    found: dict[str, Any] = json.loads((server.state_dir / "report.json").read_text())
    return found


def test_reported(layout: Layout, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """What is corrupt is cut, then refused; status and report name it once, all else is served."""
    bundle = layout.write_tar(tmp_path / "upgrade.tar")
    server = start_mayfly(str(bundle))
    assert status(server)["corrupt"] == []
    code, body = get(server, f"blobs/{digest_of(BAD)}")
    assert code == 200
    assert len(body) == len(BAD) - 1
    code, body = get(server, f"blobs/{digest_of(BAD)}")
    assert code == 500
    assert "is corrupt in the bundle" in body.decode()
    assert get(server, f"blobs/{digest_of(GOOD)}") == (200, GOOD)
    (found,) = status(server)["corrupt"]
    assert found["found"].endswith("Z")
    first, last = found["first_byte"], found["last_byte"]
    assert last - first == len(BAD) - 1
    assert found == {
        "digest": digest_of(BAD),
        "bundle": str(bundle),
        "problem": "digest_mismatch",
        "file": str(bundle),
        "first_byte": first,
        "last_byte": last,
        "repositories": ["team/app"],
        "images": IMAGES,
        "found": found["found"],
    }
    line = (
        f"{bundle}: {digest_of(BAD)} is corrupt (bytes {first} to {last}); images that need it: "
        f"{', '.join(IMAGES)}; fetch the bundle again and restart\n"
    )
    assert f"corrupt: {line}" in mayfly_here("status", "--state-dir", server.state_dir).stdout
    assert server.stop() == 0
    assert report(server)["corrupt"] == [found]
    assert report(server)["exit_code"] == 0
    # Once when it was found, once in the report: no line for each try of a client.
    told = [one for one in server.output().splitlines() if digest_of(BAD) in one]
    assert told == [f"{told[0][:20]} ERROR   {line[:-1]}", f"corrupt: {line[:-1]}"]


def test_stop(layout: Layout, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """With `--on-corrupt stop` it ends the server, with the exit code of a storage failure."""
    server = start_mayfly(str(layout.write_tar(tmp_path / "upgrade.tar")), "--on-corrupt", "stop")
    assert get(server, f"blobs/{digest_of(GOOD)}") == (200, GOOD)
    get(server, f"blobs/{digest_of(BAD)}")
    assert server.popen.wait(PATIENCE) == 4
    made = report(server)
    assert (made["reason"], made["exit_code"]) == ("failed", 4)
    assert made["reason_detail"]["digest"] == digest_of(BAD)
    assert [one["digest"] for one in made["corrupt"]] == [digest_of(BAD)]


def test_stop_while_draining(layout: Layout, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """What is found corrupt while the server drains for another reason counts as well."""
    large = tar({"large": bytes(32 * 2**20)})
    layout.name(layout.image(large), f"{NAME}:large")
    server = start_mayfly(str(layout.write_tar(tmp_path / "upgrade.tar")), "--on-corrupt", "stop")
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE)
    with contextlib.closing(connection):
        # Begun and not read on, it holds up the drain.
        connection.request("GET", f"/v2/team/app/blobs/{digest_of(large)}")
        with connection.getresponse() as answer:
            server.popen.send_signal(signal.SIGTERM)
            server.wait_for(lambda: status(server)["state"] == "draining")
            get(server, f"blobs/{digest_of(BAD)}")
            assert len(answer.read()) == len(large)
    assert server.popen.wait(PATIENCE) == 4
    assert report(server)["reason"] == "failed"


@pytest.mark.parametrize("what", ["blob", "manifest"])
def test_changed_directory(
    what: str, layout: Layout, start_mayfly: StartMayfly, tmp_path: Path
) -> None:
    """A file of a bundle that is written to while it is served is found out when asked for."""
    bundle = layout.write_directory(tmp_path / "layout")
    server = start_mayfly(str(bundle))
    digest = digest_of(GOOD) if what == "blob" else layout.entries[0]["digest"]
    file = bundle / "blobs" / digest.replace(":", "/")
    file.write_bytes(damaged(file.read_bytes()))
    code, body = get(server, f"{what}s/{digest}")
    assert code == 500 or len(body) < file.stat().st_size
    assert [one["digest"] for one in status(server)["corrupt"]] == [digest]


@pytest.mark.parametrize(("how", "code"), [("removed", 404), ("linked", 500)])
def test_file_that_went(
    how: str, code: int, layout: Layout, start_mayfly: StartMayfly, tmp_path: Path
) -> None:
    """A file that is taken out of a bundle's directory, or made a link, is missed by name."""
    bundle = layout.write_directory(tmp_path / "layout")
    server = start_mayfly(str(bundle))
    file = bundle / "blobs" / digest_of(GOOD).replace(":", "/")
    file.rename(tmp_path / "elsewhere")
    if how == "linked":
        file.symlink_to(tmp_path / "elsewhere")
    assert get(server, f"blobs/{digest_of(GOOD)}")[0] == code
    (found,) = status(server)["corrupt"]
    assert (found["digest"], found["repositories"]) == (digest_of(GOOD), ["team/app"])
    assert "Traceback" not in server.output()


def test_changed_tar(layout: Layout, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A tar that is written to while it is served is no longer served, also what was right."""
    bundle = layout.write_tar(tmp_path / "upgrade.tar")
    server = start_mayfly(str(bundle), "--on-corrupt", "stop")
    assert get(server, f"blobs/{digest_of(GOOD)}") == (200, GOOD)
    with bundle.open("r+b") as file:
        file.write(b"x")
        os.utime(file.fileno(), ns=(0, 0))
    code, body = get(server, f"blobs/{digest_of(GOOD)}")
    assert code == 500
    assert "was changed while it is served" in body.decode()
    assert server.popen.wait(PATIENCE) == 4
    (found,) = report(server)["corrupt"]
    assert (found["digest"], found["repositories"]) == (digest_of(GOOD), ["team/app"])


def test_ambiguous(start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A path that two upstreams share is in the status, with the names to ask for instead."""
    layout = Layout()
    for host in ("one.example", "two.example"):
        layout.name(layout.image(tar({host: b"x"})), f"{host}/team/app:1")
    server = start_mayfly(str(layout.write_tar(tmp_path / "upgrade.tar")))
    names = ["one.example/team/app", "two.example/team/app"]
    assert status(server)["ambiguous"] == {"team/app": names}
    shown = mayfly_here("status", "--state-dir", server.state_dir).stdout
    wanted = f"ambiguous: team/app is in several upstreams; ask for {names[0]} or {names[1]}\n"
    assert wanted in shown
    assert status(server)["corrupt"] == []
