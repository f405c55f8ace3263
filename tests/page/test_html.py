"""Pages without scripts: complete, and no text of strangers is more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mayfly.registry.page import files, html
from mayfly.registry.page.html import Matrix, ReportPage, Section
from mayfly.registry.page.view import LETTERS, Failed, NodeView
from mayfly.registry.text import escaped
from tests.hostile.texts import TEXT
from tests.support.process import REPO
from tests.support.views import view

ATTACKS = (
    "<script>alert(1)</script>",
    "</noscript><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "javascript:alert(1)",
    "{{constructor.constructor('alert(1)')()}}",
    "<!--",
    "&lt;script&gt;",
    TEXT,
)


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def rollout(text: str) -> str:
    """A page whose every text is this one."""
    nodes = {text: NodeView("fs", failed=(Failed(0, text),)), "b": NodeView("ms")}
    made = view(
        text,
        text + "2",
        nodes=nodes,
        state=text,
        ending=text,
        url=text,
        version=text,
        ends=[{"text": text, "at": None}],
        corrupt=[text],
        warnings=[text],
        denied=[{"user": text, "address": text, "requests": 1}],
    )
    return html.rollout_page(made, text, may_stop=True)


def report(text: str) -> str:
    """A report whose every text is this one."""
    return html.report_page(
        ReportPage(
            text,
            text,
            False,
            [(text, text)],
            [Section(text, [text])],
            Matrix([text], {text: "f"}, frozenset("s")),
            [(text, text)],
        )
    )


@pytest.mark.parametrize("page", [rollout, report, html.login_page])
def test_texts_of_strangers_stay_texts(page: object) -> None:
    """Whatever a name holds, the page has the same elements and attributes as with a plain one."""
    assert callable(page)
    plain = [(tag, set(attributes)) for tag, attributes in Elements(page("plain")).found]
    for attack in ATTACKS:
        text = escaped(attack)
        elements = Elements(page(text))
        assert [(tag, set(attributes)) for tag, attributes in elements.found] == plain, attack
        assert text in elements.text, attack


@pytest.mark.parametrize("page", [rollout, report, html.login_page])
def test_pages_load_nothing_from_elsewhere(page: object) -> None:
    """No foreign host, no style or script within the page, but a report's own style."""
    assert callable(page)
    for tag, attributes in Elements(page("plain")).found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action"):
            assert not re.match(r"[a-z]*:|//", attributes.get(name) or ""), (tag, attributes)
    if page is report:
        assert {"script", "link", "img"}.isdisjoint(t for t, _ in Elements(report("x")).found)


def test_the_table_has_each_state_as_a_word() -> None:
    """What colours and shapes say is there as text, too."""
    letters = "".join(LETTERS.values())
    names = [f"image:{n}" for n in range(len(letters))]
    page = html.rollout_page(
        view(*names, nodes={"worker-1": NodeView(letters)}), "", may_stop=False
    )
    table = page.partition("<table")[2].partition("</table>")[0]
    assert re.findall('class="word">([^<]+)<', table) == list(LETTERS)
    assert "worker-1" in table


def test_absent_images_are_listed_before_any_node_asks() -> None:
    """An image that the registry lacks is a problem, whether or not a node is known."""
    made = view("team/app:1", "team/web:1", nodes={})
    assert "Not in the registry" not in html.rollout_page(made, "", may_stop=False)
    made.served["images"][1]["digest"] = None
    page = html.rollout_page(made, "", may_stop=False)
    section = page.partition("Not in the registry")[2].partition("</section>")[0]
    assert "team/web:1" in section
    assert "team/app:1" not in section


def test_a_large_table_has_counts() -> None:
    """Past some thousand cells a row has numbers, so that the page stays small."""
    names = [f"image:{n}" for n in range(200)]
    nodes = {f"worker-{n}": NodeView("s" * 199 + "m") for n in range(500)}
    page = html.rollout_page(view(*names, nodes=nodes), "", may_stop=False)
    assert len(page) < 200_000
    assert "199 served, 1 missing" in page


