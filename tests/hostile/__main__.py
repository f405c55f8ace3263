"""Render the figures of the last long run into docs/reliability.md.

python -m tests.hostile
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.hostile.harness import results
from tests.support.process import REPO

BEGIN = "<!-- hostile: made by `make soak` and `python -m tests.hostile` -->"
END = "<!-- /hostile -->"
SELF_TEST = "none"
"""The name of attacks by which the harness tests itself."""

PAGE = REPO / "docs" / "reliability.md"


def after(row: dict[str, Any]) -> str:
    """What an attack does now, in words."""
    parts = []
    if row["probes"] is not None:
        parts.append(f"longest probe {row['longest_ms']:.0f} ms of {row['probes']}")
    parts.append(f"{max(row['growth_mib'], 0):.0f} MiB above calm")
    parts += [row["note"]] if row["note"] else []
    return ", ".join(parts)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in the order of their tests."""
    lines = ["| attack | before | after |", "|---|---|---|"]
    for _, row in sorted(rows.items()):
        if row["name"] == SELF_TEST:
            continue
        cells = (row["name"], row["before"], after(row))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def place(page: str, rendered: str) -> str:
    """A page with the table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{rendered}\n\n{END}{behind}"


def main(path: Path) -> None:
    """Put the figures of a file into the page."""
    if not path.exists():
        raise SystemExit(f"{path}: no figures; run MAYFLY_SOAK=1 pytest tests/hostile first")
    PAGE.write_text(place(PAGE.read_text(), table(json.loads(path.read_text()))))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else results())
