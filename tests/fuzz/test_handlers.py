"""Headers and parameters that a handler reads itself: chunks and pages, against naive models."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from mayfly.auth.policy import NameRange
from mayfly.registry.api import errors, listings, uploads
from mayfly.registry.api.context import Context
from mayfly.registry.api.parse import parse
from mayfly.registry.coverage.observer import Peer
from mayfly.registry.http.body import Body
from mayfly.registry.http.errors import WireError
from mayfly.registry.http.receive import Receiver
from mayfly.storage.errors import StorageError
from tests.fuzz.budget import EXAMPLES
from tests.support.lifecycle_hooks import lifecycle_hooks

SESSION = "1b671a64-40d5-491e-99b0-da01ff1f3341"
WIRE = st.binary(max_size=30).map(lambda data: data.decode("utf-8", "surrogateescape"))
HELD = b"twelve bytes"


def _context(**parts: Any) -> Context:
    """A handler's context of these parts alone; its client did not log in."""
    fields: dict[str, Any] = dict.fromkeys(Context._fields)
    fields["peer"] = Peer("", "127.0.0.1", "127.0.0.1")
    fields["is_gone"] = lambda: False
    return Context(**fields | parts)


class _Upload:
    """A session in memory."""

    id = SESSION

    def __init__(self) -> None:
        self.data = HELD

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: list[bytes], at: int) -> None:
        assert at == len(self.data)
        self.data += b"".join(data)


async def _patched(header: str, body: bytes, announced: int | None) -> tuple[bytes, Any]:
    """What the session holds after a chunk, and the answer to it or the error."""
    transport: Any = SimpleNamespace(
        is_closing=lambda: False, pause_reading=lambda: None, resume_reading=lambda: None
    )
    framed = Body(transport, announced, False, lambda rest: None) if announced != 0 else None
    if framed is not None:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        framed.buffer(chunk + b"0\r\n\r\n" if announced is None else body)
    upload = _Upload()
    context = _context(
        store=SimpleNamespace(
            upload=lambda repository, upload_id: upload, check_room=lambda size: None
        ),
        observer=lifecycle_hooks().observer,
        receiver=Receiver(),
    )
    headers = CIMultiDict({"Content-Range": header})
    http: Any = SimpleNamespace(body=framed, headers=headers, announced_length=announced or 0)
    try:
        answer = await uploads.patch(
            context, http, parse("PATCH", f"/v2/a/blobs/uploads/{SESSION}", "")
        )
    except (errors.RequestError, WireError, StorageError) as error:
        return upload.data, error
    return upload.data, answer


NUMBERS = st.integers(0, 30) | st.sampled_from([12, 12, 10**18, 10**25])
RANGES = st.tuples(
    st.sampled_from(["", "", "bytes ", "bytes=", "Bytes "]),
    NUMBERS,
    NUMBERS,
    st.sampled_from(["", "", "/*", "/30", "/", "/-1"]),
).map(lambda parts: f"{parts[0]}{parts[1]}-{parts[2]}{parts[3]}")


@settings(max_examples=EXAMPLES, deadline=None)
@given(header=RANGES | WIRE, body=st.binary(max_size=16), told=st.booleans())
@example(header="12-14", body=b"abc", told=True)
@example(header="12-14", body=b"abc", told=False)
@example(header="12-13", body=b"abc", told=False)
def test_any_content_range(header: str, body: bytes, told: bool) -> None:
    """A chunk is appended that begins where the session stands and is as long as it says."""
    held, answer = asyncio.run(_patched(header, body, len(body) if told else None))
    found = re.fullmatch(r"(bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(/([0-9]+|\*))?", header.strip())
    begins = found is not None and int(found[2]) == len(HELD)
    if begins and found is not None and int(found[3]) - int(found[2]) + 1 == len(body):
        assert held == HELD + body
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(held) - 1}")
        return
    status, code = errors.TABLE[type(answer)]
    assert status in (400, 416)
    assert json.loads(errors.body(code, answer.message, answer.detail))
    # Only a body of unknown length can be found wrong after it came.
    assert held == HELD or (begins and not told)


TAGS = st.sets(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,3}", fullmatch=True), max_size=12)
LIMITS = st.integers(1, 14).map(str) | st.sampled_from(["0", "-1", "007", "9" * 9, "9" * 10]) | WIRE


def _listing_context(names: list[str], shown: frozenset[str]) -> Context:
    def repositories(after: str, limit: int, prefix: str) -> list[str]:
        return [name for name in names if name > after and name.startswith(prefix)][:limit]

    store = SimpleNamespace(tags=lambda repository: names, repositories=repositories)
    everything = [NameRange("", is_prefix=True)]
    caller = SimpleNamespace(can_list=shown.__contains__, readable=lambda *, listing: everything)
    return _context(store=store, caller=caller)


async def _pages(handler: Any, context: Context, key: str, target: str) -> list[list[str]]:
    """Every page from one on, by following the links."""
    pages = list[list[str]]()
    while target:
        path, _, query = target.partition("?")
        answer = await handler(context, None, parse("GET", path, query))
        pages.append(json.loads(answer.body)[key])
        link = answer.headers.get("Link", "")
        target = link.removeprefix("<").removesuffix('>; rel="next"')
        assert len(pages) < 50 and not set(link) & set("\r\n")
    return pages


def _asked(path: str, limit: str | None, last: str) -> str:
    return f"{path}?last={_encoded(last)}" + ("" if limit is None else f"&n={_encoded(limit)}")


def _encoded(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogateescape"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(names=TAGS, hidden=TAGS, limit=st.none() | LIMITS, last=st.sampled_from(["", "a"]) | WIRE)
@example(names={"a", "b", "c"}, hidden={"b"}, limit="1", last="")
def test_any_page(names: set[str], hidden: set[str], limit: str | None, last: str) -> None:
    """Pages hold each entry after ``last`` once, in order, at most ``n`` each; or it is refused."""
    ordered = sorted(names)
    for handler, key, path, shown in (
        (listings.tags, "tags", "/v2/a/tags/list", names),
        (listings.catalog, "repositories", "/v2/_catalog", names - hidden),
    ):
        context = _listing_context(ordered, frozenset(shown))
        try:
            pages = asyncio.run(_pages(handler, context, key, _asked(path, limit, last)))
        except (errors.PaginationInvalid, errors.ParameterInvalid):
            assert limit is None or not re.fullmatch("[0-9]{1,9}", limit) or not _is_text(last)
            continue
        most = 10**9 if limit is None else int(limit)
        expected = [name for name in ordered if name > last and name in shown] if most else []
        assert [name for page in pages for name in page] == expected
        assert all(len(page) <= most for page in pages)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
