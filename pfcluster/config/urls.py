"""Credentials in URLs: they come from the environment and are never written. A URL names them as `${NAME}`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pfcluster.config.validation import ConfigError

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


def refuse_credentials(field: str, url: str) -> None:
    """Raises ConfigError, without quoting the credentials, if a URL holds any: configs, results and logs record it."""
    if hide_credentials(url) != url:
        raise ConfigError(
            f"{field} {hide_credentials(url)} holds credentials, which would be written into configs, results and logs:"
            " put them into an environment variable and name it, e.g. 'https://${SHARDS_LOGIN}@host/folder'"
        )


def with_variables(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The URL with the values of the environment variables that it names as `${NAME}`.

    Raises ConfigError if one of them is not set.
    """
    missing = [name for name in VARIABLE.findall(url) if name not in environment]
    if missing:
        raise ConfigError(f"{url} needs the environment variable {missing[0]}, which is not set; export it first")
    return VARIABLE.sub(lambda match: environment[match[1]], url)


def _hidden(login: str) -> str:
    """`***`, unless the password, or the whole login where it has none, consists of variables."""
    name, colon, password = login.partition(":")
    return HIDDEN if VARIABLE.sub("", password if colon else name) else login
