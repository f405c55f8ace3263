"""The prose of the code and the documentation, as far as a pattern can judge it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.process import REPO
from tests.support.sources import parsed, python_files

FIRST_LINES = re.compile(
    r"(What|Who|Whoever|Whatever|That which|Those|Whether or not|How often whom)\b|Of (?!.*, )|"
    r"Return (what|who|whose|how (?!many))\b"
)
"""How no docstring begins: it says what a thing does or is, with a noun or a verb."""

RIDDLES = re.compile(
    r"\b([Ww]hoever|[Tt]hat which|what (comes|came|becomes|became) of|goes again|no longer line|"
    r"nobody can tell|has to say of itself|(go|goes|went|gone|going) on(?! top)|"
    r"so many(?! (of|that|as)))\b"
)
"""Words that stand in for a noun or a verb which can be named."""

OPENINGS = re.compile(r"(?:^|[.:;] )What [a-z]+(?![^.:;?]*\?)")
"""A statement about "what" something does: its subject is a noun. A question may begin so."""

RELATIVE = re.compile(
    r"(?:^|\s)(?!(?:asks?|decides?|knows?|learns?|says?|sees?|shows?|tells?)\s)"
    r"[`\"(\[]*[\w'`.,;)\]*→-]+ what (?!to\b|=|[^.:;?]*\?)"
)
"""A "what" in place of a noun, such as images, files or changes; "says what is wrong" may stay."""

ENDINGS = re.compile(r"\w,? too(?=[.;:)]|$)|, else (?!if\b)(?=[\w`])")
"""A "too" hung on the end of a clause, for "also"; an "else" for "otherwise"."""

SUBJECTS = re.compile(
    r"(?:^|[.:;] (?:and |or )?)[Ww]ho (?![^.:;?]*\?)|\bwho may\b(?! have)|"
    r"\b([Tt]hose|[Oo]ne|and|but|for|of) who\b"
)
"""Uses of "who" without a noun before it, and of "who may" in place of the name of a right."""

DOCUMENT = re.compile(r"\b(?:[A-Z][A-Z_]*|docs/(?:adr/)?[\w-]+)\.(?:md|yaml|json)\b")
"""A document of this project: a page of the repository's root, or a path below docs/."""

CODE_NAME = re.compile(r"`((?:registry|storage|auth|tests)(?:\.\w+)+)(?<!\.json)`")
"""Code that a docstring or comment names, by a dotted name."""

CODE_PATH = re.compile(
    r"`((?:registry|storage|auth|tests|examples|deploy|\.ci)/[\w./-]+\.(?:py|md|toml|sh))\b"
)
"""A file that a page names."""

OTHER_LANGUAGES = (".sh", ".c", ".js", ".css", ".yaml", ".toml", ".service", ".env", ".md")

ROOMS = ("registry", "storage", "auth", "tests", "benchmarks", "examples", "deploy")


def _pages() -> Iterator[tuple[str, str]]:
    """Every page for people, by its path; records of decisions keep the words of their day."""
    pages = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *REPO.glob("*/README.md")]
    for path in sorted(
        {*pages, *(REPO / "examples").rglob("*.md"), *(REPO / "changes").glob("*.md")}
    ):
        yield path.relative_to(REPO).as_posix(), " ".join(path.read_text().split())


def _docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring, of attributes and constants, too, by its place."""
    for path in python_files("registry", "storage", "auth"):
        name = path.relative_to(REPO).as_posix()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str):
                    yield f"{name}:{node.lineno}", " ".join(text.split())


def test_docstrings_begin_with_what_a_thing_does() -> None:
    """None is a riddle whose answer is the thing's name."""
    found = [f"{where}: {text[:80]}" for where, text in _docstrings() if FIRST_LINES.match(text)]
    assert found == []


@cache
def _remarks() -> tuple[tuple[str, str], ...]:
    """Every text and comment of the code, and every line of scripts and of other languages."""
    return tuple(_read_remarks())


