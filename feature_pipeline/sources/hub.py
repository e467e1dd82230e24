"""Models from a Hugging Face hub: found, downloaded, checked, and put in place whole.

Through `huggingface_hub`, without a token. What is there afterwards was checked: each file against
the hash that the hub reports, the labels of the configuration, and that the model scores a
sentence. What a model is for is `finbert.py`'s.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feature_pipeline.errors import ModelError, SourceError
from feature_pipeline.sources.finbert import FinbertScorer, Release, label_columns
from feature_pipeline.sources.http import AGAIN, Limits, Politeness

ENDPOINT = "https://huggingface.co"
WEIGHTS = "model.safetensors"
NEEDED = ("config.json", "vocab.txt")
USED_IF_THERE = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
MANIFEST = "fetched.json"
"""Beside the files: where they came from, when, and their hashes."""

Told = Callable[[str, int, int], None]
"""Told the name of a file, its bytes so far and all of them."""

LIMITS = Limits(requests=60, attempts=4, wait_s=10, deadline_s=60)
"""Of a question about a file; a download has its own deadline, and goes on by itself."""

_SENTENCE = "Quarterly profit rose, and the company raised its outlook."


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub reports it.

    Args:
        name: in the repository.
        commit: that it is of, in full.
        size: bytes.
        digest: hex; of 64 digits the SHA-256 of the content, of 40 git's name of the blob.
    """

    name: str
    commit: str
    size: int
    digest: str


@dataclass(frozen=True)
class Installed:
    """What is in place.

    Args:
        model, revision: which one.
        where: its directory.
        endpoint: the hub it came from.
        fetched_at: when, UTC, ISO 8601.
        files: name -> `commit`, `size`, `sha256`.
    """

    model: str
    revision: str
    where: str
    endpoint: str
    fetched_at: str
    files: Mapping[str, Mapping[str, Any]]


def installed(release: Release, models: Path) -> Installed | None:
    """What is in place of a release, as its manifest has it; None where nothing is, or no manifest.

    Raises:
        ModelError: the manifest cannot be read.
    """
    path = release.within(models) / MANIFEST
    try:
        return Installed(**{**json.loads(path.read_text()), "where": str(path.parent)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}); delete it and run "
            "`feature-pipeline model fetch`"
        ) from error


def damaged(found: Installed) -> list[str]:
    """The files that are no longer what was fetched, by content."""
    where = Path(found.where)
    return [
        name
        for name, said in found.files.items()
        if not (where / name).is_file() or _sha256(where / name) != said["sha256"]
    ]


def fetch(
    release: Release,
    models: Path,
    *,
    endpoint: str = "",
    deadline_s: float = 3600.0,
    told: Told = lambda *_: None,
    limits: Limits = LIMITS,
) -> Installed:
    """Bring a release here, unless it is here and unharmed.

    What an earlier attempt has downloaded is used, whole files and halves. Nothing is in place
    before all of it is there and right; then it is at once.

    Args:
        release: which one.
        models: the directory of all models.
        endpoint: of the hub; `HF_ENDPOINT`, or huggingface.co, unless given.
        deadline_s: for all of it.
        told: how far it is.
        limits: of the questions about files.

    Raises:
        SourceError: the hub cannot be reached, has no such thing, or is too slow.
        ModelError: it is not what it should be.
    """
    where = release.within(models)
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", endpoint):
        # Not shown: it may hold a password, and HF_ENDPOINT nobody has just typed.
        raise SourceError(
            "the hub's endpoint must be an http(s):// address without credentials, `?` and `#`; "
            "correct --endpoint or HF_ENDPOINT"
        )
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            "the model cannot be checked without torch; install it with `pip install torch==2.13.0`"
        )
    where.parent.mkdir(parents=True, exist_ok=True)
    with _alone(where.with_suffix(".lock")):
        here = installed(release, models)
        if here is not None and not damaged(here):
            return here
        partial = where.with_name(f"{where.name}.partial")
        partial.mkdir(exist_ok=True)
        with _asking(endpoint, time.monotonic() + deadline_s, told) as watch:
            remote = _files(release, endpoint, Politeness("hub", limits))
            for file in remote:
                watch.begin(file)
                _download(release, endpoint, file, partial)
        _check(release, partial)
        done = Installed(
            release.model,
            release.revision,
            str(where),
            endpoint,
            datetime.now(UTC).isoformat(timespec="seconds"),
            {
                file.name: {
                    "commit": file.commit,
                    "size": file.size,
                    "sha256": _sha256(partial / file.name),
                }
                for file in remote
            },
        )
        (partial / MANIFEST).write_text(json.dumps(asdict(done), indent=2) + "\n")
        _put_in_place(partial, where)
    return done


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One fetch of a release at a time; the lock goes with its process."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(
                f"another fetch into {lock.parent} is under way; wait for its end"
            ) from None
        yield


