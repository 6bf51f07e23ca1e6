"""Fetching edit sets from the Hugging Face Hub, at a commit that is always known.

Files are taken as they are published and read by the same code as local ones: Arrow tables would refuse or bend the
mixed types that several sets contain. Only sets that are published as tables come through `load_dataset`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roseedit.editsets.fields import Record
from roseedit.errors import DataError, refusal

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource:
    """Where an edit set is on the Hub.

    Attributes:
        repo: Data-set repository, or a local folder of the same layout.
        files: Per split the JSON file in the repository; None for a split that is published as a table.
        revision: Commit that is taken unless another one is asked for; None takes the newest and says which it was.
    """

    repo: str
    files: Mapping[str, str | None]
    revision: str | None = None

    @property
    def default_split(self) -> str:
        """The split that is fetched unless another one is named."""
        return next(iter(self.files))


def resolve_revision(source: HubSource, revision: str | None) -> str:
    """The commit to read.

    Args:
        source: Where the set is.
        revision: A commit, branch or tag; None for the set's own commit, or else the newest one.

    Returns:
        A full commit; `"local"` for a folder.

    Raises:
        DataError: The Hub does not know it or cannot be reached.
    """
    if Path(source.repo).is_dir():
        return "local"
    wanted = revision or source.revision
    if wanted and _COMMIT.fullmatch(wanted):
        return wanted
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.repo, revision=wanted).sha
    except Exception as error:  # the hub client raises many kinds: offline, not found, gated
        raise DataError(_failed(source, wanted or "the newest commit", error)) from error
    return str(commit)


def fetch_file(source: HubSource, split: str, commit: str) -> Path:
    """Fetch one published file through the cache of `datasets`.

    Args:
        source: Where the set is.
        split: One of its splits that is a file.
        commit: From `resolve_revision`.

    Returns:
        The local copy.

    Raises:
        DataError: It cannot be fetched.
    """
    name = source.files[split]
    if commit == "local":
        return Path(source.repo) / str(name)
    from datasets import DownloadManager

    try:
        return Path(str(DownloadManager().download(f"hf://datasets/{source.repo}@{commit}/{name}")))
    except Exception as error:
        raise DataError(_failed(source, commit, error)) from error


def fetch_table(source: HubSource, split: str, commit: str) -> tuple[list[Record], str]:
    """Fetch one published table.

    Args:
        source: Where the set is.
        split: One of its splits that is a table.
        commit: From `resolve_revision`.

    Returns:
        The rows, and a SHA-256 over their JSON.

    Raises:
        DataError: It cannot be fetched.
    """
    from datasets import load_dataset

    try:
        table = load_dataset(source.repo, split=split, revision=None if commit == "local" else commit)
    except Exception as error:
        raise DataError(_failed(source, commit, error)) from error
    rows: list[Record] = [dict(row) for row in table]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False, default=str)
    return rows, hashlib.sha256(text.encode()).hexdigest()


def _failed(source: HubSource, revision: str, error: Exception) -> str:
    got = f"no answer for {source.repo} at {revision} ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
    remedy = "Check the network and the revision, or fetch the file by other means and pass path=..."
    return refusal(got, "a data set on the Hugging Face Hub", remedy)
