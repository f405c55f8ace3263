"""The example in CONTRIBUTING.md fits the code as it is."""

from __future__ import annotations

import re

from tests.support.process import REPO


def test_example_of_an_endpoint_applies() -> None:
    """The lines around each change of the diff are lines of its file, in their order.

    What it adds is not there: the example is an example.
    """
    (diff,) = re.findall(r"```diff\n(.*?)```", (REPO / "CONTRIBUTING.md").read_text(), re.DOTALL)
    files = re.split(r"^--- a/.*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)[1:]
    assert len(files) == 2 * 4
    for name, changes in zip(files[::2], files[1::2], strict=True):
        text = (REPO / name).read_text()
        for hunk in changes.split("@@\n")[1:]:
            lines = hunk.splitlines()
            context = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
            assert context in text, f"{name}: {context}"
            added = "".join(f"{line[1:]}\n" for line in lines if line[:1] == "+")
            assert added not in text, f"{name}: {added}"