def _read_remarks() -> Iterator[tuple[str, str]]:
    for path in sorted(path for room in ROOMS for path in (REPO / room).rglob("*")):
        name = path.relative_to(REPO).as_posix()
        if path.suffix == ".py" and path != Path(__file__):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{name}:{node.lineno}", " ".join(node.value.split())
            for number, lines in _comments(path.read_text()):
                yield f"{name}:{number}", lines
        elif path.suffix in OTHER_LANGUAGES:
            yield name, " ".join(path.read_text().split())


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """The comments of a module, each with its first line; lines that follow one another as one."""
    found: dict[int, tuple[int, list[str]]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            first, lines = found.pop(line - 1, (line, []))
            found[line] = first, [*lines, token.string.lstrip("# ")]
    for first, lines in found.values():
        yield first, " ".join(lines)


def test_prose_names_its_nouns() -> None:
    """Pages, docstrings, comments and messages use no words that have to be read twice."""
    found = []
    for where, text in (*_pages(), *_remarks()):
        found += [
            f"{where}: …{text[max(0, m.start() - 30) : m.end() + 30]}…"
            for m in RIDDLES.finditer(text)
        ]
    assert found == []


def test_lines_of_pages_are_wrapped() -> None:
    """Prose has at most 100 characters a line; tables, code and the changelog may have more."""
    found = []
    for where, _ in _pages():
        if where.startswith(("CHANGE", "changes/")):
            continue
        code = False
        for number, line in enumerate((REPO / where).read_text().splitlines(), 1):
            code ^= line.lstrip().startswith("```")
            if len(line) > 100 and not code and line[0] != "|" and " " in line.strip("-* "):
                found.append(f"{where}:{number}: {len(line)} characters")
    assert found == []


def _names_of_documents() -> Iterator[tuple[str, str]]:
    """Every document that a page, a module or a file beside it names, with the place."""
    files = [path for room in ROOMS for path in (REPO / room).rglob("*") if path.is_file()]
    pages = [REPO / where for where, _ in _pages()]
    for path in {*files, *pages, REPO / "pyproject.toml", REPO / "Makefile"}:
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".sh", ".service", ".socket", ""):
            for match in DOCUMENT.finditer(path.read_text(errors="replace")):
                yield path.relative_to(REPO).as_posix(), match[0]


def test_documents_that_are_named_exist() -> None:
    """No text sends its reader to a page that the repository does not have."""
    named = sorted(set(_names_of_documents()))
    assert len(named) > 30
    assert [f"{where}: {name}" for where, name in named if not (REPO / name).exists()] == []


LINK = re.compile(r"\]\((?!\w+:)([\w./-]*)(?:#([\w-]+))?\)")
"""A link of a page to another, and to a heading there."""


