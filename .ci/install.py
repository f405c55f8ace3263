"""Install the programs of one tier of .ci/programs.toml, as far as this machine lacks them.

Called by .ci/install. Exit codes: 0 all are there; 1 some are not, which is said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.programs import BIN, CI, TOP, GoProgram, PythonProgram, manifest

_POLICY = Path("/usr/sbin/policy-rc.d")
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_GO = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}


class Failed(Exception):
    """A program cannot be installed; the message has its name and the reason."""


def main(arguments: list[str]) -> int:
    """Install one tier; the exit code."""
    tier = arguments[0] if arguments else CI
    known = manifest()
    if tier not in (CI, *known.tiers()) or len(arguments) > 1:
        tiers = ", ".join([CI, *known.tiers()])
        print(f".ci/install: no tier {' '.join(arguments)}: {tiers}", file=sys.stderr)
        return 1
    try:
        _debian(_missing_packages(tier))
        for tool in known.python:
            if tool.tier == tier and not (BIN / tool.package).exists():
                _timed(tool.package, tool.minutes, lambda tool=tool: _python(tool))
        for program in known.go:
            if program.tier == tier and not _is_built(program):
                name = f"{program.module}@{program.version}"
                _timed(name, program.minutes, lambda program=program: _go(program))
    except (Failed, subprocess.CalledProcessError) as error:
        print(f".ci/install: {error}", file=sys.stderr)
        return 1
    if tier == CI:
        for other in known.tiers():
            print(f"left out ({known.minutes(other):.0f} minutes): the programs of make {other}")
    return 0


def _timed(name: str, minutes: float, install: Callable[[], None]) -> None:
    print(f"installing {name} (about {minutes:g} min)", flush=True)
    start = time.monotonic()
    install()
    print(f"installed {name} in {(time.monotonic() - start) / 60:.1f} min", flush=True)


def _missing_packages(tier: str) -> list[str]:
    missing = [
        package.name
        for package in manifest().debian
        if package.tier == tier and not all(map(shutil.which, package.programs))
    ]
    # A kernel that enforces AppArmor lets no container start without its parser.
    enforcing = _APPARMOR.exists() and _APPARMOR.read_text().strip() == "Y"
    if tier == CI and enforcing and not shutil.which("apparmor_parser"):
        missing.append("apparmor")
    return missing


def _debian(packages: list[str]) -> None:
    if not packages:
        return
    if os.geteuid() != 0:
        raise Failed(f"installing {' '.join(packages)} takes root")
    apt = ["apt-get", "--quiet=2", "--yes"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}

    def install() -> None:
        with _no_daemons():
            subprocess.run([*apt, "update"], check=True, env=env)
            subprocess.run(
                [*apt, "install", "--no-install-recommends", *packages],
                check=True,
                env=env,
                stdin=subprocess.DEVNULL,
            )

    _timed(" ".join(packages), manifest().debian_minutes, install)


@contextmanager
def _no_daemons() -> Iterator[None]:
    """The tests start daemons of their own: no package is to start one."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _python(tool: PythonProgram) -> None:
    home = TOP / ".cache" / tool.package
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    wanted = f"{tool.package}=={tool.version}"
    subprocess.run([home / "bin/pip", "install", "--quiet", wanted, *tool.beside], check=True)
    BIN.mkdir(parents=True, exist_ok=True)
    (BIN / tool.package).symlink_to(Path("..", tool.package, "bin", tool.package))


def _is_built(program: GoProgram) -> bool:
    if program.name:
        return all((program.directory / name).exists() for name in program.packages)
    (name,) = program.packages
    told = subprocess.run(
        ["go", "version", "-m", BIN / name], capture_output=True, text=True, check=False
    )
    found = re.search(r"^\tmod\t\S+\t(\S+)", told.stdout, re.MULTILINE)
    return found is not None and found[1] == program.version


def _go(program: GoProgram) -> None:
    if not shutil.which("go"):
        raise Failed(
            "Go is missing: crane, containerd 2 and others are built with Go 1.26 or newer, which "
            "Debian 12 does not have; put one in /usr/local/go"
        )
    BIN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BIN.resolve()) as scratch:
        work, made = Path(scratch, "module"), Path(scratch, "made")
        work.mkdir()
        made.mkdir()
        _module(program, work)
        for name, package in program.packages.items():
            flags = ["-mod=mod", "-trimpath", f"-ldflags=-s -w {program.ldflags}"]
            flags.append(f"-tags={program.tags}")
            built = "." if program.requires else package
            _run_go(work, "build", *flags, "-o", made / name, built)
        program.directory.mkdir(exist_ok=True)
        for built in made.iterdir():
            built.replace(program.directory / built.name)


def _module(program: GoProgram, work: Path) -> None:
    """A module that requires the program's, or that is the program's.

    `go install` refuses a module with replace directives. Those that lead into the repository
    itself are put as the versions that are published of them.
    """
    source = f"{program.module}@{program.version}"
    _run_go(work, "mod", "init", "build")
    if program.requires:
        for file in (TOP / program.module).glob("*.go"):
            shutil.copy(file, work)
        for required in program.requires:
            _run_go(work, "get", required)
        return
    directory = Path(json.loads(_run_go(work, "mod", "download", "-json", source))["Dir"])
    if program.staged:
        theirs = (directory / "go.mod").read_text()
        for module in re.findall(r"(\S+) => \./", theirs):
            _run_go(work, "mod", "edit", f"-replace={module}={module}@{program.staged}")
    if (directory / "go.sum").exists():
        # The database of sums, which is asked for those that are not here, does not have all.
        (work / "go.sum").write_bytes((directory / "go.sum").read_bytes())
    _run_go(work, "get", source)
    _run_go(work, "get", *(f"{package}@{program.version}" for package in program.packages.values()))


def _run_go(work: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        ["go", *arguments],
        cwd=work,
        env={**os.environ, **_GO},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
