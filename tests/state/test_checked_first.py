"""A start that fails leaves no new CA, users or credentials behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import mayfly

SECURE = ("--listen", "127.0.0.1:0", "--tls", "auto", "--auth", "auto")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("serve", "--until-pulled", "{0}/none", "--nodes", "1"), 2),
        (("serve", "--until-pulled", "{0}/bad", "--nodes", "1"), 2),
        (("serve", "--until-pulled", "{0}/empty", "--nodes", "1"), 2),
        (("serve", "--until-pulled", "{0}/good"), 2),
        (("serve", "--until-pulled", "{0}/good", "--nodes", "{0}/none"), 2),
        (("serve", "--until-pulled", "{0}/good", "--nodes", "1", "--accept", "seen"), 2),
        (("serve", "--audit", "{0}/none/audit"), 2),
        (("serve", "--gc-low", "50"), 2),
        (("serve", "--gc-high", "50", "--gc-low", "60"), 2),
        (("serve", "--gc-high", "50", "--protect", "{0}/none"), 2),
        (("serve", "--gc-high", "50", "--read-only"), 2),
        (("serve", "--client-ca", "{0}/none"), 2),
        (("serve", "--client-ca", "{0}/bad"), 2),
        (("serve", "--signing-key", "{0}/bad"), 2),
        (("serve", "--auth", "{0}/none"), 2),
        (("serve", "{0}/bad"), 5),
        (("run", "--", "{0}/none"), 127),
        (("run", "--", "{0}/bad"), 126),
    ],
)
def test_nothing_is_made(tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """Each of these is found out before the CA is made: nodes would have to trust another one."""
    (tmp_path / "bad").write_text("No Such:Image\n")
    (tmp_path / "good").write_text("team/app:1\n")
    (tmp_path / "empty").write_text("# nothing\n")
    command, *rest = (option.format(tmp_path) for option in options)
    state = tmp_path / "state"
    where = ("--state-dir", state, "--root", tmp_path / "root")
    done = mayfly(command, *where, *SECURE, *rest)
    assert done.returncode == code, done.stderr
    left = {path.name for path in state.glob("*")} if state.exists() else set()
    assert not left & {"ca.crt", "ca.key", "tls.crt", "tls.key", "credentials.json", "run.json"}
