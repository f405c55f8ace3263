"""IMAGES.txt and the list of nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.registry.address import canonical_address
from mayfly.registry.coverage.upgrade_lists import parse_image, read_images, read_nodes
from mayfly.registry.settings.errors import ConfigError
from tests.support.fakes import digest

D = digest("x")
OWN = ("127.0.0.1:5000", "mayfly.local")


@pytest.mark.parametrize(
    ("text", "repositories", "reference"),
    [
        ("nginx", ["library/nginx", "nginx"], "latest"),
        ("nginx:1.25", ["library/nginx", "nginx"], "1.25"),
        ("team/app:1", ["team/app"], "1"),
        ("docker.io/nginx:1", ["docker.io/library/nginx", "library/nginx"], "1"),
        ("docker.io/library/nginx:1", ["docker.io/library/nginx", "library/nginx"], "1"),
        ("index.docker.io/library/nginx:1", ["docker.io/library/nginx", "library/nginx"], "1"),
        ("quay.io/a/b/c:v2", ["quay.io/a/b/c", "a/b/c"], "v2"),
        ("registry:5001/a/b:v2", ["registry:5001/a/b", "a/b"], "v2"),
        ("localhost/a:v2", ["localhost/a", "a"], "v2"),
        ("[::1]:5000/a:v2", ["[::1]:5000/a", "a"], "v2"),
        ("127.0.0.1:5000/nginx:1", ["nginx"], "1"),
        ("mayfly.local/a/b", ["a/b"], "latest"),
        (f"quay.io/a@{D}", ["quay.io/a", "a"], D),
        (f"quay.io/a:v1@{D}", ["quay.io/a", "a"], D),
        ("123/app:1", ["123/app"], "1"),
    ],
)
def test_image(text: str, repositories: list[str], reference: str) -> None:
    """Names are completed by docker's rules; a digest wins over a tag; the own host is removed."""
    image = parse_image(text, OWN)
    assert list(image.repositories()) == repositories
    assert (image.digest or image.tag) == reference
    assert not (image.digest and image.tag)


@pytest.mark.parametrize(
    "text", ["", "team/UPPER", "a b", "a:", "a@", "a@sha256:12", "a@md5:00", "/a", "a//b", "-a:1"]
)
def test_image_refused(text: str) -> None:
    """An invalid image name is refused with a reason."""
    with pytest.raises(ValueError, match=r".+"):
        parse_image(text)


def test_images_file(tmp_path: Path) -> None:
    """Comments and blank lines are skipped, and an image listed twice counts once."""
    path = tmp_path / "IMAGES.txt"
    path.write_text("# the upgrade\n\nnginx:1  # web\n  quay.io/a/b:v2\nnginx:1\n")
    assert [image.text for image in read_images(path)] == ["nginx:1", "quay.io/a/b:v2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# nothing\n", "lists no image"),
        ("nginx\nUPPER:1\n", "line 2"),
        ("\n" + "a:1\n" * 10_001, "lists more than"),
    ],
)
def test_images_file_refused(tmp_path: Path, content: str, says: str) -> None:
    """An invalid file is reported in one line with the file and line number."""
    path = tmp_path / "IMAGES.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as raised:
        read_images(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_file_missing_or_binary(tmp_path: Path) -> None:
    """A file that is missing or not text is named."""
    with pytest.raises(ConfigError, match="No such file"):
        read_images(tmp_path / "none")
    (tmp_path / "tar").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_images(tmp_path / "tar")


def test_nodes(tmp_path: Path) -> None:
    """A number, or a file of names and addresses in any of their forms."""
    assert read_nodes("3").count == 3
    path = tmp_path / "nodes"
    path.write_text("node-a\n10.0.0.7 # the second\n::ffff:10.0.0.7\nFE80::0:1\n")
    nodes = read_nodes(str(path))
    assert nodes.names == ("node-a", "10.0.0.7", "fe80::1")
    assert nodes.count == 3


@pytest.mark.parametrize(
    "line",
    [
        "node-a node-b",
        "node-a,node-b",
        "node-a;node-b",
        "node-a\tworker",
        "node\x1b-a",
        "shop/web:2",
    ],
)
def test_nodes_of_one_line_refused(tmp_path: Path, line: str) -> None:
    """Names beside each other, or an image's, would be a node that never comes."""
    path = tmp_path / "nodes"
    path.write_text(f"# all\nnode-c\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 3: .* is not the name of a node"):
        read_nodes(str(path))


def test_byte_order_mark(tmp_path: Path) -> None:
    """Lists that an editor of Windows wrote name the same nodes and images as others."""
    path = tmp_path / "list"
    path.write_bytes(b"\xef\xbb\xbfnode-a\r\nnode-b\r\n")
    assert read_nodes(str(path)).names == ("node-a", "node-b")
    assert [image.text for image in read_images(path)] == ["node-a", "node-b"]


@pytest.mark.parametrize("text", ["0", "10001", "no-such-file", "-1"])
def test_nodes_refused(text: str) -> None:
    """Neither a number above 0 nor a file."""
    with pytest.raises(ConfigError, match="--nodes"):
        read_nodes(text)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("FE80:0::1%eth0", "fe80::1"),
        ("10.0.0.7", "10.0.0.7"),
        ("node-a", "node-a"),
    ],
)
def test_plain(address: str, shown: str) -> None:
    """An address has one canonical form; a name is unchanged."""
    assert canonical_address(address) == shown
