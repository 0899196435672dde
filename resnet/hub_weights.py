"""Files of weights on huggingface.co, and those of them that its cache on this machine holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from recipes.schema.model import HUB
from recipes.text import listed
from resnet.run_weights import ENDINGS

_USUAL = ("model.safetensors", "pytorch_model.bin")
"""Names that most repositories have; timm's have both."""


def fetched(source: str) -> Path:
    """The file of weights of a repository, downloaded into the cache of huggingface_hub where it is not there.

    source: hf_hub:OWNER/REPO, with @REVISION for a branch, tag or commit. What the cache holds is taken as it is.
    Raises ValueError where there is no such file, which of several is meant is not known, or it cannot be fetched.
    """
    repo, _, revision = source.removeprefix(HUB).partition("@")
    return _cached(repo, revision or None) or _downloaded(repo, revision or None)


def commit_note(source: str, file: Path) -> list[str]:
    """Which commit of a repository the file that was `fetched` is of, where the source does not say it."""
    repo, _, revision = source.partition("@")
    commit = file.parent.name
    return [] if commit == revision else [f"of commit {commit} ({repo}@{commit} keeps to it)"]


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Of no patterns: the folder, whatever it lacks.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    name = _chosen(repo, (file.name for file in folder.iterdir()))
    return folder / name if name else None


def _downloaded(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download

    try:
        files = HfApi().list_repo_files(repo, revision=revision)
    except Exception as error:
        raise ValueError(_cannot_fetch(repo, revision, error, constants.HF_HUB_CACHE)) from error
    if (name := _chosen(repo, files)) is None:
        raise ValueError(f"{repo} has no file of weights ({', '.join(ENDINGS)})")
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:
        raise ValueError(_cannot_fetch(repo, revision, error, constants.HF_HUB_CACHE)) from error


def _chosen(repo: str, files: Iterable[str]) -> str | None:
    """The file of weights among those at the top of a repository."""
    weights = sorted(name for name in files if "/" not in name and PurePosixPath(name).suffix in ENDINGS)
    if usual := next((name for name in _USUAL if name in weights), None):
        return usual
    if len(weights) > 1:
        raise ValueError(
            f"{repo} has several files of weights ({listed(weights)}): run `hf download {repo} FILE` for the one "
            "that is meant, and give its path"
        )
    return weights[0] if weights else None


def _cannot_fetch(repo: str, revision: str | None, error: Exception, cache: str) -> str:
    # Of its own kinds, of its HTTP client's, and of the system's.
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    at = f" --revision {revision}" if revision else ""
    return (
        f"it is not in {cache} and could not be fetched ({why}): run `hf download {repo}{at}` where there is internet, "
        "or give the path of a file"
    )
