"""The edits' files, each folder under the SHA-256 of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from roseedit.edits import storage
from roseedit.errors import LedgerError, refusal

if TYPE_CHECKING:
    from roseedit.edits.edit import Edit


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files in a folder.

    Args:
        folder: Files only.

    Returns:
        64 hex digits.
    """
    own = (p for p in folder.iterdir() if not p.name.startswith(storage.TEMPORARY))
    return content_digest({p.name: p.read_bytes() if p.is_file() else b"no file" for p in own})


def content_digest(contents: Mapping[str, bytes]) -> str:
    """SHA-256 over names and contents of files.

    Args:
        contents: Contents by name.

    Returns:
        64 hex digits.
    """
    found = hashlib.sha256()
    for name in sorted(contents):
        found.update(f"{name}\0{len(contents[name])}\0".encode())
        found.update(hashlib.sha256(contents[name]).digest())
    return found.hexdigest()


class Blobs:
    """A folder of folders.

    Args:
        root: Where they lie.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, edit: Edit) -> str:
        """Write an edit's files; they are on the disk, names included, when this returns.

        Args:
            edit: The edit.

        Returns:
            The content's SHA-256, which is the folder's name. The same content is kept once.

        Raises:
            LedgerError: That folder is there and damaged.
        """
        from roseedit.edits.files import edit_files

        contents = edit_files(edit)
        digest = content_digest(contents)
        if self.path(digest).exists():
            self.check(digest)
            return digest
        storage.make_folder(self.root)
        beside = storage.temporary_name(self.root)
        try:
            storage.write_folder(beside, contents)
            storage.rename(beside, self.path(digest))
        finally:
            if beside.exists():
                storage.remove_tree(beside)
        return digest

    def path(self, digest: str) -> Path:
        """Where a folder lies."""
        return self.root / digest

    def fault(self, digest: str) -> str | None:
        """What is wrong with a folder, if anything."""
        if not self.path(digest).is_dir():
            return f"its files are gone ({digest[:12]})"
        if folder_digest(self.path(digest)) != digest:
            return f"its files were changed ({digest[:12]})"
        return None

    def check(self, digest: str) -> Path:
        """The folder, if it is as it was written.

        Args:
            digest: Its name.

        Returns:
            Its path.

        Raises:
            LedgerError: It is missing or was changed.
        """
        what = self.fault(digest)
        if what:
            message = refusal(
                f"an edit of which {what}", "the files as they were written", "Restore them from a backup."
            )
            raise LedgerError(message)
        return self.path(digest)

    def unreferenced(self, wanted: Collection[str]) -> list[Path]:
        """Folders that no entry names: left by a crash between files and entry.

        Args:
            wanted: The digests that entries name.

        Returns:
            Their paths.
        """
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.name not in wanted)
