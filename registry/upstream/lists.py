"""Read lists of images, in every format that other tools write or read.

`read` tells the format by the content, never by the file's name:

    plain text          one reference a line, ``#`` comments (k3s, RKE2, Rancher, talosctl, kubeadm)
    mapping             ``SOURCE=DESTINATION`` lines (oc-mirror's mapping.txt)
    hauler              content.hauler.cattle.io: Images
    oc-mirror v2        mirror.openshift.io: ImageSetConfiguration
    regsync, skopeo     ``version: 1`` with ``sync``; a mapping of hosts to ``images``
    image-syncer        a mapping of sources to destinations
    zarf                kind ZarfPackageConfig
    Kubernetes          any manifests, ``helm template`` output and kustomizations included
    Helm                Chart.yaml with artifacthub.io/images or helm.sh/images
    Compose             services with an image

Sources: the formats' own documentation, as collected by the project (hauler, oc-mirror, skopeo,
regclient, image-syncer, zarf, Helm, Kubernetes, Compose).

A list comes from a stranger: its size, depth and expansion are bounded, and the walk over it is
linear. Whatever a list asks for and this module cannot give is an error with the place and the
remedy, or a notice where the images are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mayfly.registry.upstream import versions
from mayfly.registry.upstream.errors import ListInvalid
from mayfly.storage.errors import StorageError
from mayfly.storage.reference import (
    LATEST,
    Reference,
    canonical_host,
    is_attached_tag,
    is_tag,
    parse_reference,
)

MAX_BYTES = 64 * 1024 * 1024
"""Largest list. The rendered manifests of a large platform take a few MiB."""

_MAX_PATTERN = 1_000
"""Characters of a pattern for tags."""

MAX_NODES = 2_000_000
"""Values of a structured list, counted where they are used: an alias counts at each use."""

_SUFFIXES_OF_FILES = (".txt", ".yaml", ".yml", ".json", ".list", ".csv", ".tar")

_DOCUMENT = "---"
"""The line that begins a YAML document."""

_PLAIN_LINE = re.compile(r"[^\s:#=][^\s=]*(?:=[^\s=]+)?")


@dataclass(frozen=True, slots=True)
class TagFilter:
    """Which tags of a repository are meant.

    Attributes:
        exact: tags by name.
        allow: patterns that a whole tag must match; without any, every tag is allowed.
        deny: patterns that no tag may match as a whole.
        semver: version ranges (as Masterminds/semver writes them), one of which a tag must be in.
    """

    exact: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    semver: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image, or the tags of one repository, that a list asks for.

    Attributes:
        source: full reference; its tag and digest are None where `tags` selects several.
        target: the reference to store it under; None keeps the source's own.
        tags: which tags of the repository; None for the one image that ``source`` names.
        platforms: ``os/arch[/variant]``; empty for all.
        referrers: whether signatures and attestations are also wanted.
        origin: the place in the list, for messages: ``images.txt:3``.
    """

    source: Reference
    target: Reference | None = None
    tags: TagFilter | None = None
    platforms: tuple[str, ...] = ()
    referrers: bool = True
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """How a list says that a registry is reached. Only `mayfly sync` does as it says.

    Attributes:
        plain: by plain HTTP.
        unverified: by HTTPS, with any certificate.
        directory: of certificates, as below /etc/containers/certs.d; "" for none.
        origin: the place in the list.
    """

    plain: bool = False
    unverified: bool = False
    directory: str = ""
    origin: str = ""

    def notices(self, host: str) -> Iterator[str]:
        """Sentences for a command that does not do as it says."""
        if self.plain or self.unverified:
            yield f"{self.origin}: not verifying TLS has no effect; use --insecure {host}"
        if self.directory:
            yield f"{self.origin}: cert-dir has no effect; use --ca FILE"


@dataclass(frozen=True, slots=True)
class ImageList:
    """The images that one or more lists ask for.

    Attributes:
        format: the format that was recognised, for messages.
        wanted: in the order of the list, without repetitions.
        notices: one line for each instruction of the list that has no effect here.
        credentials: registry host to (user name, password), where the list holds some.
        trust: registry host to how it is reached, where the list says so.
    """

    format: str
    wanted: tuple[Wanted, ...]
    notices: tuple[str, ...] = ()
    credentials: dict[str, tuple[str, str]] = field(default_factory=dict)
    trust: dict[str, Trust] = field(default_factory=dict)


