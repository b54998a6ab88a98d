"""Bitmaps of a page: within it as data: URIs while they are few, else as files beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pfcluster.report.errors import ReportError
from pfcluster.system.atomic_files import write_atomically

MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
MAX_INLINE_BYTES = 8 << 20
"""Bytes of pictures that a page contains; further ones are files beside it."""
FILES_SUFFIX = "_files"
"""A page's folder of those files is named after it: report_files/ of report.html; they are named by their content."""
OWN_NAME = re.compile(r"[0-9a-f]{20}\.(png|jpe?g|webp)")


@dataclass(frozen=True)
class Picture:
    """A bitmap on a page."""

    uri: str
    """A data: URI, or a path relative to the page."""
    caption: str


@dataclass(frozen=True)
class PictureFile:
    """A bitmap that is to be shown on a page."""

    folder: Path
    file: str
    """Path relative to the folder."""
    caption: str


class PagePictures:
    """The pictures of one page. Pages of different names can lie in one folder."""

    def __init__(self, page: Path) -> None:
        """page: the HTML file, which need not exist yet."""
        self._files = page.with_name(f"{page.stem}{FILES_SUFFIX}")
        self._inlined = 0
        self._beside: set[str] = set()

    def uri(self, folder: Path, relative_path: str) -> str:
        """URI of a picture of a run. Raises ReportError if it is missing, outside the folder, or not a bitmap, or
        cannot be copied beside the page.
        """
        file = (folder / relative_path).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise ReportError(f"the picture {relative_path} is outside the run folder {folder}; it is omitted")
        mime_type = MIME_TYPES.get(file.suffix.lower())
        if mime_type is None:
            raise ReportError(f"the picture {file} is not one of {', '.join(MIME_TYPES)}; it is omitted")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ReportError(f"the picture {file} cannot be read: {error.strerror}; it is omitted") from error
        if self._inlined + len(content) <= MAX_INLINE_BYTES:
            self._inlined += len(content)
            return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
        return self._copy(content, file.suffix.lower())

    def picture(self, one: PictureFile) -> Picture:
        """The picture with its URI. Raises ReportError as `uri`."""
        return Picture(self.uri(one.folder, one.file), one.caption)

    def _copy(self, content: bytes, suffix: str) -> str:
        """Write a picture beside the page, once; its path relative to the page."""
        target = self._files / f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
        if target.name not in self._beside:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, content)
            except OSError as error:
                raise ReportError(f"cannot write {target}: {error.strerror}; use another output folder") from error
            self._beside.add(target.name)
        return f"{self._files.name}/{target.name}"

    def remove_outdated(self) -> None:
        """Remove pictures that an earlier version of the page had beside it."""
        for path in self._files.iterdir() if self._files.is_dir() else ():
            if OWN_NAME.fullmatch(path.name) and path.name not in self._beside:
                path.unlink(missing_ok=True)
        if not self._beside and self._files.is_dir() and not any(self._files.iterdir()):
            self._files.rmdir()
