"""A URI → the filesystem that opens it, and calls that are repeated while their failure may pass.

    s3://bucket/folder      pyarrow's; AWS_ENDPOINT_URL names a server other than Amazon's
    gs://bucket/folder      pyarrow's
    abfs://…, hf://…        whatever pyarrow.fs or an installed fsspec package opens

Credentials come from where each cloud's own tools take them, never from here. Knows nothing of
what the files hold.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import fsspec
import pyarrow as pa
from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random_exponential

PATIENCE_SECONDS = 300.0
"""How long one call goes on trying."""
LONGEST_PAUSE = 15.0
S3_ATTEMPTS = 3
"""Tries of one HTTP request by Amazon's own client, so that one lost part of a large object does
not cost the object."""
S3_CONNECT_SECONDS = 5.0
S3_SILENCE_SECONDS = 15.0
"""Longest time in which a request may move no byte."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables that name a server other than Amazon's, as its own tools read them."""
SERVERS = (*ENDPOINTS, "AWS_REGION", "AWS_DEFAULT_REGION")
"""Environment variables that say which server is meant, and nothing secret."""
S3_OPTIONS = {"region", "scheme", "endpoint_override"}
"""What may stand in the query of an s3 URI."""
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
FOR_GOOD = (*MISSING, PermissionError)
"""What waiting does not mend. fsspec raises these without a number."""
FOR_GOOD_NUMBERS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
REFUSALS = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH"
    r"|UNRECOGNIZED_CLIENT|(Expired|Invalid)Token|HTTP status 401|Bucket '.*' not found"
    r"|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""The same in object stores' words, which come without a number."""

T = TypeVar("T")


class StorageError(OSError):
    """An object store did not answer for as long as it was asked."""


class RefusedError(StorageError):
    """An object store that answers and will not: what the user has to mend."""


def is_uri(place: str) -> bool:
    """Whether a place is a URI of other storage than local files."""
    return "://" in place and not place.startswith("file://")


def servers() -> dict[str, str]:
    """What this process's environment says of servers: for processes on other machines."""
    return {name: os.environ[name] for name in SERVERS if os.environ.get(name)}


def take_over(found: dict[str, str]) -> None:
    """Let this process mean the same servers, where its own environment names none."""
    for name, value in found.items():
        os.environ.setdefault(name, value)


def child(place: str, name: str) -> str:
    """The place of a file in a folder; a URI's query stays behind it."""
    folder, question, query = place.partition("?") if is_uri(place) else (place, "", "")
    return f"{folder.rstrip('/')}/{name}{question}{query}"


def parent(place: str) -> tuple[str, str]:
    """The folder of a file and the file's name; a URI's query stays with the folder."""
    path, question, query = place.partition("?") if is_uri(place) else (place, "", "")
    folder, _, name = path.rpartition("/")
    return (folder or ("/" if path.startswith("/") else ".")) + question + query, name


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI, and the path in it.

    Raises ValueError where nothing opens it, RefusedError or StorageError where the store does not.
    """
    if uri.startswith("s3://"):
        return _open_s3(uri)
    try:
        found: tuple[fs.FileSystem, str] = again(lambda: fs.FileSystem.from_uri(uri), uri)
        return found[0], found[1].rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error)
    try:
        opened, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        place = uri.partition("?")[0]
        raise ValueError(f"{place}: no filesystem opens it ({reason}; {error})") from error
    return fs.PyFileSystem(fs.FSSpecHandler(opened)), root


def _open_s3(uri: str) -> tuple[fs.FileSystem, str]:
    """pyarrow makes S3 filesystems of URIs too, but such that give up after a second or three."""
    path, _, query = uri.removeprefix("s3://").partition("?")
    bucket = path.partition("/")[0]
    options = dict(parse_qsl(query))
    unknown = sorted(options.keys() - S3_OPTIONS)
    if unknown or not bucket:
        fault = f"its query has {', '.join(unknown)}" if unknown else "names no bucket"
        raise ValueError(
            f"s3://{path}: {fault}; s3://bucket/folder is due, and behind a ? at most "
            f"{', '.join(sorted(S3_OPTIONS))}"
        )
    named = [os.environ.get(name) for name in ENDPOINTS]
    endpoint = options.pop("endpoint_override", None) or next(filter(None, named), None)
    if endpoint is None and "region" not in options:
        options["region"] = again(lambda: fs.resolve_s3_region(bucket), uri)
    filesystem = fs.S3FileSystem(
        **options,
        endpoint_override=endpoint,
        connect_timeout=S3_CONNECT_SECONDS,
        request_timeout=S3_SILENCE_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        allow_delayed_open=True,  # Small objects go in one request instead of three.
    )
    return filesystem, path.rstrip("/")


def again(
    once: Callable[[], T],
    uri: str | None = None,
    *,
    patience: float | None = None,
    on_retry: Callable[[str], None] = lambda error: None,
) -> T:
    """Call until it succeeds, fails for good, or `patience` seconds are over.

    uri: of the store that is asked, None for local files; on_retry is told of failed tries.
    Raises what the last try raised: a store's words as StorageError or RefusedError in one line.
    """

    def told(state: RetryCallState) -> None:
        assert state.outcome is not None
        on_retry(str(state.outcome.exception()))

    retrying: Any = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE),
        stop=stop_after_delay(PATIENCE_SECONDS if patience is None else patience),
        before_sleep=told,
        reraise=True,
    )
    try:
        result: T = retrying(once)
    except OSError as error:
        if uri is None or isinstance(error, (*MISSING, StorageError)):
            raise
        raise _of_store(error, uri) from error
    return result


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
    if not isinstance(error, OSError) or isinstance(error, (*FOR_GOOD, RefusedError)):
        return False
    return error.errno not in FOR_GOOD_NUMBERS and not _is_refusal(error)


def _is_refusal(error: OSError) -> bool:
    # What stands before it are names, which may hold any word.
    words = str(error)
    return REFUSALS.search(words[max(words.find("AWS Error"), 0) :]) is not None


def _of_store(error: OSError, uri: str) -> StorageError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    line = re.sub(r"\s*\(Request ID: .*?\)", "", line)
    found = re.search(r"AWS Error .*", line)
    place = uri.partition("?")[0]
    if not _is_refusal(error) and not isinstance(error, PermissionError):
        return StorageError(f"{place}: {found[0] if found else line}")
    if re.search(r"NO_SUCH_BUCKET|Bucket '.*' not found", line):
        bucket = PurePosixPath(place.partition("://")[2]).parts[0]
        return RefusedError(f"{place}: there is no bucket {bucket!r}; make it, or check the name")
    return RefusedError(
        f"{place}: access denied ({found[0] if found else line}); check the credentials "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, the machine's role) and what "
        "they may do there"
    )
