"""The line that downloads a node's script, checks it, and runs it.

The registry's CA is not on the node yet, so nothing verifies the connection: the SHA-256 in the
line verifies the script. Curl is also told the key that the server must have, so that nobody in
the middle reads the script and the credential in it; an old curl and busybox's wget cannot do that.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
from urllib.parse import urlsplit

from mayfly.registry.nodes.script import quote
from mayfly.registry.nodes.target import Target

_SECONDS = 10.0
_HTTPS = 443

# `u` is the URL, `s` the SHA-256 of the script, `p` the pin. curl and GNU wget read the URL from
# their standard input, since others see the arguments of programs. Exit codes 2 and 4 of curl: it
# does not know the option, or was built without it. The file has no name when it runs: no secret
# stays on the disk.
_LINE = (
    "(umask 077; {values}; f=$(mktemp) || exit 1; trap 'rm -f \"$f\"' EXIT; "
    'c() {{ printf \'url = "%s"\\n\' "$u" | curl -qfsSk "$@" -K - -o "$f"; }}; '
    "w() {{ if wget --version 2>&1 | grep -q '^GNU'; "
    'then printf \'%s\\n\' "$u" | wget -q --no-check-certificate -O "$f" -i -; '
    'else wget -q --no-check-certificate -O "$f" "$u" || wget -q -O "$f" "$u"; fi; }}; '
    'if command -v curl >/dev/null; then if [ -n "$p" ]; '
    'then c --pinnedpubkey "$p"; e=$?; case $e in 2|4) c; e=$?;; esac; else c; e=$?; fi; '
    "else w; e=$?; fi; "
    '[ "$e" = 0 ] && [ "$(sha256sum <"$f" | cut -c 1-64)" = "$s" ] || '
    "{{ echo 'mayfly: the script did not arrive, or was changed on its way; nothing was run. "
    "If this line was not used before, someone else may have downloaded the script: end its "
    "credential with a new signing key, then print a new line' >&2; exit 1; }}; "
    'exec 3<"$f"; rm -f "$f"; trap - EXIT; sh -s <&3)\n'
)


def download_line(target: Target, token: str, script: bytes, pin: str) -> str:
    """Return the line, which ends in a newline.

    Args:
        target: the registry.
        token: of the script (`state.scripts`).
        script: its bytes.
        pin: of the server's key, as curl takes it; "" for none.
    """
    values = {
        "u": f"{target.url}/mayfly/v1/scripts/{token}",
        "s": hashlib.sha256(script).hexdigest(),
        "p": pin,
    }
    assigned = "; ".join(f"{name}={quote(value)}" for name, value in values.items())
    return _LINE.format(values=assigned)


def pin_of(target: Target) -> str:
    """Return the SHA-256 of the server's public key in curl's form; "" without TLS.

    Raises:
        OSError: the server cannot be asked, or its certificate is not signed by the target's CA.
    """
    if not target.tls:
        return ""
    # Imported only where a certificate is looked at.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    context = ssl.create_default_context(cadata=target.ca.decode() if target.ca else None)
    where = urlsplit(target.url)
    host = where.hostname or ""
    address = host, where.port or _HTTPS
    with (
        socket.create_connection(address, _SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        der = secured.getpeercert(binary_form=True) or b""
    key = x509.load_der_x509_certificate(der).public_key()
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(encoded).digest()).decode()}"
