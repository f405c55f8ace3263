"""The Helm chart of deploy/helm, rendered."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.process import REPO, find_program, need

CHART = REPO / "deploy/helm/mayfly"

Object = dict[str, Any]


def template(values: Path) -> str:
    """What ``helm template`` prints for a release called mayfly.

    Raises:
        AssertionError: helm refuses; with what it said.
    """
    need("helm")
    argv = [find_program("helm") or "", "template", "mayfly", str(CHART), "--values", str(values)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(directory: Path, values: Object) -> dict[str, Object]:
    """The objects of a release with these values, by kind and name.

    Args:
        directory: ``rendered.yaml`` in it then has the text.
    """
    file = directory / "values.json"
    file.write_text(json.dumps(values))
    text = template(file)
    (directory / "rendered.yaml").write_text(text)
    return {
        f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text) if one
    }
