"""How the packages of an extra of pyproject.toml are installed."""


def install_command(extra: str) -> str:
    """The command for messages about a missing package, to be run in the checkout."""
    return f"pip install -e '.[{extra}]'"
