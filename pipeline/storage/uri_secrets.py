"""Refuses URIs with secrets in settings, which are written to storage in every run's manifest.

    s3://KEY:SECRET@bucket/prompts     refused: they belong in the environment or the machine's role

Only texts with `://` are checked: others are paths, names or prose.
"""

from __future__ import annotations

import re
from typing import Any

HOST = re.compile(r"([^:@/]+@)?(\[[^\]]*\]|[^:@/]*)(:\d+)?")
"""What may stand between `://` and the next slash. A name alone before the @ is not a secret:
abfs:// has its container there, hdfs:// the user."""
KEY_ID_SCHEMES = ("s3", "s3a", "s3n")
"""Where even a name alone before the @ is the half of a key pair."""
SECRET_PARAMETER = re.compile(
    r"secret|passw|token|credential|signature|(access|account|api|shared)[-_]?key|^key$|^sig$",
    re.IGNORECASE,
)
HIDDEN = "***"
FIX = (
    "would be written into the run's manifest. Leave it out, and give it by the environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), a profile, or "
    "the machine's role"
)


def refuse_secret(name: str, value: Any) -> None:
    """ValueError, without the secret in it, where a setting's URI carries one. name: as the user
    knows it."""
    if isinstance(value, str) and hidden(value) != value:
        raise ValueError(f"{name}: {hidden(value)} carries a secret, which {FIX}")


def hidden(uri: str) -> str:
    """A URI with its secrets hidden; the same text where it has none or is not a URI."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return uri
    # A secret key that was not percent-encoded may hold any character, / and ? too: what is not a
    # host up to the first slash is hidden up to the last @.
    host = rest.partition("/")[0].partition("?")[0]
    keys = scheme.lower() in KEY_ID_SCHEMES and "@" in host
    if keys or not HOST.fullmatch(host):
        rest = HIDDEN + rest[max(rest.rfind("@"), 0) :] if "@" in rest else HIDDEN
    path, question, query = rest.partition("?")
    parts = re.split(r"([&;#])", query)
    return f"{scheme}://{path}{question}{''.join(_hidden_parameter(part) for part in parts)}"


def _hidden_parameter(part: str) -> str:
    name, equals, value = part.partition("=")
    return f"{name}={HIDDEN}" if equals and value and SECRET_PARAMETER.search(name) else part
