"""Walk a folder tree through symbolic links."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_VISITS = 8
"""A folder that links reach more often ends the walk: links to links may multiply without end."""


def walk_through_links(
    root: Path, on_error: Callable[[OSError], None], on_loop: Callable[[Path], None] = lambda link: None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, with links followed. A link to one of its own parent folders is passed to `on_loop`, not followed.

    `on_error`: called for a folder that cannot be listed. Raises OSError (ELOOP) if links lead to a folder more than
    MAX_VISITS times.
    """
    chains: dict[str, tuple[tuple[int, int], ...]] = {}
    """Device and inode of a folder and of its parents, by the path of the walk."""
    visits: Counter[tuple[int, int]] = Counter()
    for folder, below, files in os.walk(root, followlinks=True, onerror=on_error):
        try:
            status = os.stat(folder)
        except OSError as error:
            on_error(error)
            continue
        chain = (*chains.get(os.path.dirname(folder), ()), (status.st_dev, status.st_ino))
        chains[folder] = chain
        for name in list(below):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                target = os.stat(path)
                identity = (target.st_dev, target.st_ino)
                visits[identity] += 1
                if identity in chain:
                    below.remove(name)
                    on_loop(Path(path))
                elif visits[identity] > MAX_VISITS:
                    raise OSError(errno.ELOOP, f"links lead to {os.path.realpath(path)} more than {MAX_VISITS} times")
        yield Path(folder), below, files
