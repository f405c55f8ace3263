"""Does the time that something takes grow with the size of its input alone?

Found by introspection, so that a new pattern or parser is tested without being listed:

- every compiled pattern that a module of registry/, storage/ or auth/ holds, and every literal
  pattern in a call of `re`, each by the methods that the code calls on it;
- every module-level function that returns something and whose required parameters are all text
  (str, bytes, or an iterable of them). A function that does more than to read its text is named in
  `test_growth.EFFECTS`.

Inputs are a prefix, something repeated, and a spoiling suffix. For a pattern they are derived from
its own parse tree: for each repetition in it the shortest text that leads there, and what it
repeats. For a function they are made of the literals in its module, and of what formats repeat:
blanks, digits, separators, brackets.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import math
import pkgutil
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import FrameType, ModuleType
from typing import Any, TypeGuard

from mayfly import auth, registry, storage
from tests.support.sources import parsed

PACKAGES = (registry, storage, auth)

SIZE = 4096
"""Characters of the first look."""

APART = 4
RATIO = 9.0
"""Time for an input `APART` times as long, at most; linear is 4, quadratic is 16."""

QUICK = 0.001
"""Seconds of processor time for `SIZE` characters in which nothing of note can have grown."""

GUARD = 2.0
"""Seconds of processor time after which a call is taken for endless."""

GENERIC = (" ", "a", "0", ".", "-", "/", ":", ",", "=", "%41", "*", "[", '"', "\\", "&a=", "a,",
           "a/", "a.", "\r\n", "\0", '{"":', "**/", "a*")  # fmt: skip
"""What functions are given again and again."""

COMMON = (" ", "\t", "a", "0", ".", "-", "/", ":", "\r\n")
"""What patterns are given again and again, beside what they repeat themselves."""

SPOILERS = ("", "!", "y\r\n")

ATTEMPTS = 8
"""How often a length is measured at most."""

Text = str | bytes


class Endless(Exception):
    """A call took too long."""


@dataclass(frozen=True)
class Subject:
    """Something that reads text.

    Attributes:
        name: module and name, for the test's.
        read: does it; what it raises does not count.
        inputs: (prefix, repeated, suffix) of each input to try.
    """

    name: str
    read: Callable[[str, str, str, int], None]
    inputs: tuple[tuple[str, str, str], ...]


def modules() -> Iterator[ModuleType]:
    """All of the three packages."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def _tree(thing: ModuleType | Callable[..., Any]) -> ast.Module:
    """The tree of a module, or of the one that has a function."""
    return parsed(Path(inspect.getfile(thing)).resolve())


# Measuring


