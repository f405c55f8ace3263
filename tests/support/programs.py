"""The manifest of the programs that tests run: what each is, and where it lies.

``.ci/programs.toml`` has them.
`.ci/install.py` installs from it and `tests.support.process` tells from it how a missing program is
installed. Only the standard library: it is read before anything is installed.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TOP = Path(__file__).resolve().parents[2]
MANIFEST = TOP / ".ci" / "programs.toml"
BIN = TOP / ".cache" / "bin"

CI = "ci"


@dataclass(frozen=True)
class DebianPackage:
    """A package of the distribution's, and the programs in it that tests run."""

    name: str
    programs: tuple[str, ...]
    tier: str


@dataclass(frozen=True)
class PythonProgram:
    """A command from the package index; ``beside`` it are other packages, with their versions."""

    package: str
    version: str
    minutes: float
    tier: str
    beside: tuple[str, ...]


@dataclass(frozen=True)
class GoProgram:
    """Commands of one module, built at one version.

    Attributes:
        name: of the directory, where several versions lie side by side; "" for ``.cache/bin``.
        commands: their package paths within the module; "." is the module itself.
        staged: the version that is published of the modules which lie in the same repository and
            which its go.mod replaces by that; "" where there are none.
        ldflags: for the linker, where a program does not know its version.
        tags: build tags, with commas.
        requires: modules of a program of this repository, whose module is its folder; empty for
            others.
    """

    name: str
    module: str
    version: str
    commands: tuple[str, ...]
    minutes: float
    tier: str
    staged: str
    ldflags: str
    tags: str
    requires: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """Where its commands lie."""
        return versioned(self.name, self.version) if self.name else BIN

    @property
    def packages(self) -> dict[str, str]:
        """Command → the package that it is built from."""
        found = {}
        for command in self.commands:
            package = self.module if command == "." else f"{self.module}/{command}"
            found[PurePosixPath(package).name] = package
        return found


@dataclass(frozen=True)
class Manifest:
    """All of it.

    Attributes:
        ci_minutes: the most that installing tier "ci" may take.
        debian_minutes: for all packages of a tier.
    """

    ci_minutes: float
    debian_minutes: float
    debian: tuple[DebianPackage, ...]
    python: tuple[PythonProgram, ...]
    go: tuple[GoProgram, ...]

    def minutes(self, tier: str) -> float:
        """What installing one tier takes on a bare machine."""
        every: list[PythonProgram | GoProgram] = [*self.python, *self.go]
        built = sum(program.minutes for program in every if program.tier == tier)
        has_debian = any(package.tier == tier for package in self.debian)
        return built + (self.debian_minutes if has_debian else 0)

    def tiers(self) -> list[str]:
        """All tiers but "ci": targets of the Makefile."""
        every: list[DebianPackage | PythonProgram | GoProgram]
        every = [*self.debian, *self.python, *self.go]
        return sorted({program.tier for program in every} - {CI})

    def provider(self, program: str) -> tuple[str, str] | None:
        """The tier that installs a program, and the Debian package it is in ("" without one)."""
        for package in self.debian:
            if program in package.programs:
                return package.tier, package.name
        for tool in self.python:
            if program == tool.package:
                return tool.tier, ""
        for built in self.go:
            if program in built.packages:
                return built.tier, ""
        return None


@functools.cache
def manifest() -> Manifest:
    """The manifest as it is in this checkout."""
    value = tomllib.loads(MANIFEST.read_text())
    debian = value["debian"]
    return Manifest(
        ci_minutes=value["ci_minutes"],
        debian_minutes=debian["minutes"],
        debian=tuple(
            DebianPackage(name, tuple(facts["programs"]), facts.get("tier", CI))
            for name, facts in debian["packages"].items()
        ),
        python=tuple(
            PythonProgram(
                one["package"],
                one["version"],
                one["minutes"],
                one.get("tier", CI),
                tuple(one.get("beside", ())),
            )
            for one in value["python"]
        ),
        go=tuple(
            GoProgram(
                one.get("name", ""),
                one["module"],
                one["version"],
                tuple(one["commands"]),
                one["minutes"],
                one.get("tier", CI),
                one.get("staged", ""),
                one.get("ldflags", ""),
                one.get("tags", ""),
                tuple(one.get("requires", ())),
            )
            for one in value["go"]
        ),
    )


def versions(name: str) -> list[str]:
    """The versions of a program that lie side by side, without the "v"."""
    return [built.version.removeprefix("v") for built in manifest().go if built.name == name]


def versioned(name: str, version: str) -> Path:
    """The directory of one version of a program."""
    return BIN / f"{name}-{version.removeprefix('v')}"
