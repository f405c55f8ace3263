"""`python -m tests`: two runs of pytest, one exit code; which tests share a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import __main__ as suite
from tests.conftest import LONG, _places


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 5), 0), ((5, 0), 0), ((5, 5), 5), ((1, 0), 1), ((0, 1), 1), ((5, 2), 2)],
)
def test_exit_code(monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int], code: int) -> None:
    """Both parts run whatever the first finds; a part without tests is no failure."""
    answers, ran = iter(codes), []

    def run(title: str, options: list[str]) -> int:
        ran.append((title, options[:2], options[-1]))
        return next(answers)

    monkeypatch.setattr(suite, "_pytest", run)
    assert suite.main(["-x"]) == code
    assert ran == [
        ("side by side", ["-m", "not alone"], "-x"),
        ("alone", ["-m", "alone"], "-x"),
    ]


def test_long_folders_start_first_and_take_turns() -> None:
    """Modules of one folder wait for the same images: they do not all start at once."""
    names = ("api/a", "clients/a", "clients/b", "hostile/a", "http/a")
    modules = [Path("tests") / name for name in names]
    places = _places(modules)
    ordered = [
        path.relative_to("tests").as_posix()
        for path in sorted(modules, key=lambda path: places[path])
    ]
    assert ordered == ["clients/a", "hostile/a", "clients/b", "api/a", "http/a"]


def test_long_folders_are_there() -> None:
    """No name of a folder is left in the list after the folder is gone."""
    assert all(Path(__file__).parents[1].joinpath(folder).is_dir() for folder in LONG)