# -- the hub --------------------------------------------------------------------------------------


class _Late(Exception):  # noqa: N818 - a signal of ours through the libraries in between
    """The deadline has passed."""


class _Watch:
    """Sees every piece of every answer: counts it, and ends what takes too long."""

    def __init__(self, deadline: float, told: Told) -> None:
        self._deadline, self._told = deadline, told
        self._file: RemoteFile | None = None
        self._done = 0

    def begin(self, file: RemoteFile) -> None:
        """This file is next."""
        self._file, self._done = file, 0

    def in_time(self) -> None:
        """Raises where it is too late."""
        if time.monotonic() > self._deadline:
            raise _Late

    def answered(self, response: Any) -> None:
        """An answer begins: from now on its pieces are seen."""
        from huggingface_hub.utils import httpx

        self.in_time()
        watch, stream = self, response.stream
        resumed = response.headers.get("Content-Range", "")
        first = re.match(r"bytes (\d+)-", resumed)
        self._done = int(first[1]) if first else 0

        class Seen(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                for piece in stream:
                    watch.in_time()
                    watch.got(len(piece))
                    yield piece

            def close(self) -> None:
                stream.close()

        response.stream = Seen()

    def got(self, size: int) -> None:
        """So many bytes more."""
        self._done += size
        if self._file is not None:
            self._told(self._file.name, min(self._done, self._file.size), self._file.size)


@contextmanager
def _asking(endpoint: str, deadline: float, told: Told) -> Iterator[_Watch]:
    """huggingface_hub with a watch on what it asks, and its errors in one line."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors, set_client_factory
    from huggingface_hub.utils import httpx
    from huggingface_hub.utils._http import default_client_factory

    watch = _Watch(deadline, told)

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        hooks["request"].append(lambda _: watch.in_time())
        hooks["response"].append(watch.answered)
        made.event_hooks = hooks
        return made

    set_client_factory(client)
    try:
        yield watch
    except _Late:
        raise SourceError(
            f"{endpoint} was too slow; run it again to go on, or give it a longer --deadline"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise SourceError(
            "HF_HUB_OFFLINE is set; unset it to fetch a model, or copy its directory here"
        ) from None
    except errors.HfHubHTTPError as error:
        raise SourceError(
            f"{endpoint} answered {error.response.status_code} to "
            f"{error.response.request.url.path}; run it again later"
        ) from None
    except httpx.TimeoutException:
        raise SourceError(f"{endpoint} did not answer in time; run it again to go on") from None
    except httpx.HTTPError as error:
        raise SourceError(
            f"{endpoint} cannot be reached, or broke off ({type(error).__name__}); "
            "run it again to go on"
        ) from None
    finally:
        set_client_factory(default_client_factory)


def _files(release: Release, endpoint: str, politeness: Politeness) -> list[RemoteFile]:
    """What is to be downloaded.

    Raises:
        ModelError: the hub has something else than what is pinned.
    """
    wanted = dict.fromkeys((*NEEDED, *USED_IF_THERE), (release.revision, release.revision))
    wanted[WEIGHTS] = wanted[NEEDED[0]]
    if release.weights:
        wanted[WEIGHTS] = (release.weights, release.weights_commit)
    files = []
    for name, (revision, begins) in wanted.items():
        file = _file(release.model, endpoint, revision, name, politeness)
        if file is None:
            continue
        if not file.commit.startswith(begins):
            raise ModelError(
                f"{endpoint} has {file.name} of {release.model} in commit {file.commit[:12]}, not "
                f"in {begins[:12]}, which is pinned; nothing was fetched"
            )
        files.append(file)
    return files


class _Said:
    """What the hub says of a file, as an answer."""

    status_code = 200
    headers: Mapping[str, str] = {}

    def __init__(self, about: Any) -> None:
        self.about = about


def _file(
    model: str, endpoint: str, revision: str, name: str, politeness: Politeness
) -> RemoteFile | None:
    """A file as the hub reports it; None where it has none and none is needed."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import httpx

    url = hf_hub_url(model, name, revision=revision, endpoint=endpoint)

    def send(seconds: float) -> Any:
        try:
            return _Said(get_hf_file_metadata(url, token=False, timeout=seconds))
        except errors.HfHubHTTPError as error:
            if error.response.status_code in AGAIN:
                return error.response
            raise

    try:
        said = politeness.ask(send, url, (httpx.TransportError,)).about
    except errors.RemoteEntryNotFoundError:
        if name in USED_IF_THERE:
            return None
        raise SourceError(
            f"{endpoint} has no {name} in {model} at {revision}; pickles are not used"
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{endpoint} has no revision {revision} of {model}") from None
    except errors.RepositoryNotFoundError:
        raise SourceError(f"{endpoint} has no model {model}, or hides it") from None
    digest = said.etag or ""
    if said.commit_hash is None or said.size is None or not re.fullmatch(
        r"[0-9a-f]{40}|[0-9a-f]{64}", digest
    ):  # fmt: skip
        raise SourceError(
            f"{endpoint} reports no commit, size or hash of {name}: it is no hub, or a proxy in "
            "between drops its headers"
        )
    return RemoteFile(name, said.commit_hash, said.size, digest)


def _download(release: Release, endpoint: str, file: RemoteFile, into: Path) -> None:
    """Bring one file, from where an earlier attempt ended; it has its name once it is right."""
    from huggingface_hub import errors, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils.tqdm import silent_tqdm

    target = into / file.name
    if target.is_file() and _is(target, file):
        return
    part = into / f"{file.name}.{file.digest[:16]}.incomplete"
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    url = hf_hub_url(release.model, file.name, revision=file.commit, endpoint=endpoint)
    try:
        with part.open("ab") as out:
            http_get(
                url,
                out,
                resume_size=out.tell(),
                expected_size=file.size,
                displayed_filename=file.name,
                tqdm_class=silent_tqdm,
            )
    except errors.HfHubHTTPError:
        raise
    except OSError as error:  # what came is longer or shorter than promised, or the disk is full
        had = f"after {part.stat().st_size:,} of {file.size:,} bytes"
        why = error.strerror or "it ended"
        raise SourceError(f"{file.name} from {endpoint}: {why} {had}; run it again") from error
    if not _is(part, file):
        part.unlink()
        raise ModelError(
            f"{file.name} from {endpoint} is not what the hub says it is (its hash differs); it "
            "was deleted: run it again"
        )
    part.replace(target)


# -- what came ------------------------------------------------------------------------------------


def _check(release: Release, where: Path) -> None:
    """Raise unless the files are a model that scores a sentence."""
    try:
        config = json.loads((where / "config.json").read_text())
        label_columns(config["id2label"], where)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where / 'config.json'} names no labels of a classifier") from error
    scorer = FinbertScorer(where, release)
    scorer.where = where
    row = scorer.score([_SENTENCE]).row(0, named=True)
    if not -1 <= row["sentiment"] <= 1 or not 0 <= row["confidence"] <= 1:
        raise ModelError(f"the model in {where} scores no sentence: it says {row}")


def _put_in_place(partial: Path, where: Path) -> None:
    old = where.with_name(f"{where.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if where.exists():
        where.replace(old)
    partial.replace(where)
    shutil.rmtree(old, ignore_errors=True)


def _is(path: Path, file: RemoteFile) -> bool:
    """Whether a file's content is what the hub reports."""
    if path.stat().st_size != file.size:
        return False
    if len(file.digest) == 64:
        return _sha256(path) == file.digest
    # Small files are known by git's own name: SHA-1 of a header and the content.
    blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    blob.update(path.read_bytes())
    return blob.hexdigest() == file.digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
