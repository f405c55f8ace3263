"""Render commands to paste on a node that has neither Mayfly nor the internet.

Each file is written by a shell function that notes it in the journal's directory first
(`journal.PASTED`), so that the next ``apply`` or ``revert``, of ``node-config`` or of the node's
script, knows it for Mayfly's and takes it back. A file that was there before is kept beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Iterable, Iterator

from mayfly.registry.nodes.journal import BEFORE, JOURNALS, LOGINS, PASTED
from mayfly.registry.nodes.plan import Plan, PlannedFile
from mayfly.registry.nodes.runtimes import (
    BELOW_A_PATH,
    RUNTIMES,
    EmptyNode,
    Runtime,
    make_plan,
    no_path,
)
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.certificate import fingerprint

_END = "MAYFLY"

_SECRET_HINT = "# kubelet logs in with an imagePullSecret: mayfly credentials --format secret"
_LOGIN_HINT = "# name and password: mayfly credentials --node NAME, run where the registry runs"


def node_commands(target: Target, runtimes: Iterable[Runtime] = RUNTIMES) -> str:
    """A text for the terminal: where the registry is, and for each runtime the shell commands.

    They run in any POSIX shell as root, hold the CA in full, and may be run again. A file that
    would have to be merged with the node's is only described. Ends in a newline.
    """
    runtimes = tuple(runtimes)
    lines = [f"# Registry: {target.url}"]
    if target.credential is not None:
        lines.append("unset HISTFILE  # this shell keeps no history: a credential is below")
    if target.ca is not None:
        lines.append(f"# CA SHA-256: {fingerprint(target.ca)}")
    if len(runtimes) > 1:
        lines += [
            "# Paste one of these sections only, that of the program which pulls images on the",
            "# node; --runtime NAME prints it alone.",
        ]
    for runtime in runtimes:
        lines += ["", f"# {runtime}: on the node, as root", *_setup(runtime, target)]
    return "\n".join([*lines, ""])


def _setup(runtime: Runtime, target: Target) -> Iterator[str]:
    """The shell lines that make one runtime trust the registry, and log it in."""
    if target.path and runtime not in BELOW_A_PATH:
        yield f"# {no_path(runtime, target)}"
        return
    if runtime == "containerd":
        plan = make_plan(runtime, target, EmptyNode())
        yield from plan_commands(runtime, plan)
        if target.credential is None:
            yield _SECRET_HINT
        yield from _way_back(runtime, plan)
        return
    # docker and podman keep credentials in files that their own login writes.
    plan = make_plan(
        runtime, dataclasses.replace(target, credential=None, certs_dir=None), EmptyNode()
    )
    yield from plan_commands(runtime, plan)
    journal, registry = f"{JOURNALS}/{runtime}", shlex.quote(target.registry)
    yield f"(umask 077 && mkdir -p {journal} && echo {registry} >>{journal}/{LOGINS})"
    login = f"{runtime} login {target.registry}"
    if target.credential is None:
        yield _LOGIN_HINT
        yield login
    else:
        user = shlex.quote(target.credential.username)
        yield f"{login} --username {user} --password-stdin <<'{_END}'"
        yield target.credential.password
        yield _END
    yield from _way_back(runtime, plan, target.registry)


def _way_back(runtime: Runtime, plan: Plan, login: str | None = None) -> Iterator[str]:
    """Comments that say how to take the commands of a plan back."""
    yield "# To revert this, on the node, as root: the script of mayfly node script --revert, or"
    yield f"# mayfly node-config revert --runtime {runtime}, or these commands:"
    if login is not None:
        yield f"#   {runtime} logout {login}"
    journal = f"{JOURNALS}/{runtime}"
    # A file that refers to a CA is removed before the CA. Where the copy of before is gone, the
    # file is the restored one or, as its digest tells, still Mayfly's: only that one is removed,
    # so all of this may be done again. The originals of the files in journal.json are beside that,
    # and revert needs the list to know such a file for Mayfly's.
    yield f"""\
