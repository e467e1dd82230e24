"""A Hugging Face hub: files of some commits of one repository, with the headers of the real one.

Small files are known by git's name of the blob, large ones (`lfs`) by their SHA-256; ranges are
served, so that a download can go on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

from feature_pipeline_tests.providers.server import Answer, Handler, Request

LFS = ("model.safetensors", "pytorch_model.bin")


def blob(content: bytes) -> str:
    """Git's name of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def routes(
    repository: str,
    commits: Mapping[str, Mapping[str, bytes]],
    refs: Mapping[str, str] | None = None,
    served: Callable[[Request, str, bytes], bytes] = lambda _, __, content: content,
) -> dict[str, Handler]:
    """What a hub answers below `/OWNER/NAME/resolve/REVISION/FILE`.

    Args:
        repository: OWNER/NAME.
        commits: commit -> file -> content.
        refs: branch or pull request -> commit.
        served: what is sent in the place of a file's content; told the request and the file.
    """

    def resolve(request: Request) -> Answer:
        match = re.fullmatch(
            rf"/{repository}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", request.path
        )
        revision = unquote(match["revision"])
        commit = (refs or {}).get(revision, revision)
        if commit not in commits:
            return Answer(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        content = commits[commit].get(match["file"])
        said = {"X-Repo-Commit": commit}
        if content is None:
            return Answer(404, {"error": "no"}, said | {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        if match["file"] in LFS:
            said |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            said["ETag"] = '"of-the-pointer"'
        else:
            said["ETag"] = f'"{blob(content)}"'
        said["Accept-Ranges"] = "bytes"
        return _ranged(request, served(request, match["file"], content), said)

    return {
        f"/{repository}/": resolve,
        "/": lambda _: Answer(401, {"error": "no"}, {"X-Error-Code": "RepoNotFound"}),
    }


def files_of(directory: Path) -> dict[str, bytes]:
    """A model's directory as a commit."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def _ranged(request: Request, content: bytes, said: Mapping[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, content, said)
    first, size = int(asked[1]), len(content)
    if first >= size:
        return Answer(416, b"", said)
    return Answer(
        206, content[first:], {**said, "Content-Range": f"bytes {first}-{size - 1}/{size}"}
    )
