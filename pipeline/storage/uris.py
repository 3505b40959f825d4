"""Opens the filesystem of a URI.

    s3://bucket/folder      pyarrow's; AWS_ENDPOINT_URL names a server other than Amazon's
    gs://bucket/folder      pyarrow's
    abfs://…, hf://…        whatever pyarrow.fs or an installed fsspec package opens

Credentials come from where each cloud's own tools read them, never from the URI.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qsl

import fsspec
import pyarrow as pa
from pyarrow import fs

from pipeline.storage import retry

S3_ATTEMPTS = 3
"""Tries of one HTTP request by the S3 client, so that one lost part of a large object does not
fail the object."""
S3_CONNECT_SECONDS = 5.0
S3_SILENCE_SECONDS = 15.0
"""Time without a byte after which a request counts as failed."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables that name a server other than Amazon's, as its own tools read them."""
SERVERS = (*ENDPOINTS, "AWS_REGION", "AWS_DEFAULT_REGION")
"""Environment variables that name the server and hold no secret."""
S3_OPTIONS = {"region", "scheme", "endpoint_override"}
"""What may stand in the query of an s3 URI."""


def is_uri(place: str) -> bool:
    """Whether a place is a URI of other storage than local files."""
    return "://" in place and not place.startswith("file://")


def servers() -> dict[str, str]:
    """The variables of `SERVERS` that are set here, to be passed to processes on other machines."""
    return {name: os.environ[name] for name in SERVERS if os.environ.get(name)}


def take_over(found: dict[str, str]) -> None:
    """Set these variables in this process, where it has none of its own."""
    for name, value in found.items():
        os.environ.setdefault(name, value)


def child(place: str, name: str) -> str:
    """The path or URI of a file in a folder; a URI's query stays at the end."""
    folder, question, query = place.partition("?") if is_uri(place) else (place, "", "")
    return f"{folder.rstrip('/')}/{name}{question}{query}"


def parent(place: str) -> tuple[str, str]:
    """A file's folder and its name; a URI's query stays with the folder."""
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
        found: tuple[fs.FileSystem, str] = retry.again(lambda: fs.FileSystem.from_uri(uri), uri)
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
    """An S3 filesystem with longer timeouts and more tries than pyarrow gives those of URIs."""
    path, _, query = uri.removeprefix("s3://").partition("?")
    bucket = path.partition("/")[0]
    options = dict(parse_qsl(query))
    unknown = sorted(options.keys() - S3_OPTIONS)
    if unknown or not bucket:
        fault = f"its query has {', '.join(unknown)}" if unknown else "names no bucket"
        raise ValueError(
            f"s3://{path}: {fault}; expected s3://bucket/folder, and after a ? at most "
            f"{', '.join(sorted(S3_OPTIONS))}"
        )
    named = [os.environ.get(name) for name in ENDPOINTS]
    endpoint = options.pop("endpoint_override", None) or next(filter(None, named), None)
    if endpoint is None and "region" not in options:
        options["region"] = retry.again(lambda: fs.resolve_s3_region(bucket), uri)
    filesystem = fs.S3FileSystem(
        **options,
        endpoint_override=endpoint,
        connect_timeout=S3_CONNECT_SECONDS,
        request_timeout=S3_SILENCE_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        allow_delayed_open=True,  # Small objects go in one request instead of three.
    )
    return filesystem, path.rstrip("/")
