"""Credentials in URLs are never written; `***` takes their place. Those that a URL names as `${NAME}` stay."""

from __future__ import annotations

import re

CREDENTIALS = re.compile(r"(?<![\w+.-])([A-Za-z][A-Za-z0-9+.-]*://)([^/\s'\"<>]+)@")
"""Scheme, and user name with password, of a URL."""
QUERY_SECRET = re.compile(
    r"([?&;](?:[\w.-]*(?:token|secret|signature|credential|password|passwd|api[-_]?key|access[-_]?key)[\w.-]*"
    r"|sig|key|auth)=)(?!\$\{)[^&\s'\"<>]+",
    re.IGNORECASE,
)
"""Name of a URL's query parameter that holds a secret, and its value."""
VARIABLE = re.compile(r"\$\{(\w+)\}")
HIDDEN = "***"


def hide_credentials(text: str) -> str:
    """The text with the credentials of all URLs in it replaced by `***`; those named as `${NAME}` stay."""
    text = CREDENTIALS.sub(lambda match: f"{match[1]}{_hidden(match[2])}@", text)
    return QUERY_SECRET.sub(rf"\g<1>{HIDDEN}", text)


def _hidden(login: str) -> str:
    """`***`, unless the password, or the whole login where it has none, consists of variables."""
    name, colon, password = login.partition(":")
    return HIDDEN if VARIABLE.sub("", password if colon else name) else login
