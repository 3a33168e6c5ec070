"""Small contents from servers, kept on this machine by their hash."""

import contextlib
from pathlib import Path

from self_reward import files
from self_reward.errors import UserError


class Cache:
    """Contents in `folder`, by name. Only a cache: what it cannot keep, as on a full disk, is fetched again."""

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """The content that was kept as `name`; half of it where a machine lost its power, so check it."""
        try:
            return self._path(name).read_bytes()
        except OSError:
            return None

    def keep(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError, UserError):  # UserError: a file system without locks
            files.write_whole(self._path(name), content, durable=False)

    def _path(self, name: str) -> Path:
        return self._folder / name[-2:] / name