def grown(subject: Subject, guard: float = GUARD) -> Iterator[str]:
    """The inputs for which time grows faster than size, or is longer than ``guard``, in words."""
    for prefix, repeated, suffix in subject.inputs:
        count = max(SIZE // len(repeated), 1)
        text = f"{prefix!r} + {repeated!r} * n + {suffix!r}"
        try:
            with _guarded(guard):
                if _seconds(subject, prefix, repeated, suffix, count) < QUICK:
                    continue
                ratio = _ratio(subject, prefix, repeated, suffix, count)
        except Endless:
            yield f"{text}: more than {guard} s"
            continue
        if ratio > RATIO:
            yield f"{text}: {ratio:.1f} times for {APART} times n"


def _ratio(subject: Subject, prefix: str, repeated: str, suffix: str, count: int) -> float:
    """Time for `APART` times the length as a multiple of the time for the length.

    Each is the least of several measurements, since what else runs on the machine makes some of
    them longer, even in processor time. A ratio that is too large is measured again: no neighbour
    hinders the long texts alone every time.
    """
    short = long = math.inf
    for attempt in range(ATTEMPTS):
        short = min(short, _seconds(subject, prefix, repeated, suffix, count))
        long = min(long, _seconds(subject, prefix, repeated, suffix, count * APART))
        if attempt >= 2 and long <= RATIO * short:
            break
    return long / max(short, 1e-9)


def _seconds(subject: Subject, prefix: str, repeated: str, suffix: str, count: int) -> float:
    begun = time.thread_time()
    try:
        subject.read(prefix, repeated, suffix, count)
    except Endless:
        raise
    except Exception:
        pass
    return time.thread_time() - begun


@contextlib.contextmanager
def _guarded(seconds: float) -> Iterator[None]:
    """Interrupt what takes too long; the engine of `re` looks for signals, too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Endless

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Patterns


def patterns() -> Iterator[Subject]:
    """Every pattern, by every method that is called on it."""
    for module in modules():
        tree = _tree(module)
        methods = _methods(tree)
        anywhere = tuple(dict.fromkeys(m for found in methods.values() for m in found))
        for name, value in vars(module).items():
            for pattern in _held(value):
                # One of several that a name stands for is called by another name.
                for method in methods.get(name, anywhere or ("search",)):
                    yield pattern_subject(f"{module.__name__}.{name}.{method}", pattern, method)
        for line, pattern, method in _literals(tree):
            yield pattern_subject(f"{module.__name__}:{line}.{method}", pattern, method)


def unreadable_patterns() -> list[str]:
    """Calls of `re` inside functions whose pattern is made at run time."""
    found = []
    for module in modules():
        tree = _tree(module)
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [
                    f"{module.__name__}.{function.name}"
                    for call in ast.walk(function)
                    if _is_re(call) and not isinstance(call.args[0], ast.Constant)
                ]
    return found


def pattern_subject(name: str, pattern: re.Pattern[Any], method: str) -> Subject:
    """A pattern under one of its methods."""

    def read(prefix: str, repeated: str, suffix: str, count: int) -> None:
        text = prefix + repeated * count + suffix
        given = text.encode("utf-8") if isinstance(pattern.pattern, bytes) else text
        if method in ("sub", "subn"):
            pattern.sub(b"" if isinstance(given, bytes) else "", given)
        elif method in ("findall", "finditer"):
            pattern.findall(given)
        else:
            getattr(pattern, method)(given)

    return Subject(name, read, tuple(dict.fromkeys(_pattern_inputs(pattern))))


def _held(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _held(one)
    elif isinstance(value, tuple | list | set | frozenset):
        for one in value:
            yield from _held(one)


def _methods(tree: ast.AST) -> dict[str, tuple[str, ...]]:
    """Name → the methods called on it."""
    found: dict[str, tuple[str, ...]] = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
            known = ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")
            if call.attr in known:
                before = found.get(call.value.id, ())
                found[call.value.id] = tuple(dict.fromkeys((*before, call.attr)))
    return found


def _is_re(call: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "re"
        and call.func.attr != "escape"
    )


def _literals(tree: ast.AST) -> Iterator[tuple[int, re.Pattern[Any], str]]:
    for call in ast.walk(tree):
        if (
            _is_re(call)
            and isinstance(call.args[0], ast.Constant)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr != "compile"  # held by the module, and found there
        ):
            yield call.lineno, re.compile(str(call.args[0].value)), call.func.attr


def _pattern_inputs(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    text = pattern.pattern
    tree = parser.parse(
        text if isinstance(text, str) else text.decode("latin-1"), pattern.flags & ~re.UNICODE
    )
    whole = _sample(tree)
    for prefix, repeated in _repetitions(tree, ""):
        for suffix in SPOILERS:
            yield prefix, repeated, suffix
            yield "", prefix + repeated, suffix
    for repeated in (*COMMON, whole or "a"):
        for prefix in dict.fromkeys(("", whole)):
            for suffix in SPOILERS:
                yield prefix, repeated, suffix


def _repetitions(tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """For each repetition (text that leads there, what it repeats), several for a class."""
    for number, (code, argument) in enumerate(tree):
        before = prefix + _sample(list(tree)[:number])
        if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            _, most, body = argument
            if most > 64:
                for repeated in _samples(body):
                    yield before, repeated
            yield from _repetitions(body, before)
        elif code is op.SUBPATTERN:
            yield from _repetitions(argument[3], before)
        elif code is op.ATOMIC_GROUP:
            yield from _repetitions(argument, before)
        elif code is op.BRANCH:
            for branch in argument[1]:
                yield from _repetitions(branch, before)
        elif code in (op.ASSERT, op.ASSERT_NOT):
            yield from _repetitions(argument[1], before)


def _samples(tree: Any) -> list[str]:
    """Texts that match; of a single class one for each kind of character in it."""
    items = list(tree)
    if len(items) == 1 and items[0][0] in (op.IN, op.NOT_LITERAL, op.ANY):
        kinds = [one for one in " \ta0A.-_/:,;=" if _in(items[0], one)]
        return kinds[:6] or [_sample(tree) or "a"]
    whole = _sample(tree) or "a"
    return [whole, _sample(tree, least=2) or whole]


def _in(item: tuple[Any, Any], character: str) -> bool:
    code, argument = item
    if code is op.ANY:
        return True
    if code is op.NOT_LITERAL:
        return ord(character) != argument
    negated, found = False, False
    for kind, value in argument:
        if kind is op.NEGATE:
            negated = True
        elif kind is op.LITERAL:
            found |= ord(character) == value
        elif kind is op.RANGE:
            found |= value[0] <= ord(character) <= value[1]
        elif kind is op.CATEGORY:
            tests = {"DIGIT": str.isdigit, "SPACE": str.isspace, "WORD": str.isalnum}
            name = str(value).rpartition("_")[2]
            is_not = "NOT" in str(value)
            found |= tests.get(name, str.isalnum)(character) != is_not
    return found != negated


def _sample(tree: Any, least: int = 0) -> str:
    """A short text that matches; repetitions are taken so often at least."""
    text = ""
    for code, argument in tree:
        if code is op.LITERAL:
            text += chr(argument)
        elif code in (op.IN, op.ANY, op.NOT_LITERAL):
            text += next((one for one in "a0 .-_/:=A\t" if _in((code, argument), one)), "$")
        elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            fewest, most, body = argument
            text += _sample(body, least) * min(max(fewest, least), int(most))
        elif code is op.SUBPATTERN:
            text += _sample(argument[3], least)
        elif code is op.ATOMIC_GROUP:
            text += _sample(argument, least)
        elif code is op.BRANCH:
            text += _sample(argument[1][0], least)
    return text


# Functions

VALID = {
    "method": "GET",
    "path": "/v2/a/tags/list",
    "query": "n=1",
    "source": "CA",
    "own": "localhost",
    "hosts": "127.0.0.1 localhost\n",
}
"""Values for the other text parameters while one grows; "a" for the rest."""

_TEXTS = ("str", "bytes", "str | None", "bytes | None", "str | bytes")
_ITERABLES = tuple(
    f"{kind}[{text}]"
    for kind in ("Iterable", "Sequence", "Collection", "list", "Iterator")
    for text in ("str", "bytes")
)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every module-level function whose required parameters are all text, by its name."""
    for module in modules():
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and _text(value):
                yield f"{module.__name__}.{name}", value


EFFECTS = {
    "mayfly.auth.users.hash_password": "bcrypt, slow on purpose; of 72 bytes at most",
    "mayfly.auth.generate._hash": "the same",
    "mayfly.registry.control.socket._bind": "binds a socket",
    "mayfly.registry.pki.addresses.wanted_names": "asks the host for its addresses",
}
"""Functions of text alone that do more than to read it, and what."""


def pure_functions() -> dict[str, Callable[..., Any]]:
    """The functions of `functions` without effects, by their names."""
    return {name: function for name, function in functions() if name not in EFFECTS}


def function_subjects(name: str, function: Callable[..., Any]) -> Iterator[Subject]:
    """A function, by each of its text parameters, as one long text and as many short ones."""
    inputs = tuple(dict.fromkeys(_function_inputs(function)))
    for parameter, annotation in _text(function).items():
        if annotation in _TEXTS:
            yield Subject(f"{name}({parameter})", _reader(function, parameter, annotation), inputs)
        else:
            for many in (False, True):
                read = _reader(function, parameter, annotation, many)
                yield Subject(f"{name}({parameter})", read, inputs)


def readers(
    function: Callable[..., Any],
) -> Iterator[tuple[str, Callable[[str, str, str, int], None]]]:
    """For each text parameter of a function, a call that gives it a text."""
    for parameter, annotation in _text(function).items():
        yield parameter, _reader(function, parameter, annotation)


def _reader(
    function: Callable[..., Any], parameter: str, annotation: str, many: bool = False
) -> Callable[[str, str, str, int], None]:
    texts = _text(function)
    others: dict[str, Any] = {
        name: _as(VALID.get(name, "a"), texts[name]) for name in texts if name != parameter
    }

    def read(prefix: str, repeated: str, suffix: str, count: int) -> None:
        given: Any
        if many:  # each of them another
            given = [_as(f"{prefix}{repeated}{n}{suffix}", annotation) for n in range(count // 8)]
        else:
            given = _as(prefix + repeated * count + suffix, annotation)
            if annotation in _ITERABLES:
                given = [given]
        answer = function(**others, **{parameter: given})
        if inspect.isgenerator(answer):
            for _ in answer:
                pass

    return read


def _as(text: str, annotation: str) -> Text:
    return text.encode() if "bytes" in annotation else text


def _text(function: Callable[..., Any]) -> dict[str, str]:
    """The text parameters of a function; none if it requires any other."""
    found: dict[str, str] = {}
    signature = inspect.signature(function)
    if signature.return_annotation in ("None", None):
        return found
    for parameter in signature.parameters.values():
        if parameter.annotation in (*_TEXTS, *_ITERABLES) and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                return {}
            found[parameter.name] = str(parameter.annotation)
        elif parameter.default is parameter.empty:
            return {}
    return found


def _function_inputs(function: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    tree = _tree(function)
    documented = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
    literals: dict[str, None] = {"": None}
    for one in ast.walk(tree):
        if isinstance(one, ast.Constant) and id(one) not in documented:
            value = one.value.decode("latin-1") if isinstance(one.value, bytes) else one.value
            if isinstance(value, str) and 0 < len(value) <= 24 and "\n " not in value:
                literals[value] = None
    for repeated in GENERIC:
        for prefix in list(literals)[:8]:
            yield prefix, repeated, "!"
        yield "", repeated, ""
    for repeated in list(literals)[1:24]:
        yield "", repeated, "!"
