"""Credentials in URLs: they come from the environment and are never written. A URL names them as `${NAME}`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pfcluster.config.validation import ConfigError
from pfcluster.system.credentials import VARIABLE, hide_credentials


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
