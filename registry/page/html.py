"""Renders pages that need no script: the page before its scripts run, the login, and reports.

Everything that comes from outside is escaped where it enters a page (`_text`), and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mayfly.registry.durations import readable
from mayfly.registry.page.files import text as file_text
from mayfly.registry.page.view import LETTERS, Run, Served, View
from mayfly.registry.text import line
from mayfly.storage.text import counted, counted_of, format_size

_WORDS = {letter: state for state, letter in LETTERS.items()}

_ORDER = "pbscuifma"
"""Letters in the order of the bar and of the legend: states of images that a node has come
first."""

_MAX_TABLE = 20_000
"""Cells of a table of nodes and images; larger ones have a row of counts for each node."""

_BASE = "mayfly/v1/"
"""Relative, so that a prefix of ``--external-url`` stays."""

REFRESH_SECONDS = 10
"""Between two loads of the page where scripts are off."""


class Matrix(NamedTuple):
    """Nodes and images with the state of each pair.

    Attributes:
        images: names, in the order of the letters.
        nodes: node → a letter for each image.
        accepted: letters by which a node counts as having an image.
    """

    images: Sequence[str]
    nodes: Mapping[str, str]
    accepted: frozenset[str]


class Section(NamedTuple):
    """A list under a heading; left out if it is empty."""

    title: str
    entries: Sequence[str]


class ReportPage(NamedTuple):
    """The content of a report, as texts for people.

    Attributes:
        headline: the result in one sentence.
        ended: why the server ended.
        complete: whether every node has every image; None if that was not asked for.
        facts: names and values.
        sections: problems first.
        matrix: None without coverage.
        images: of each image its name and the nodes that pulled it.
    """

    headline: str
    ended: str
    complete: bool | None
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    matrix: Matrix | None
    images: Sequence[tuple[str, str]]


def accepted_letters(weakest: str) -> frozenset[str]:
    """Return the letters of the states that are at least as good as one (``--accept``)."""
    ranked = ("claimed", "served", "proven")
    return frozenset(LETTERS[one] for one in ranked[ranked.index(weakest) :]) | {"b"}


def login_page(message: str) -> str:
    """Return the page with a login.

    Args:
        message: why a login is needed, or failed; "" for none.
    """
    said = f'<p class="notice" role="alert">{_text(message)}</p>' if message else ""
    body = f"""
<main class="login">
<form class="card" method="post" action="{_BASE}session">
<p class="brand">{_icon()}Mayfly</p>
<h1>Log in to see the rollout</h1>
{said}
<label for="username">Name</label>
<input id="username" name="username" autocomplete="username" autocapitalize="none"
 spellcheck="false" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button class="primary">Log in</button>
<p class="hint">With a user of this registry that has a role on every repository. Of the users that
<code>--auth auto</code> makes, that is <code>admin</code>.</p>
</form>
</main>"""
    return _document("Log in to Mayfly", body, head=_linked())


def rollout_page(view: View, user: str, *, may_stop: bool) -> str:
    """Return the page of a run: complete without scripts, and brought to life by them.

    Args:
        view: the state.
        user: that looks; "" without a login.
        may_stop: whether the user may end the server.
    """
    run = view.run
    matrix = Matrix(
        [image["name"] for image in view.served["images"]],
        {name: node.states for name, node in view.nodes.items()},
        accepted_letters(run["accept"]),
    )
    session = ""
    if user:
        session = (
            f'<span class="user">{_text(line(user))}</span>'
            f'<form method="post" action="{_BASE}logout"><button class="quiet">Log out</button>'
            "</form>"
        )
    stop = _stop_form() if may_stop else ""
    body = f"""
<a class="skip" href="#content">Skip to the nodes</a>
<header class="top">
<p class="brand">{_icon()}Mayfly</p>
<p class="where">{_text(run["url"] or "")}</p>
<p id="connection" class="connection" role="status"></p>
<div class="session">{session}{stop}</div>
</header>
<main id="content" tabindex="-1" data-base="{_BASE}">
<noscript><div class="plain">
{_summary(run, matrix)}
{_problems(view)}
{_matrix_table(matrix)}
{_served_table(view.served)}
<p class="hint">This page shows the state of {_time(time.time())} and loads itself again every
{REFRESH_SECONDS} seconds. With scripts it is live.</p>
</div></noscript>
</main>
<footer class="bottom"><p>Mayfly {_text(run["version"])}, running since {_time(run["started"])}</p>
</footer>"""
    head = (
        f'{_linked()}<script type="module" src="{_BASE}page/page.js"></script>'
        f'<noscript><meta http-equiv="refresh" content="{REFRESH_SECONDS}"></noscript>'
    )
    return _document("Rollout · Mayfly", body, head=head)


def stopping_page() -> str:
    """Return the answer to the form that stops the registry, which may be gone a moment later."""
    body = f"""
