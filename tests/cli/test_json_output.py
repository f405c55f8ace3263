"""Every command's ``--json`` output, and every JSON file, against docs/commands.schema.json."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from mayfly.auth.errors import CredentialsInvalid, LoginsBusy, TokenInvalid, TokenReason
from mayfly.auth.roles import Role
from mayfly.registry.cli import cli
from mayfly.registry.cli.help import COMMAND_GROUPS
from mayfly.registry.cluster.safety import Gap, Trouble
from mayfly.registry.cluster.workloads import Role as PartRole
from mayfly.registry.cluster.workloads import When
from mayfly.registry.nodes.causes import Cause
from mayfly.registry.nodes.credential_provider import API
from mayfly.registry.nodes.distributions import DISTRIBUTIONS
from mayfly.registry.nodes.journal import ActionCode
from mayfly.registry.nodes.plan import NoteCode
from mayfly.registry.settings.settings import SETTINGS
from mayfly.storage.upkeep.collect import UnreadCode
from mayfly.storage.upkeep.verify import Fault
from tests.bundle.builders import Layout, docker_archive, write
from tests.support.client import basic
from tests.support.commands import command_line, environment, mayfly, mayfly_here, printed_here
from tests.support.images import digest_of
from tests.support.node_stubs import put_stubs
from tests.support.packing import stand_in
from tests.support.process import PATIENCE, REPO, Mayfly

SCHEMA = json.loads((REPO / "docs/commands.schema.json").read_text())
PAGE = (REPO / "docs/commands.md").read_text()
IMAGE = "quay.io/team/app:1"


def check(name: str, document: Any) -> None:
    """See that a document is what the schema has under a name."""
    Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(document)


def output(*words: object, code: int = 0) -> Any:
    """The one document that a command prints."""
    done = mayfly_here(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Mayfly]:
    """One with users, coverage asked for, and a log as JSON."""
    (tmp_path / "images").write_text("team/app:1\n")
    options = ["--auth", "auto", "--log-format", "json", "--nodes", "1"]
    options += ["--until-pulled", str(tmp_path / "images")]
    options += ["--audit", str(tmp_path / "audit")]
    running = Mayfly(tmp_path / "root", tmp_path / "state", *options, env=environment())
    yield running
    if running.running:
        running.kill()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An archive with one image."""
    layout = Layout()
    layout.name(layout.image(b"layer"), IMAGE)
    return layout.write_tar(tmp_path / "bundle.tar")


def test_schema() -> None:
    """The schema is one, and refuses what it does not know."""
    Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(Exception, match="Additional properties"):
        check("rm", {"deleted": [], "sentence": "all is well"})


DATA = frozenset({
    "args", "artifact_type", "attests", "commands", "content", "created_by", "fromRepository",
    "host", "image", "mediaType", "media_type", "name", "platform", "pushed_by", "reason_detail",
    "run", "script", "traceback", "user", "useragent",
})  # fmt: skip
"""Fields with text that is not Mayfly's own: of images, files and requests, or shell commands."""

PATHS = frozenset({
    "bundle", "ca", "credentials", "directory", "file", "files", "path", "report", "state_dir",
    "target",
})  # fmt: skip