def read(data: bytes, origin: str) -> ImageList:
    """Read a list of any supported format.

    Args:
        data: the whole file.
        origin: its name, for messages.

    Raises:
        ListInvalid: it is too large, not a list of any known format, or asks for something that
            cannot be done.
    """
    text = _decoded(data, origin)
    plain = _plain_lines(text)
    draft = _Draft(origin)
    if plain is not None:
        _read_plain(plain, draft)
    else:
        for number, document in enumerate(_documents(text, origin), 1):
            if isinstance(document, str) and len(document.split()) > 1:
                # Lines are one text to YAML: a plain list was meant.
                raise ListInvalid(_line_that_is_not_plain(text, origin))
            place = origin if number == 1 else f"{origin}, document {number}"
            _read_document(document, place, draft)
    return draft.finished()


def choose_tags(tags: Iterable[str], wanted: TagFilter) -> list[str]:
    """The tags that a filter lets through, in lexical order.

    Tags by which signatures and other referrers are found are no images. Nor is text that is no
    tag, whatever the registry says.
    """
    allow = [re.compile(pattern) for pattern in wanted.allow]
    deny = [re.compile(pattern) for pattern in wanted.deny]
    ranges = [versions.in_range(text) for text in wanted.semver]
    found = []
    for tag in sorted(set(tags)):
        if not is_tag(tag) or is_attached_tag(tag):
            continue
        if wanted.exact and tag not in wanted.exact:
            continue
        if allow and not any(pattern.fullmatch(tag) for pattern in allow):
            continue
        if any(pattern.fullmatch(tag) for pattern in deny):
            continue
        if ranges:
            version = versions.parse(tag)
            if version is None or not any(test(version) for test in ranges):
                continue
        found.append(tag)
    return found


def is_plain(data: bytes, origin: str) -> bool:
    """Whether a list has one reference a line.

    Raises:
        ListInvalid: it is no text.
    """
    lines = _plain_lines(_decoded(data, origin))
    return lines is not None and not any("=" in line for _, line in lines)


@dataclass(slots=True)
class _Draft:
    origin: str
    formats: dict[str, None] = field(default_factory=dict)
    wanted: dict[Wanted, Wanted] = field(default_factory=dict)
    notices: dict[str, None] = field(default_factory=dict)
    credentials: dict[str, tuple[str, str]] = field(default_factory=dict)
    trust: dict[str, Trust] = field(default_factory=dict)
    nodes_left: int = field(default_factory=lambda: MAX_NODES)

    def want(self, one: Wanted) -> None:
        self.wanted.setdefault(replace(one, origin=""), one)

    def note(self, text: str) -> None:
        self.notices[text] = None

    def visit(self, place: str) -> None:
        self.nodes_left -= 1
        if self.nodes_left < 0:
            raise ListInvalid(f"{place}: more than {MAX_NODES:,} values once its aliases are used")

    def finished(self) -> ImageList:
        if not self.wanted:
            found = f" ({' and '.join(self.formats)})" if self.formats else ""
            raise ListInvalid(f"{self.origin}{found}: names no image")
        return ImageList(
            " and ".join(self.formats),
            tuple(self.wanted.values()),
            tuple(self.notices),
            self.credentials,
            self.trust,
        )


def read_reference(text: str) -> Wanted:
    """The image that a reference names.

    Raises:
        ListInvalid: it is not a reference, or looks like a file that is not there.
    """
    if text.endswith(_SUFFIXES_OF_FILES) and ":" not in text.rpartition("/")[2]:
        raise ListInvalid(f"{text}: there is no such file; if it is an image, give its tag")
    return _image(text, text)