#   list={journal}/{PASTED}
#   awk '$1 == "F" && !seen[$3]++ {{ file[++n] = $3 }}
#       END {{ while (n) print file[n--] }}' "$list" | while read -r file; do
#           before=$file{BEFORE}; rm -f "${{file%/*}}/.${{file##*/}}.mayfly"
#           if grep -qsF "\\"$file\\"" {journal}/journal.json; then
#               echo "$file stays: for it, mayfly node-config revert --runtime {runtime}" >&2
#           elif [ -e "$before" ] || [ -L "$before" ]; then mv -f "$before" "$file"
#           elif ! grep -qxF "B $before" "$list"; then rm -f "$file"
#           elif [ -f "$file" ] && [ ! -L "$file" ] && sum=$(sha256sum <"$file") &&
#                   grep -qxF "F ${{sum%% *}} $file" "$list"; then
#               echo "$before: this copy is gone, so $file is removed, not restored" >&2
#               rm -f "$file"; fi; done
#   sed -n 's/^B //p' "$list" | while read -r before; do
#       file=${{before%{BEFORE}}}; rm -f "$before" "${{file%/*}}/.${{file##*/}}.mayfly"; done
#   sed -n 's/^D //p' "$list" | sort -r | while read -r made; do
#       [ ! -d "$made" ] || rmdir "$made"; done
#   rm -f {journal}/{LOGINS}; if [ -e {journal}/journal.json ]; then
#       echo "for the rest: mayfly node-config revert --runtime {runtime}" >&2; false
#   else rm -f "$list"; rmdir {journal} {JOURNALS}; fi"""
    for file in plan.files:
        if file.merged:
            yield f"#   and remove the added entries from {file.path}"


def plan_commands(runtime: Runtime, plan: Plan) -> Iterator[str]:
    """The shell lines that put a plan in place, and its notes as comments.

    Args:
        runtime: whose journal takes them back.
        plan: the files.
    """
    if any(not file.merged for file in plan.files):
        yield _function(runtime)
    for file in plan.files:
        yield from _described(file) if file.merged else _written(file)
    yield from plan.activate
    yield from (f"# note: {note}" for note in plan.notes)


def _function(runtime: Runtime) -> str:
    """The shell function that writes a file."""
    # The notes of a file and of the copy of its original come before both, as in the journal. A
    # copy that is noted without its file is of a run that was killed, and may be old.
    return f"""\
mayfly_put() ( # MODE SHA256 FILE: write standard input to FILE, and note that for revert
    journal={JOURNALS}/{runtime} directory=${{3%/*}} above=${{3%/*}} known=no
    list=$journal/{PASTED} before=$3{BEFORE} new=${{3%/*}}/.${{3##*/}}.mayfly
    umask 077
    noted='' line='
'
    for one in "$list" "$journal/journal.json"; do
        [ ! -e "$one" ] || noted=$noted$(cat "$one")$line || exit
    done
    case $noted in *" $3$line"*|*"\\"$3\\""*) known=yes ;; esac
    if [ "$known" = yes ] && [ -f "$3" ]; then
        sum=$(sha256sum <"$3") || exit
        [ ! -f "$before" ] || noted=$noted$(sha256sum <"$before") || exit
        case $noted in
            *"${{sum%% *}}"*) ;;
            *)
                echo "$3: somebody has changed it since: save the edits that you need, remove" \\
                    "it, and paste again; nothing was written there" >&2
                exit 1 ;;
        esac
    fi
    mkdir -p "$journal" || exit
    while [ ! -d "$above" ]; do printf 'D %s\\n' "$above"; above=${{above%/*}}; done >>"$list"
    if [ "$known" = no ]; then
        case $noted in *" $before$line"*) rm -f "$before" || exit ;; esac
        if [ -e "$before" ] || [ -L "$before" ]; then
            echo "$before: not of these commands: move it away, and paste again;" \\
                "nothing was written there" >&2
            exit 1
        fi
        if [ -e "$3" ] || [ -L "$3" ]; then
            {{ printf 'B %s\\n' "$before" >>"$list" && rm -f "$new" && cp -pP "$3" "$new" &&
                mv -f "$new" "$before"; }} || {{ rm -f "$new"; exit 1; }}
        fi
    fi
    {{ printf 'F %s %s\\n' "$2" "$3" >>"$list" && (umask 022 && mkdir -p "$directory") &&
        rm -f "$new" && cat >"$new" && chmod "$1" "$new" && mv -f "$new" "$3"; }} ||
        {{ rm -f "$new"; exit 1; }}
)"""


def _written(file: PlannedFile) -> Iterator[str]:
    digest = hashlib.sha256(file.content).hexdigest()
    yield f"mayfly_put {file.mode:o} {digest} {shlex.quote(file.path)} <<'{_END}'"
    yield from file.content.decode().splitlines()
    yield _END


def _described(file: PlannedFile) -> Iterator[str]:
    yield f"# Add to {file.path}, and keep its other entries:"
    for line in file.content.decode().splitlines():
        yield f"#   {line}"