def _texts(
    schema: dict[str, Any], name: str = "", beside: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield each text in a schema that is no code, with its property's name and its neighbours.

    The kind is ``name``, ``path``, ``data``, or ``sentence`` for any text.
    """
    kind = schema.get("$ref", "").removeprefix("#/$defs/")
    if kind in ("name", "path", "data"):
        yield kind, name, beside
    types = schema.get("type", ())
    is_text = "string" in ([types] if isinstance(types, str) else types)
    if is_text and not schema.keys() & {"enum", "const", "pattern"}:
        yield "sentence", name, beside
    properties = schema.get("properties", {})
    for key, value in properties.items():
        yield from _texts(value, key, frozenset(properties))
    below = [schema.get("items"), schema.get("additionalProperties")]
    below += [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]
    for one in below:
        if isinstance(one, dict):
            yield from _texts(one, name, beside)


def test_each_text_is_data_or_stands_beside_a_code() -> None:
    """No document has a sentence that a program would have to read.

    A text is one of the listed codes, a name without white space, a path, a text out of other
    hands, or a ``message`` or ``detail`` beside the code that says the same.
    """
    kinds = {"name", "path", "data"}
    found = [
        (document, *text)
        for document, schema in SCHEMA["$defs"].items()
        if document not in kinds
        for text in _texts(schema)
    ]
    assert {kind for _, kind, _, _ in found} == {"sentence", *kinds}
    for document, kind, name, beside in found:
        match kind:
            case "sentence":
                assert name in ("message", "detail"), document
                assert beside & {"code", "event", "reason"}, (document, name)
            case "path":
                assert name in PATHS, (document, name)
            case "data":
                assert name in DATA, (document, name)


def _codes(document: str, *path: str | int) -> set[str]:
    schema = SCHEMA["$defs"][document]
    for step in path:
        schema = schema[step]
    return set(schema["enum"])


def test_codes_are_those_of_the_code() -> None:
    """Each list of codes in the schema is the one that the program has."""
    files = ("properties", "files", "items", "properties")
    assert _codes("node-config", *files, "code") == set(ActionCode)
    assert _codes("note", "properties", "code") == set(NoteCode)
    assert _codes("cause") == set(Cause)
    assert _codes("safety-finding", "properties", "code") == set(Trouble)
    assert _codes("safety-finding", "properties", "role", "anyOf", 0) == set(PartRole)
    assert _codes("safety-finding", "properties", "when", "anyOf", 0) == set(When)
    assert _codes("safety-gap", "properties", "code") == set(Gap)
    assert _codes("gc", "properties", "unread", "items", "properties", "code") == set(UnreadCode)
    findings = ("properties", "findings", "items", "properties", "code")
    assert _codes("verify", *findings) == set(Fault)
    assert _codes("grant-record", "properties", "role") == set(Role)
    refused = {CredentialsInvalid().code, LoginsBusy().code, "denied"}
    refused |= {TokenInvalid(reason).code for reason in get_args(TokenReason)}
    assert _codes("audit", "properties", "reason", "anyOf", 0) == refused
    text = "".join(path.read_text() for path in (REPO / "registry/cli").glob("*.py"))
    labels = re.findall(r'\breporting\(\s*"([^"]*)"', text)
    assert _codes("progress", "properties", "what") == set(labels)
    assert len(re.findall(r"\breporting\(", text)) == len(labels) + 1


def test_commands_of_a_server(server: Mayfly, tmp_path: Path) -> None:
    """status, wait, stop, credentials; ready.json, report, audit, and every line of the log."""
    state = ["--state-dir", server.state_dir]
    check("ready", json.loads((server.state_dir / "ready.json").read_text()))
    check("status", output("status", *state))
    check("wait", output("wait", "--ready", *state))
    check("wait", output("wait", "--covered", "--timeout", "0s", *state, code=3))
    judged = ("--safe-to-stop", "--no-kubernetes", "--timeout", "0s")
    check("wait", output("wait", *judged, *state, code=3))
    check("credentials", output("credentials", *state))
    check("node-config show", output("node-config", "show", *state))
    check("node script", output("node", "script", "--node", "n1", *state))
    check("node script", output("node", "script", "--node", "n1", "--url", *state))
    check("node script", output("node", "script", "--revert"))
    env = put_stubs(tmp_path)
    _check_prefetch(server, tmp_path, env)
    printed = '{"node": "n1", "report": {"version": 1, "nonce": "", "images": []}}\n'
    (tmp_path / "printed").write_text(printed)
    proof = ("node", "proof", "--node", "n1", tmp_path / "printed", *state)
    check("node proof", output(*proof))
    words = ("--nodes", tmp_path / "nodes", "--via", "ssh", "--root", tmp_path / "root")
    done = mayfly_here("check", *state, *words, "--json", env=env)
    assert done.returncode == 3, done.stderr
    check("check", json.loads(done.stdout))
    url = json.loads((server.state_dir / "ready.json").read_text())["url"]
    for user in ("made up", "admin"):
        request = urllib.request.Request(f"{url}/v2/team/app/tags/list")
        request.add_header(*basic(user, "wrong"))
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30)
    check("stop", output("stop", *state, code=3))
    assert server.popen.wait(PATIENCE) == 3
    check("report", json.loads((server.state_dir / "report.json").read_text()))
    lines = [json.loads(line) for line in server.output().splitlines()]
    for line in lines:
        check("log", line)
    events = [line["event"] for line in lines]
    assert {"ready", "users", "stopping", "report"} <= set(events)
    assert events[-1] == "report"
    refused = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    for line in refused:
        check("audit", line)
    reasons = {line["reason"] for line in refused if line["outcome"] == "denied"}
    assert reasons == {"credentials_invalid"}


def _check_prefetch(server: Mayfly, tmp_path: Path, env: dict[str, str]) -> None:
    """Every event of prefetch, with a program in place of ssh."""
    (tmp_path / "nodes").write_text("good\nfull\npassing\nnopath\n")
    words = ("--state-dir", server.state_dir, "--nodes", tmp_path / "nodes", "--attempts", "2")
    done = mayfly_here("prefetch", *words, "--json", env=env)
    assert done.returncode == 3, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        check("prefetch", line)
    assert {line["event"] for line in lines} == {"started", "image", "paused", "ended", "done"}


def test_commands_of_a_store(tmp_path: Path, bundle: Path) -> None:
    """import, ls, inspect, du, verify, gc, export, rm."""
    root = ["--root", tmp_path / "store"]
    done = mayfly_here("import", bundle, *root, "--json")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        check("import", json.loads(line))
    check("ls", output("ls", *root))
    check("inspect", output("inspect", "team/app:1", *root))
    check("inspect", output("inspect", "team/app:1", bundle))
    check("diff", output("diff", tmp_path / "store", bundle))
    check("du", output("du", *root))
    check("inventory", output("inventory", *root))
    check("verify", output("verify", *root))
    check("verify", output("verify", bundle))
    check("du", output("du", bundle))
    check("gc", output("gc", *root))
    check("gc", output("gc", "--high", "0.1", "--dry-run", *root, code=3))
    done = mayfly_here("export", "--all", "-o", tmp_path / "out.tar", *root, "--json")
    for line in done.stdout.splitlines():
        check("export", json.loads(line))
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "exported"
    archive = write(tmp_path / "archive.tar", docker_archive((["team/other:1"], [b""])))
    create = ["bundle", "create", "localhost/team/app:1", "--from", tmp_path / "store", "--json"]
    create += ["--from", archive]
    for option, event in (("--dry-run", "planned"), ("--jobs=2", "created")):
        done = mayfly_here(*create, option, "-o", tmp_path / "new.tar")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            check("bundle create", line)
        assert lines[-1]["event"] == event
    nowhere = ("127.0.0.1:1/team/app:1", "-o", tmp_path / "none.tar", "--json")
    done = mayfly_here("bundle", "create", *nowhere)
    assert done.returncode == 3, done.stderr
    for line in done.stdout.splitlines():
        check("bundle create", json.loads(line))
    assert json.loads(done.stdout.splitlines()[-1])["code"] == "unavailable"
    copy = ["copy", "localhost/team/app:1", "--from", tmp_path / "store", "--json"]
    for words, event in (("--dry-run", "planned"), ("--jobs=2", "copied")):
        done = mayfly_here(*copy, words, tmp_path / "other")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            check("copy", line)
        assert lines[-1]["event"] == event
    done = mayfly_here("copy", "localhost/none:1", tmp_path / "store", tmp_path / "third", "--json")
    assert done.returncode == 3, done.stderr
    for line in done.stdout.splitlines():
        check("copy", json.loads(line))
    (tmp_path / "sync.yaml").write_text("127.0.0.1:1: {images: {tool: ['1']}, tls-verify: false}\n")
    done = mayfly_here("sync", tmp_path / "sync.yaml", tmp_path / "third", "--json")
    assert done.returncode == 3, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events != []
    for line in events:
        check("sync", line)
    check("rm", output("rm", "team/app:1", *root))
    spared = output("gc", "--untagged", "--grace", "1h", *root)
    check("gc", spared)


def test_pack(tmp_path: Path, bundle: Path) -> None:
    """A bundle that is whole, and one that needs another."""
    layout = Layout()
    layout.name(layout.image(b"layer"), IMAGE)
    del layout.files[f"blobs/{digest_of(b'layer').replace(':', '/')}"]
    for one, notices in ((bundle, 0), (layout.write_tar(tmp_path / "delta.tar"), 1)):
        words = ("-o", tmp_path / "out.run", "--runtime", stand_in(tmp_path / "one-file"))
        done = mayfly_here("pack", one, *words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        for event in events:
            check("pack", event)
        assert [event["event"] for event in events].count("notice") == notices
        assert events[-1]["machine"] == "x86_64"


def test_commands_of_a_damaged_store(tmp_path: Path, bundle: Path) -> None:
    """ls, du, verify, gc: each names the damage by a code."""
    root = ["--root", tmp_path / "store"]
    assert mayfly_here("import", bundle, *root).returncode == 0
    (manifest,) = output("ls", *root)["images"]
    algorithm, _, text = manifest["digest"].partition(":")
    blobs = tmp_path / "store/docker/registry/v2/blobs"
    (blobs / algorithm / text[:2] / text / "data").write_bytes(b"{}")
    damaged = output("gc", *root, code=4)
    check("gc", damaged)
    (unread,) = damaged["unread"]
    assert (unread["code"], unread["detail"]) == ("manifest_missing", "")
    check("verify", output("verify", *root, code=4))
    for command in ("ls", "du"):
        check(command, output(command, *root, code=4))


def test_credential_provider(tmp_path: Path) -> None:
    """kubelet's configuration, and the answer to its request."""
    check("credential-provider", output("credential-provider", "--config", "--host", "h:1"))
    document = {"kind": "CredentialProviderRequest", "apiVersion": API, "image": "h:1/app"}
    none = ("credential-provider", "--file", tmp_path / "none")
    check("credential-provider", json.loads(printed_here(*none, stdin=json.dumps(document))))


def test_audit_verify(tmp_path: Path) -> None:
    """Of a file that is whole, and of one that is not."""
    file = tmp_path / "audit.jsonl"
    file.touch()
    check("audit verify", output("audit", "verify", file))
    file.write_text("x\n{}\n")
    check("audit verify", output("audit", "verify", file, code=3))
    check("audit verify", output("audit", "verify", file, "--head", "0" * 64, code=3))


def test_import_of_an_incomplete_bundle(tmp_path: Path) -> None:
    """The content that is missing is data, and nothing is printed that is not JSON."""
    layout = Layout()
    layout.name(layout.image(b"layer"), IMAGE)
    lost = digest_of(b"layer")
    del layout.files[f"blobs/{lost.replace(':', '/')}"]
    bundle = layout.write_tar(tmp_path / "bundle.tar")
    done = mayfly_here("import", bundle, "--root", tmp_path / "store", "--json")
    assert (done.returncode, done.stderr) == (5, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    for event in events:
        check("import", event)
    assert events[-1] == {
        "event": "incomplete",
        "missing": [{"repository": "team/app", "digest": lost}],
    }


def test_commands_of_users(tmp_path: Path) -> None:
    """user and grant, each of their commands."""
    auth = ["--auth", tmp_path]
    (tmp_path / "password").write_text("correct horse battery staple\n")
    with (tmp_path / "password").open() as password:
        done = subprocess.run(
            command_line("user", "add", "alice", "--password-stdin", *auth, "--json"),
            stdin=password,
            capture_output=True,
            env=environment(),
            cwd=REPO,
            timeout=60,
        )
    check("user", json.loads(done.stdout))
    check("user ls", output("user", "ls", *auth))
    to = ["--user", "alice", "--repositories", "team/**"]
    check("grant", output("grant", "add", *to, "--role", "guest", *auth))
    check("grant ls", output("grant", "list", *auth))
    check("grant", output("grant", "rm", *to, *auth))
    check("user", output("user", "remove", "alice", *auth))


def test_commands_of_a_node(tmp_path: Path) -> None:
    """node-config, each of its commands."""
    registry = ["--registry", "http://10.0.0.5:5000", "--mirror", "quay.io"]
    for name in DISTRIBUTIONS:
        shown = ["--for", name, "--registry", "https://10.0.0.5:5000", "--mirror", "quay.io"]
        check("node-config show", output("node-config", "show", *shown))
    codes = set()
    for runtime in ("podman", "containerd", "docker"):
        node = ["--runtime", runtime, "--root-dir", tmp_path]
        check("node-config show", output("node-config", "show", *node, *registry))
        for words in (["apply", *node, *registry], ["apply", *node, *registry], ["revert", *node]):
            done = output("node-config", *words)
            check("node-config", done)
            codes |= {file["code"] for file in done["files"]}
    assert codes == {"new", "unchanged", "put_back"}


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


def test_every_command_has_json_and_whole_help() -> None:
    """Each takes --json and says what each of its options does; no summary is cut."""
    for path in _commands(cli):
        command: Any = cli
        for name in path:
            command = command.get_command(click.Context(command), name)
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert "--json" in {name for option in options for name in option.opts}, path
        assert all(option.help for option in options), path
    usage, *shown = mayfly("--help").stdout.splitlines()
    assert usage.startswith("Usage: ")
    assert not [line for line in shown if "..." in line or "…" in line]


def test_every_command_has_a_definition() -> None:
    """Its own, or one of its group's whose description names it; `serve` and `run` only log."""
    lacking = []
    for *group, name in _commands(cli):
        own = SCHEMA["$defs"].get(" ".join((*group, name)))
        shared = SCHEMA["$defs"].get(" ".join(group), {})
        if own is None and not re.search(rf"\b{name}\b", shared.get("description", "")):
            lacking.append(" ".join((*group, name)))
    assert lacking == ["serve", "run"], "docs/commands.schema.json lacks these commands"


def test_output_of_every_command_is_checked() -> None:
    """This module runs each and compares its document with its definition."""
    checked = set(re.findall(r'\bcheck\("([^"]+)"', Path(__file__).read_text()))
    # The log is checked as that of `serve`; `run` writes the same.
    names = {" ".join(path) for path in _commands(cli)} - {"serve", "run"}
    shared = {name for name in names if " ".join(name.split()[:-1]) in checked}
    assert sorted(names - shared - checked) == [], "run these here, and check their documents"


def test_help_has_every_command_in_a_group() -> None:
    """A new one gets its place in `COMMAND_GROUPS`."""
    grouped = [name for names in COMMAND_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.list_commands(click.Context(cli)))


def test_help_is_grouped() -> None:
    """serve's options stand under the headings of the settings, each with its default."""
    shown = mayfly("serve", "--help").stdout
    for setting in SETTINGS:
        assert f"\n{setting.group}:\n" in shown
    assert shown.count("[default:") == len(SETTINGS) + 1


def test_defaults_have_one_pair_of_brackets() -> None:
    """click puts texts of ours in brackets of its own, unless they are part of the help."""
    for path in _commands(cli):
        shown = " ".join(CliRunner().invoke(cli, [*path, "--help"]).stdout.split())
        assert shown.startswith(f"Usage: cli {' '.join(path)} "), shown
        assert "[default: (" not in shown, path
        assert "Default: " not in shown, path


def test_completion() -> None:
    """The lines of docs/commands.md work: commands and options are completed."""
    assert "_MAYFLY_COMPLETE=bash_source mayfly" in PAGE
    script = mayfly(env={"_MAYFLY_COMPLETE": "bash_source"})
    assert "complete -o nosort -F _mayfly_completion mayfly" in script.stdout
    words = {"COMP_WORDS": "mayfly serve --st", "COMP_CWORD": "2"}
    done = mayfly(env={"_MAYFLY_COMPLETE": "bash_complete", **words})
    assert "plain,--state-dir" in done.stdout.splitlines()