<main class="login">
<section class="card">
<p class="brand">{_icon()}Mayfly</p>
<h1>The registry is stopping</h1>
<p>Pulls under way may finish, new ones are refused. Until then <a href="../../">the page</a> shows
the rollout.</p>
</section>
</main>"""
    # Relative to the URL of the form.
    return _document("The registry is stopping · Mayfly", body, head=_linked("page/"))


def report_page(report: ReportPage) -> str:
    """Return a report as one document that needs nothing else: no server, no script, no file."""
    style = file_text("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style>'
    outcome = {True: " done", False: " short", None: ""}[report.complete]
    sections = "".join(map(_section, report.sections))
    matrix = _matrix_table(report.matrix) if report.matrix is not None else ""
    body = f"""
<header class="top"><p class="brand">{_icon()}Mayfly</p><p class="where">Report</p></header>
<main class="report">
<section class="card summary{outcome}">
<h1>{_text(report.headline)}</h1>
<p class="lead">{_text(report.ended)}</p>
{_bar(report.matrix) if report.matrix is not None else ""}
{_facts(report.facts)}
</section>
{sections}
{matrix}
{_pulled_table(report.images)}
</main>"""
    return _document("Report · Mayfly", body, head=head)


def _document(title: str, body: str, *, head: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n{head}\n</head>\n<body>{body}\n</body>\n</html>\n"
    )


def _linked(files: str = f"{_BASE}page/") -> str:
    return (
        f'<link rel="icon" href="{files}icon.svg" type="image/svg+xml">'
        f'<link rel="stylesheet" href="{files}page.css">'
    )


def _icon() -> str:
    return (
        '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false">'
        '<path d="M16 14C9 2 3 3 4 8s6 8 12 8zM16 14C23 2 29 3 28 8s-6 8-12 8zM15 17c-7 0-10 3-9 6'
        's7 0 9-5zM17 18c2 5 8 8 9 5s-2-6-9-6z"/><path d="M16 10v19"/></svg>'
    )


def _stop_form() -> str:
    return f"""
<details class="stop"><summary>Stop…</summary>
<form method="post" action="{_BASE}stop" class="card">
<p><strong>Stop this registry?</strong> Pulls under way may finish, new ones are refused, and the
process ends. It cannot be started again from here.</p>
<button class="danger">Stop the registry</button>
</form></details>"""


def _summary(run: Run, matrix: Matrix) -> str:
    facts = [("State", run["state"] if run["ending"] is None else f"draining: {run['ending']}")]
    facts += [("Ends", _ends(run))]
    facts += [("Sent", format_size(run["bytes_out"])), ("Received", format_size(run["bytes_in"]))]
    facts += [("Transfers under way", str(run["transfers"]))]
    return f"""<section class="card summary">