def _decoded(data: bytes, origin: str) -> str:
    if len(data) > MAX_BYTES:
        raise ListInvalid(f"{origin}: larger than {MAX_BYTES >> 20} MiB; is this a list of images?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListInvalid(f"{origin}: not text (byte {error.start} is not UTF-8)") from None
    if "\0" in text:
        raise ListInvalid(f"{origin}: not text (it contains NUL bytes); is this a bundle?")
    return text


def _plain_lines(text: str) -> list[tuple[int, str]] | None:
    """The lines of a plain list with their numbers; None if any line is something else."""
    found = []
    for number, content in _contents(text):
        if not _is_plain(content):
            return None
        found.append((number, content))
    return found


def _contents(text: str) -> Iterator[tuple[int, str]]:
    """The lines that have more than a comment, without it, and their numbers."""
    for number, line in enumerate(text.splitlines(), 1):
        # A comment begins a line or follows white space, so that no digest or tag is cut.
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if content:
            yield number, content


def _is_plain(content: str) -> bool:
    is_yaml = content == _DOCUMENT or content.endswith(":")
    return not is_yaml and _PLAIN_LINE.fullmatch(content) is not None


def _line_that_is_not_plain(text: str, origin: str) -> str:
    """The message about a list that has such a line."""
    odd = [one for one in _contents(text) if not _is_plain(one[1])]
    number, content = next((one for one in odd if one[1] != _DOCUMENT), odd[0])
    return f"{origin}:{number}: {_shown(content)!r} is not one image reference; write one a line"


def _read_plain(lines: list[tuple[int, str]], draft: _Draft) -> None:
    for number, line in lines:
        place = f"{draft.origin}:{number}"
        source, equals, target = line.partition("=")
        draft.formats["mapping" if equals else "plain text"] = None
        wanted = _image(source, place)
        draft.want(replace(wanted, target=_reference(target, place)) if equals else wanted)


def _reference(text: object, place: str) -> Reference:
    """A full reference; a name alone means the tag ``latest``, as docker has it."""
    found = _name(text, place)
    if found.tag is None and found.digest is None:
        return found._replace(tag=LATEST)
    return found


def _image(text: object, place: str) -> Wanted:
    """The image that a reference names; with a tag and a digest, it keeps its tag as a target."""
    source = _reference(text, place)
    named = str(text).rpartition("@")[0]
    target = _name(named, place) if source.digest and named else None
    return Wanted(source, target if target and target.tag else None, origin=place)


def _name(text: object, place: str) -> Reference:
    if not isinstance(text, str):
        raise ListInvalid(f"{place}: expected an image reference, found {_kind(text)}")
    try:
        return parse_reference(text.strip().removeprefix("docker://"))
    except StorageError as error:
        raise ListInvalid(f"{place}: {error.message}") from None


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing", bool: "true or false"}
    return names.get(type(value)) or f"{_shown(value)!r}"


def _shown(value: object) -> str:
    """A value for a message, never expanded: its aliases could make it endless."""
    is_plain = isinstance(value, str | int | float)
    return f"{value}"[:80] if is_plain else type(value).__name__


def _documents(text: str, origin: str) -> Iterator[Any]:
    import yaml  # only structured lists need it

    # libyaml limits nesting since PyYAML 6.0.4; the pure-Python loader ends in a RecursionError.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from (found for found in yaml.load_all(text, loader) if found is not None)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ListInvalid(
            f"{place}: neither a plain list (one reference a line) nor YAML: {problem}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise ListInvalid(f"{origin}: YAML that cannot be read: {str(error)[:200]}") from None


# Structured formats. Each reader takes a document of its format, the place for messages, and the
# draft to add to.

_HAULER = "content.hauler.cattle.io/"
_OC_MIRROR = "mirror.openshift.io/"
_HELM_IMAGES = ("artifacthub.io/images", "helm.sh/images", "images")


def _read_document(document: object, place: str, draft: _Draft) -> None:
    draft.visit(place)
    if isinstance(document, list):
        draft.formats["plain text"] = None
        for number, text in enumerate(document, 1):
            where = f"{place}, item {number}"
            draft.want(_image(text, where))
        return
    if isinstance(document, str) and len(document.split()) == 1:
        draft.formats["plain text"] = None
        draft.want(_image(document, place))
        return
    if not isinstance(document, dict):
        raise ListInvalid(f"{place}: expected a list of images, found {_kind(document)}")
    name, reader = _recognise(document, place)
    draft.formats[name] = None
    reader(document, place, draft)


_Reader = Callable[[dict[Any, Any], str, _Draft], None]


def _recognise(document: dict[Any, Any], place: str) -> tuple[str, _Reader]:
    api, kind = (_text_or_none(document.get(key)) for key in ("apiVersion", "kind"))
    images = document.get("images")
    if api and api.startswith(_HAULER):
        return "hauler", _read_hauler
    if api and api.startswith(_OC_MIRROR) and kind == "ImageSetConfiguration":
        return "oc-mirror", _read_oc_mirror
    if kind in ("ZarfPackageConfig", "ZarfInitConfig"):
        return "zarf", _read_zarf
    if isinstance(document.get("sync"), list):
        return "regsync", _read_regsync
    if kind == "Kustomization" or (isinstance(images, list) and not api):
        return "kustomization", _read_kustomization
    if api and kind:
        return "Kubernetes", _read_kubernetes
    if api in ("v1", "v2") and "name" in document and "version" in document:
        return "Helm chart", _read_chart
    if isinstance(document.get("services"), dict):
        return "Compose", _read_compose
    if document and all(_is_skopeo_host(value) for value in document.values()):
        return "skopeo sync", _read_skopeo
    if document and all(_is_sync_target(value) for value in _syncer_rules(document).values()):
        return "image-syncer", _read_image_syncer
    raise ListInvalid(
        f"{place}: not a list of images in a known format; accepted are plain text (one reference "
        "a line), mapping.txt, hauler, oc-mirror, regsync, skopeo sync, image-syncer, zarf, "
        "Kubernetes manifests, Chart.yaml and Compose files"
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object, place: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ListInvalid(f"{place}: expected a mapping, found {_kind(value)}")
    return value


def _items(value: object, place: str, draft: _Draft) -> Iterator[tuple[str, Any]]:
    """The items of a list with their places; nothing for a missing list."""
    if value is None:
        return
    if not isinstance(value, list):
        raise ListInvalid(f"{place}: expected a list, found {_kind(value)}")
    for number, item in enumerate(value):
        draft.visit(place)
        yield f"{place}[{number}]", item


def _strings(value: object, place: str, draft: _Draft) -> tuple[str, ...]:
    found = []
    for where, item in _items([value] if isinstance(value, str) else value, place, draft):
        if isinstance(item, int | float) and not isinstance(item, bool):
            # YAML reads the tag 1.10 as the number 1.1.
            raise ListInvalid(f"{where}: YAML reads {item} as a number; put it in quotes")
        if not isinstance(item, str):
            raise ListInvalid(f"{where}: expected text, found {_kind(item)}")
        found.append(item)
    return tuple(found)


def _patterns(value: object, place: str, draft: _Draft) -> tuple[str, ...]:
    return tuple(_pattern(text, place) for text in _strings(value, place, draft))


def _ranges(value: object, place: str, draft: _Draft) -> tuple[str, ...]:
    texts = _strings(value, place, draft)
    for text in texts:
        try:
            versions.in_range(text)
        except ValueError as error:
            raise ListInvalid(f"{place}: {error}") from None
    return texts


def _pattern(text: str, place: str) -> str:
    if len(text) > _MAX_PATTERN:
        raise ListInvalid(f"{place}: a pattern has more than {_MAX_PATTERN} characters")
    try:
        re.compile(text)
    except re.error as error:
        raise ListInvalid(f"{place}: {text!r} is not a pattern: {error}") from None
    return text


def _platforms(value: object, place: str, draft: _Draft) -> tuple[str, ...]:
    """Platforms as ``os/arch[/variant]`` from text or from oc-mirror's mappings."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    found = []
    for where, item in _items(value, place, draft):
        if isinstance(item, dict):
            parts = [item.get("os", "linux"), item.get("architecture"), item.get("variant")]
            item = "/".join(part for part in parts if isinstance(part, str))
        if not isinstance(item, str) or not 1 <= item.count("/") <= 2:
            raise ListInvalid(f"{where}: expected a platform such as linux/arm64")
        if item != "all":
            found.append(item)
    return tuple(found)


def _read_hauler(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    kind = document.get("kind")
    spec = _mapping(document.get("spec"), f"{place}: spec")
    annotations = _mapping(
        _mapping(document.get("metadata"), f"{place}: metadata").get("annotations"),
        f"{place}: metadata.annotations",
    )
    if kind == "Charts":
        for where, chart in _items(spec.get("charts"), f"{place}: spec.charts", draft):
            _read_hauler_chart(_mapping(chart, where), where, draft)
        return
    if kind != "Images":
        raise ListInvalid(
            f"{place}: hauler {_shown(kind)} are not images; push them to a registry with oras and "
            "list them by their reference"
        )
    for where, item in _items(spec.get("images"), f"{place}: spec.images", draft):
        image = {"name": item} if isinstance(item, str) else _mapping(item, where)
        name = image.get("name")
        if image.get("local"):
            raise ListInvalid(
                f"{where}: {_shown(name)} is in a local docker engine; save it with docker save "
                "and give the archive as a source"
            )
        registry = annotations.get("hauler.dev/registry")
        if isinstance(registry, str) and isinstance(name, str) and not _has_host(name):
            name = f"{registry.rstrip('/')}/{name}"
        source = _reference(name, where)
        if any(image.get(key) for key in ("key", "certificate-identity")) or annotations.get(
            "hauler.dev/key"
        ):
            draft.note(f"{where}: the signature of {source} is carried, but not verified here")
        rewrite = image.get("rewrite") or annotations.get("hauler.dev/rewrite")
        platform = image.get("platform") or annotations.get("hauler.dev/platform")
        draft.want(
            Wanted(
                source,
                _rewritten(source, rewrite, where) if rewrite else None,
                platforms=_platforms(platform, f"{where}.platform", draft),
                referrers=not image.get("exclude-extras"),
                origin=where,
            )
        )


def _read_hauler_chart(chart: dict[Any, Any], place: str, draft: _Draft) -> None:
    name, url, version = (chart.get(key) for key in ("name", "repoURL", "version"))
    if chart.get("add-images") or chart.get("add-dependencies"):
        raise ListInvalid(
            f"{place}: images of chart {_shown(name)} are only known once it is rendered: run helm "
            "template and give its output as a list, then remove add-images and add-dependencies"
        )
    if not isinstance(url, str) or not url.startswith("oci://"):
        raise ListInvalid(
            f"{place}: chart {_shown(name)} is in a chart repository, not in a registry: helm pull "
            "it, helm push it to a registry, and write repoURL: oci://HOST/PATH"
        )
    source = f"{url.removeprefix('oci://').rstrip('/')}/{_shown(name)}:{_chart_tag(version, place)}"
    draft.want(_image(source, place))


def _chart_tag(version: object, place: str) -> str:
    if not isinstance(version, str) or not version:
        raise ListInvalid(f"{place}: a chart in a registry needs its exact version")
    return version.replace("+", "_")  # Helm's rule: a tag cannot hold a plus sign


def _has_host(name: str) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and (first == "localhost" or "." in first or ":" in first)


def _rewritten(source: Reference, text: object, place: str) -> Reference:
    """hauler's rewrite: a path, with a tag or the source's own."""
    if not isinstance(text, str):
        raise ListInvalid(f"{place}.rewrite: expected text, found {_kind(text)}")
    path = text.strip().lstrip("/")
    found = _name(path if _has_host(path) else f"{source.host}/{path}", place)
    if found.tag is None and found.digest is None:
        return found._replace(tag=source.tag or "latest")
    return found


def _read_oc_mirror(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    mirror = _mapping(document.get("mirror"), f"{place}: mirror")
    for key, what in (("platform", "release images"), ("operators", "operator catalogues")):
        if mirror.get(key):
            raise ListInvalid(
                f"{place}: mirror.{key}: {what} need oc-mirror itself; run it with --dry-run and "
                "give the mapping.txt it writes as a list"
            )
    helm = _mapping(mirror.get("helm"), f"{place}: mirror.helm")
    if helm.get("repositories") or helm.get("local"):
        raise ListInvalid(
            f"{place}: mirror.helm: run helm template on these charts and give its output as a list"
        )
    if document.get("archiveSize"):
        draft.note(f"{place}: archiveSize has no effect; use --volume-size")
    blocked = [
        re.compile(pattern)
        for where, item in _items(mirror.get("blockedImages"), f"{place}: blockedImages", draft)
        for pattern in _patterns(_mapping(item, where).get("name"), where, draft)
    ]
    images = _items(mirror.get("additionalImages"), f"{place}: mirror.additionalImages", draft)
    for where, item in images:
        image = _mapping(item, where)
        source = _reference(image.get("name"), where)
        if any(pattern.search(str(source)) for pattern in blocked):
            draft.note(f"{where}: {source} is left out by blockedImages")
            continue
        target = None
        if image.get("targetRepo") or image.get("targetTag"):
            tag = image.get("targetTag") or source.tag
            repository = image.get("targetRepo") or source.repository
            target = _reference(
                f"{source.host}/{_shown(repository)}" + (f":{_shown(tag)}" if tag else ""), where
            )
        platforms = _platforms(image.get("platforms"), f"{where}.platforms", draft)
        draft.want(Wanted(source, target, platforms=platforms, origin=where))


def _read_zarf(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    for where, item in _items(document.get("components"), f"{place}: components", draft):
        component = _mapping(item, where)
        for at, text in _items(component.get("images"), f"{where}.images", draft):
            draft.want(_image(text, at))
        for at, archive in _items(component.get("imageArchives"), f"{where}.imageArchives", draft):
            draft.note(
                f"{at}: give {_shown(_mapping(archive, at).get('path'))} as a source of its own"
            )
        for key in ("charts", "manifests", "repos", "files", "dataInjections", "actions"):
            if component.get(key):
                draft.note(f"{where}.{key}: not images, not carried")


def _read_regsync(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    if document.get("version") != 1:
        raise ListInvalid(
            f"{place}: regsync version {_shown(document.get('version'))} is not known, use 1"
        )
    for where, item in _items(document.get("creds"), f"{place}: creds", draft):
        entry = _mapping(item, where)
        if entry.get("user"):
            _keep_credentials(entry.get("registry"), entry, ("user", "pass"), where, draft)
        tls = entry.get("tls", "enabled")
        if tls not in ("enabled", "insecure", "disabled"):
            raise ListInvalid(f"{where}: tls: expected enabled, insecure or disabled")
        if tls != "enabled":
            trust = Trust(tls == "disabled", tls == "insecure", "", where)
            draft.trust[canonical_host(str(entry.get("registry")))] = trust
        for key in sorted({"regcert", "clientCert", "clientKey", "mirrors"} & entry.keys()):
            draft.note(f"{where}: {key} has no effect; use --ca FILE or --upstream HOST=URL")
    defaults = _mapping(document.get("defaults"), f"{place}: defaults")
    for where, item in _items(document.get("sync"), f"{place}: sync", draft):
        entry = {**defaults, **_mapping(item, where)}
        for key in sorted({"schedule", "interval", "backup"} & entry.keys()):
            draft.note(f"{place}: {key} has no effect: images are copied once, now")
        if any("{{" in (_text_or_none(entry.get(key)) or "") for key in ("source", "target")):
            raise ListInvalid(f"{where}: templates are not rendered; write the references out")
        kind = entry.get("type")
        tags = _mapping(entry.get("tags"), f"{where}.tags")
        platforms = entry.get("platforms") or entry.get("platform")
        wanted = Wanted(
            _name(entry.get("source"), where),
            _name(entry["target"], where) if entry.get("target") else None,
            platforms=_platforms(platforms, f"{where}.platforms", draft),
            referrers=bool(entry.get("referrers", True) or entry.get("digestTags")),
            origin=where,
        )
        if kind == "image":
            target = _reference(entry["target"], where) if entry.get("target") else None
            source = _reference(entry.get("source"), where)
            draft.want(replace(wanted, source=source, target=target))
        elif kind == "repository":
            keys = ("allow", "deny", "semverRange")
            allow, deny = (_patterns(tags.get(k), f"{where}.tags.{k}", draft) for k in keys[:2])
            ranges = _ranges(tags.get(keys[2]), f"{where}.tags.{keys[2]}", draft)
            selection = TagFilter(allow=allow, deny=deny, semver=ranges)
            draft.want(replace(wanted, tags=selection))
        else:
            raise ListInvalid(
                f"{where}: type {_shown(kind)} cannot be done; list each repository with "
                "type: repository"
            )


def _keep_credentials(
    host: object, entry: dict[Any, Any], keys: tuple[str, str], place: str, draft: _Draft
) -> None:
    user, password = (entry.get(key) for key in keys)
    if not all(isinstance(text, str) for text in (host, user, password)):
        raise ListInvalid(f"{place}: expected the registry, {keys[0]} and {keys[1]} as text")
    if "{{" in f"{user}{password}":
        raise ListInvalid(f"{place}: templates are not rendered; log in with docker login instead")
    draft.credentials[canonical_host(str(host))] = (str(user), str(password))


def _is_skopeo_host(value: object) -> bool:
    keys = {"images", "images-by-tag-regex", "images-by-semver"}
    return isinstance(value, dict) and bool(keys & value.keys())


def _read_skopeo(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    for host, settings in document.items():
        where = f"{place}: {host}"
        directory = settings.get("cert-dir") or ""
        if not isinstance(directory, str):
            raise ListInvalid(f"{where}: cert-dir: expected a path, found {_kind(directory)}")
        trust = Trust(False, settings.get("tls-verify") is False, directory, where)
        if trust.unverified or trust.directory:
            draft.trust[canonical_host(str(host))] = trust
        credentials = _mapping(settings.get("credentials"), f"{where}: credentials")
        if credentials.get("username"):
            _keep_credentials(host, credentials, ("username", "password"), where, draft)
        for repository, tags in _mapping(settings.get("images"), f"{where}: images").items():
            at = f"{where}: images: {repository}"
            exact = _strings(tags, at, draft)
            source = _name(f"{host}/{repository}", at)
            if not exact:
                draft.want(Wanted(source, tags=TagFilter(), origin=at))
            for tag in exact:
                mark = "@" if ":" in tag else ":"
                draft.want(_image(f"{host}/{repository}{mark}{tag}", at))
        by_regex = _mapping(settings.get("images-by-tag-regex"), f"{where}: images-by-tag-regex")
        for repository, pattern in by_regex.items():
            at = f"{where}: images-by-tag-regex: {repository}"
            # skopeo searches, it does not match the whole tag.
            allow = tuple(f".*(?:{one}).*" for one in _patterns(pattern, at, draft))
            source = _name(f"{host}/{repository}", at)
            draft.want(Wanted(source, tags=TagFilter(allow=allow), origin=at))
        by_semver = _mapping(settings.get("images-by-semver"), f"{where}: images-by-semver")
        for repository, found in by_semver.items():
            at = f"{where}: images-by-semver: {repository}"
            ranges = _ranges(found, at, draft)
            source = _name(f"{host}/{repository}", at)
            draft.want(Wanted(source, tags=TagFilter(semver=ranges), origin=at))


def _syncer_rules(document: dict[Any, Any]) -> dict[Any, Any]:
    rules = document.get("images")
    return rules if isinstance(rules, dict) else document


def _is_sync_target(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    )


def _read_image_syncer(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    for source, targets in _syncer_rules(document).items():
        where = f"{place}: {source}"
        if not isinstance(source, str):
            raise ListInvalid(f"{where}: expected an image reference, found {_kind(source)}")
        for target in _strings(targets, where, draft):
            for one in _syncer_sources(source, where):
                draft.want(replace(one, target=_name(target, where)))


def _syncer_sources(text: str, place: str) -> Iterator[Wanted]:
    """``name``, ``name:tag,tag``, ``name:/pattern/`` and ``name@digest``."""
    name, slash, pattern = text.partition(":/")
    if slash and pattern.endswith("/"):
        allow = _pattern(pattern[:-1], place)
        yield Wanted(_name(name, place), tags=TagFilter(allow=(allow,)), origin=place)
        return
    first, *others = text.split(",")
    found = _name(first, place)
    if found.tag is None and found.digest is None:
        yield Wanted(found, tags=TagFilter(), origin=place)
        return
    yield Wanted(found, origin=place)
    for tag in others:
        yield Wanted(_name(f"{found.host}/{found.repository}:{tag}", place), origin=place)


def _read_compose(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    for name, service in document["services"].items():
        where = f"{place}: services.{name}"
        image = _mapping(service, where).get("image")
        if image is None:
            draft.note(f"{where}: built, not pulled: it has no image")
        elif "$" in (_text_or_none(image) or ""):
            raise ListInvalid(f"{where}: run docker compose config first: {image} has a variable")
        else:
            draft.want(_image(image, where))


def _read_kustomization(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    draft.note(
        f"{place}: lists only the images it changes; for all of them give the output of "
        "kustomize build"
    )
    for where, item in _items(document.get("images"), f"{place}: images", draft):
        image = _mapping(item, where)
        (name,) = _strings(image.get("newName") or image.get("name"), where, draft) or ("",)
        marks = (("digest", "@"), ("newTag", ":"))
        ends = (f"{m}{e}" for k, m in marks for e in _strings(image.get(k), f"{where}.{k}", draft))
        draft.want(_image(name + next(ends, ""), where))


def _read_chart(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    annotations = _mapping(document.get("annotations"), f"{place}: annotations")
    texts = [(key, annotations[key]) for key in _HELM_IMAGES if annotations.get(key)]
    if not texts:
        raise ListInvalid(
            f"{place}: chart {_shown(document['name'])} does not say which images it uses; give "
            "the output of helm template instead"
        )
    for key, text in texts:
        where = f"{place}: annotations.{key}"
        if not isinstance(text, str):
            raise ListInvalid(f"{where}: expected text, found {_kind(text)}")
        for document_ in _documents(text, where):
            for at, item in _items(document_, where, draft):
                image = item if isinstance(item, str) else _mapping(item, at).get("image")
                draft.want(_image(image, at))


_NO_IMAGES_IN = {"ConfigMap", "Secret", "CustomResourceDefinition"}


def _read_kubernetes(document: dict[Any, Any], place: str, draft: _Draft) -> None:
    """Every container's image, wherever a resource keeps its pod template.

    Any ``image`` counts: operators' own resources name images in places of their own. So do
    ``RELATED_IMAGE_`` variables and volumes of type image.
    """
    waiting: list[tuple[str, Any]] = [(place, document)]
    while waiting:
        where, value = waiting.pop()
        draft.visit(place)
        if isinstance(value, list):
            waiting += [(f"{where}[{i}]", item) for i, item in enumerate(value)][::-1]
        elif isinstance(value, dict):
            kind = _text_or_none(value.get("kind"))
            if kind and "apiVersion" in value:
                if kind in _NO_IMAGES_IN:
                    continue
                metadata = value.get("metadata")
                name = metadata.get("name") if isinstance(metadata, dict) else None
                where = f"{place}: {kind}/{_text_or_none(name) or 'without a name'}"
            for text in _images_of(value):
                _want_found(text, where, draft)
            waiting += [(f"{where}.{key}", item) for key, item in value.items()][::-1]


def _images_of(value: dict[Any, Any]) -> Iterator[str]:
    image = value.get("image")
    if isinstance(image, str):
        yield image
    elif isinstance(image, dict):
        keys = ("reference", "registry", "repository", "digest", "tag")
        reference, registry, repository, digest, tag = (_text_or_none(image.get(k)) for k in keys)
        if reference:  # a volume of type image
            yield reference
        elif repository and (digest or tag):
            name = f"{registry}/{repository}" if registry else repository
            yield f"{name}@{digest}" if digest else f"{name}:{tag}"
    variable = value.get("name")
    if isinstance(variable, str) and variable.startswith("RELATED_IMAGE_"):
        related = value.get("value")
        if isinstance(related, str):
            yield related


def _want_found(text: str, place: str, draft: _Draft) -> None:
    if not text.strip():
        return
    try:
        draft.want(_image(text, place))
    except ListInvalid as error:
        # Not every field called image holds a reference.
        draft.note(f"{error}; passed over")