def _headings(page: Path) -> set[str]:
    """The names by which links find a page's headings."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    found = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in found}


def test_links_lead_somewhere() -> None:
    """Each link of a page to another names a file that is there, and a heading in it."""
    missing, links = [], 0
    for where, text in _pages():
        if where.startswith(("CHANGE", "changes/")):
            continue
        for target, heading in LINK.findall(text):
            links += 1
            path = (REPO / where).parent / target if target else REPO / where
            if not path.exists() or (heading and heading not in _headings(path)):
                missing.append(f"{where}: {target}#{heading}")
    assert links > 100, "the search finds too few"
    assert missing == []


def _defined(tree: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """The names that a module or class defines or imports itself."""
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (one for target in targets for one in ast.walk(target))
                found |= {one.id: node for one in names if isinstance(one, ast.Name)}
            case ast.Import() | ast.ImportFrom():
                found |= {(one.asname or one.name).partition(".")[0]: node for one in node.names}
    return found


def _is_defined(name: str) -> bool:
    """Whether a dotted name leads to a room, a module, or something that is defined in one."""
    place, *rest = REPO, *name.split(".")
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    if not rest:
        return True
    module = place / f"{rest[0]}.py"
    if module.is_file():
        rest.pop(0)
    else:
        module = place / "__init__.py"
    if not module.is_file():
        return False
    inside: ast.Module | ast.ClassDef = parsed(module)
    for part in rest:
        found = _defined(inside).get(part)
        if found is None:
            # It may come from a base class, or be set on the instance.
            return isinstance(inside, ast.ClassDef)
        if not isinstance(found, ast.ClassDef):
            return True
        inside = found
    return True


def test_names_of_the_code_exist() -> None:
    """A text that names a module, or something in one, names one that is there."""
    lost, count = [], 0
    for room in ("registry", "storage", "auth", "tests"):
        for path in (REPO / room).rglob("*.py"):
            for name in CODE_NAME.findall(path.read_text()):
                count += 1
                if not _is_defined(name):
                    lost.append(f"{path.relative_to(REPO)}: {name}")
    for where, text in _pages():
        for name in CODE_PATH.findall(text):
            count += 1
            if not (REPO / name).exists():
                lost.append(f"{where}: {name}")
    assert count > 300
    assert lost == []


SETTINGS_READERS = re.compile(
    r"Other objects get values, not `Settings`: `registry/server.py` passes them[^.]*\. "
    r"Only these modules get all settings: (.*?)\. "
)


def test_modules_that_read_settings_are_those_of_contributing() -> None:
    """All others get values: they can be built without a command line."""
    named = SETTINGS_READERS.search(" ".join((REPO / "CONTRIBUTING.md").read_text().split()))
    assert named is not None
    found = {
        path.relative_to(REPO).as_posix()
        for path in (REPO / "registry").rglob("*.py")
        if path.parent.name not in ("settings", "cli")
        if "from mayfly.registry.settings.settings import Settings" in path.read_text()
    }
    assert found == {*CODE_PATH.findall(named[1]), "registry/server.py"}


@pytest.mark.parametrize(
    "text",
    ["What it is.", "Who may do it: the guard.", "Whoever asks.", "Of a user.", "Return who asks."],
)
def test_riddles_are_seen(text: str) -> None:
    """The pattern for first lines finds what it is for."""
    assert FIRST_LINES.match(text)


def test_sentences_have_subjects() -> None:
    """No statement of a page or of the code begins with "What"; those of tests may."""
    remarks = ((where, text) for where, text in _remarks() if not where.startswith("tests/"))
    found = [
        f"{where}: {text[m.start() : m.end() + 40]}…"
        for where, text in (*_pages(), *remarks)
        for m in OPENINGS.finditer(text)
    ]
    assert found == []


def test_things_are_named() -> None:
    """No page, and no text or comment of the code, has "what" for a noun; those of tests may."""
    described = (REPO / "docs/openapi.yaml", REPO / "docs/commands.schema.json")
    other = ((path.name, " ".join(path.read_text().split())) for path in described)
    remarks = ((where, text) for where, text in _remarks() if not where.startswith("tests/"))
    found = [
        f"{where}: …{text[max(0, m.start() - 30) : m.end() + 30]}…"
        for where, text in (*_pages(), *other, *remarks)
        for m in RELATIVE.finditer(text)
    ]
    assert found == []


def test_things_without_a_name_are_seen() -> None:
    """The pattern finds "what" for a noun, but no question, direct or indirect."""
    for text in (
        "It frees what no image refers to.",
        "Only what is missing is sent.",
        "tags, and what refers to them",
        "asks for `--root`, what the operator gave",
    ):
        assert RELATIVE.search(text), text
    for text in (
        "The message says what is wrong.",
        "A node knows what is on its disk.",
        "name what to copy",
        "Is it there, and what is its size?",
        "Args: what: the fault.",
        "path: {what} is damaged",
    ):
        assert not RELATIVE.search(text), text


def test_clauses_end_in_plain_words() -> None:
    """No clause ends in "too" or begins with "else"; those of tests may."""
    code = (".js", ".sh")
    remarks = (one for one in _remarks() if not one[0].startswith("tests/"))
    found = [
        f"{where}: …{text[max(0, m.start() - 30) : m.end() + 30]}…"
        for where, text in (*_pages(), *remarks)
        for m in ENDINGS.finditer(text)
        if not where.endswith(code)
    ]
    assert found == []
    assert ENDINGS.search("Signatures are copied, too.")
    assert ENDINGS.search("The size, else None.")
    assert not ENDINGS.search("That is too large: it is one or else the other.")


def test_people_and_programs_are_named() -> None:
    """Each text says which user, caller, client or node it means."""
    found = [
        f"{where}: …{text[max(0, m.start() - 30) : m.end() + 30]}…"
        for where, text in (*_pages(), *_remarks())
        for m in SUBJECTS.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "Who sends nothing is cut.",
        "It is served: who waits is not.",
        "open to a user who may only read",
        "for those who pull",
        "a request, but for who sends it",
    ],
)
def test_missing_subjects_are_seen(text: str) -> None:
    """The pattern finds a "who" without a noun, at the beginning of a clause and inside one."""
    assert SUBJECTS.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "Settings of the user who runs the tests.",
        "The audit shows who was refused.",
        "It belongs to user 65532, who may have planted it.",
        "Is it public? Who can read it?",
    ],
)
def test_named_subjects_are_left(text: str) -> None:
    """The pattern lets a relative clause after a noun, and questions, pass."""
    assert not SUBJECTS.search(text)


@pytest.mark.parametrize(
    "text",
    ["Whoever asks.", "it goes on where it was", "cut to so many bytes", "for what came of it"],
)
def test_stand_ins_are_seen(text: str) -> None:
    """The pattern for all prose finds what it is for."""
    assert RIDDLES.search(text)


def test_openings_are_seen() -> None:
    """Statements, but no questions."""
    assert OPENINGS.search("It is kept. What nobody needs is not.")
    assert not OPENINGS.search("It is kept. What does that cost? Nothing.")
    assert not OPENINGS.search("It keeps what is needed.")


def test_texts_are_read() -> None:
    """There are pages, docstrings and remarks to look at."""
    assert len(list(_pages())) > 20
    assert len(list(_docstrings())) > 1000
    assert len({where.partition(":")[0] for where, _ in _remarks()}) > 500


_NOUNS = "blobs bundles bytes events files images layers nodes repositories requests tags volumes"
_PLURAL = re.compile(rf" (?:{_NOUNS.replace(' ', '|')})\b")
_NEVER_ONE = re.compile(r"\b_?[A-Z][A-Z_]+$|(?i:max|most|total|size|moved|received|limit)")
"""Names of limits, and of amounts of bytes."""


def test_no_number_has_a_plural_of_its_own() -> None:
    """No text of the code puts a plural behind a number: `counted` does."""
    found: list[str] = []
    for path in python_files("registry", "storage"):
        for node in ast.walk(parsed(path)):
            for number, text in pairwise(node.values if isinstance(node, ast.JoinedStr) else ()):
                if (
                    isinstance(number, ast.FormattedValue)
                    and isinstance(text, ast.Constant)
                    and _PLURAL.match(str(text.value))
                    and not _NEVER_ONE.search(shown := ast.unparse(number.value))
                ):
                    found.append(f"{path.relative_to(REPO)}: {shown}{text.value!r}")
    assert found == [], "put number and noun together by counted of storage/text.py"