<h1>{_text(headline(run))}</h1>
{_bar(matrix)}
{_facts(facts)}
</section>"""


def headline(run: Run) -> str:
    """Return the progress of a run in one sentence."""
    if run["wanted"] is None:
        return "Serving images"
    have = "has" if run["covered"] == 1 else "have"
    return f"{counted_of(run['covered'], run['wanted'], 'node')} {have} every image"


def _ends(run: Run) -> str:
    now = time.time()
    shown = [
        one["text"]
        if one["at"] is None
        else f"{one['text']} (in {readable(max(one['at'] - now, 0))})"
        for one in run["ends"]
    ]
    return ", or ".join(shown) or "when it is stopped"


def _problems(view: View) -> str:
    run, images = view.run, view.served["images"]
    failed = [
        f"{name}: {images[one.image]['name']}: {one.why}"
        for name, node in view.nodes.items()
        for one in node.failed
    ]
    absent = [image["name"] for image in images if image["digest"] is None]
    refused = [
        f"{one['user'] or 'no name'} at {one['address']}: {counted(one['requests'], 'request')}"
        for one in run["denied"]
    ]
    sections = (
        Section("Failed", failed),
        Section("Not in the registry", absent),
        Section("Corrupt", run["corrupt"]),
        Section("Warnings", run["warnings"]),
        Section("Refused", refused),
    )
    return "".join(map(_section, sections))


_MOST_ENTRIES = 200


def _section(section: Section) -> str:
    if not section.entries:
        return ""
    items = "".join(f"<li>{_text(entry)}</li>" for entry in section.entries[:_MOST_ENTRIES])
    left = len(section.entries) - _MOST_ENTRIES
    more = f'<p class="hint">and {left} more</p>' if left > 0 else ""
    return (
        f'<section class="card list"><h2>{_text(section.title)} '
        f'<span class="count">{len(section.entries)}</span></h2><ul>{items}</ul>{more}</section>'
    )


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{_text(a)}</dt><dd>{_text(b)}</dd></div>" for a, b in facts)
    return f'<dl class="facts">{rows}</dl>'


def _bar(matrix: Matrix) -> str:
    """The states of all pairs as one bar, with a legend that has their numbers."""
    counts: Counter[str] = Counter()
    for states in matrix.nodes.values():
        counts.update(states)
    total = sum(counts.values())
    if not total:
        return ""
    parts, legend, at = "", "", 0.0
    for letter in _ORDER:
        if counts[letter]:
            width = 1000 * counts[letter] / total
            parts += f'<rect class="fill-{letter}" x="{at:.2f}" width="{width:.2f}" height="12"/>'
            at += width
            legend += (
                f'<li><span class="cell s-{letter}"></span>{_text(_WORDS[letter])} '
                f"<strong>{counts[letter]}</strong></li>"
            )
    shown = ", ".join(f"{counts[one]} {_WORDS[one]}" for one in _ORDER if counts[one])
    return (
        f'<svg class="bar" viewBox="0 0 1000 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(shown)}">{parts}</svg><ul class="legend">{legend}</ul>'
    )


def _matrix_table(matrix: Matrix) -> str:
    if not matrix.nodes or not matrix.images:
        return '<section class="card"><h2>Nodes</h2><p>No node has asked yet.</p></section>'
    if len(matrix.nodes) * len(matrix.images) > _MAX_TABLE:
        return _count_table(matrix)
    heads = "".join(f'<th scope="col"><span>{_text(image)}</span></th>' for image in matrix.images)
    cells = {
        letter: f'<td><span class="cell s-{letter}"></span><span class="word">{word}</span></td>'
        for letter, word in _WORDS.items()
    }
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="number">{_has(matrix, states)}</td>'
        f"{''.join(map(cells.__getitem__, states))}</tr>"
        for name, states in matrix.nodes.items()
    )
    wide = " wide" if len(matrix.images) > 6 else ""
    return f"""<section class="card"><h2>Nodes and images</h2>
<div class="scroll" role="region" aria-label="Nodes and images" tabindex="0">
<table class="matrix{wide}"><thead><tr><th scope="col">Node</th><th scope="col">Images</th>{heads}
</tr></thead><tbody>{rows}</tbody></table></div></section>"""


def _has(matrix: Matrix, states: str) -> str:
    has = sum(map(states.count, matrix.accepted))
    return f"{has} of {len(states)}"


def _count_table(matrix: Matrix) -> str:
    rows = ""
    for name, states in matrix.nodes.items():
        counts = Counter(states)
        others = ", ".join(
            f"{counts[letter]} {_WORDS[letter]}" for letter in _ORDER if counts[letter]
        )
        rows += (
            f'<tr><th scope="row">{_text(name)}</th><td class="number">{_has(matrix, states)}</td>'
            f"<td>{others}</td></tr>"
        )
    return f"""<section class="card"><h2>Nodes</h2>
<table class="counts"><thead><tr><th scope="col">Node</th><th scope="col">Images</th>
<th scope="col">States</th></tr></thead><tbody>{rows}</tbody></table></section>"""


def _served_table(served: Served) -> str:
    if not served["images"]:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(image["name"])}</th><td class="number">'
        f"{_size(image['size'])}</td></tr>"
        for image in served["images"]
    )
    stored = format_size(sum(size for _, size in served["layers"]))
    sources = ", ".join(map(_text, served["sources"]))
    source = f" From {sources}." if sources else ""
    return f"""<section class="card"><h2>Images <span class="count">{len(served["images"])}</span>
</h2><p class="hint">{stored} with shared layers once.{source}</p>
<table class="counts"><thead><tr><th scope="col">Image</th><th scope="col">Size</th></tr></thead>
<tbody>{rows}</tbody></table></section>"""


def _pulled_table(images: Sequence[tuple[str, str]]) -> str:
    if not images:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(by)}</td></tr>' for name, by in images
    )
    return f"""<section class="card"><h2>Images pulled</h2>
<table class="counts"><thead><tr><th scope="col">Image</th><th scope="col">By</th></tr></thead>
<tbody>{rows}</tbody></table></section>"""


def _size(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)


def _time(unix: float) -> str:
    moment = time.gmtime(unix)
    machine, shown = (
        time.strftime(pattern, moment)
        for pattern in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S UTC")
    )
    return f'<time datetime="{machine}">{shown}</time>'


def _text(text: object) -> str:
    """Return a text as it stands in HTML, in an element or in an attribute in double quotes."""
    return html.escape(str(text), quote=True)