def test_stop_is_shown_to_callers_with_the_right() -> None:
    """The stop is a form of its own behind a confirmation."""
    assert 'action="mayfly/v1/stop"' in html.rollout_page(view(), "admin", may_stop=True)
    assert "mayfly/v1/stop" not in html.rollout_page(view(), "guest", may_stop=False)
    assert "Log out" not in html.rollout_page(view(), "", may_stop=False)


def test_files_are_those_that_are_there() -> None:
    """Each is served with its type, and nothing else is."""
    static = REPO / "registry/page/static"
    assert sorted(files.NAMES) == sorted(path.name for path in static.iterdir())
    for name in files.NAMES:
        found = files.find(name)
        assert found is not None
        assert found.body == (static / name).read_bytes()
    for name in ("", "page.py", "../html.py", "..%2fhtml.py", "page.css/"):
        assert files.find(name) is None


def test_scripts_make_no_markup_of_texts() -> None:
    """They write texts as text nodes; the policy of the page would refuse all else."""
    for name in files.NAMES:
        if name.endswith(".js"):
            text = files.text(name)
            unsafe = r"innerHTML\s*=|insertAdjacentHTML|document\.write|eval\(|new Function|https?://(?!www\.w3)"
            assert re.findall(unsafe, text) == [], name


def test_letters_have_a_shape_and_a_colour() -> None:
    """Each state is in the style and in the scripts."""
    style, words = files.text("page.css"), files.text("format.js")
    for letter in LETTERS.values():
        assert f".s-{letter} {{" in style
        assert f".fill-{letter} {{" in style
        assert len(re.findall(rf"^ +--state-{letter}: ", style, re.M)) == 2, "light and dark"
    assert "".join(re.findall(r"^  ([a-z]): ", words, re.M)) == html._ORDER
    for name in files.NAMES:
        for variable in re.findall(r"var\((--[a-z0-9-]+)", files.text(name)):
            assert f"  {variable}: " in style, name


def _sources() -> dict[str, str]:
    """What makes elements: the module of pages and the scripts, by name."""
    scripts = {name: files.text(name) for name in files.NAMES if name.endswith(".js")}
    return {"html.py": (REPO / "registry/page/html.py").read_text()} | scripts


def test_every_rule_of_the_style_is_used() -> None:
    """No page and no script is without the classes, elements and variables that rules name."""
    style = re.sub(r"/\*.*?\*/", "", files.text("page.css"), flags=re.S)
    source = "\n".join(_sources().values())
    selectors = re.sub(r"\{[^{}]*\}|@[^{]*", " ", style)
    for name in set(re.findall(r"\.([a-z][\w-]*)", selectors)):
        made_of = re.escape(name.rpartition("-")[0]) + r"-\$?\{"  # such as `s-${letter}`
        assert re.search(rf"(?<![\w-])({re.escape(name)}(?![\w-])|{made_of})", source), name
    for name in set(re.findall(r"(?<![\w.:#\[-])([a-z][a-z0-9]*)(?![\w(-])", selectors)):
        assert f"<{name}" in source or f'"{name}"' in source, name
    for name in set(re.findall(r"--([\w-]+):", style)):
        assert f"var(--{name})" in style or f'"{name}"' in source or name.startswith("state-"), name


def test_every_class_has_a_rule() -> None:
    """Of those that pages and scripts write out."""
    style = files.text("page.css")
    for where, source in _sources().items():
        for written in re.findall(r"""class(?:: |=)"([^"{$]*)[" ]""", source):
            for name in written.split():
                assert re.search(rf"\.{name}(?![\w-])", style), f"{where}: {name}"


def test_scripts_import_what_they_use() -> None:
    """And export only what another one imports."""
    sources = {name: text for name, text in _sources().items() if name.endswith(".js")}
    wanted = set()
    for name, text in sources.items():
        for names, file in re.findall(r"^import \{ (.*) \} from \"\./(.*)\";$", text, re.M):
            for one in names.split(", "):
                wanted.add((file, one))
                assert len(re.findall(rf"\b{one}\b", text)) > 1, f"{name}: {one}"
    exported = {
        (name, one)
        for name, text in sources.items()
        for one in re.findall(r"^export (?:class|const|function) (\w+)", text, re.M)
    }
    assert wanted == exported
