"""Makes the place that a user names canonical, and opens the filesystem of a URI.

    out, /data/out, ~/out   local paths; ~ is the home folder
    file:/data/a%20b        a local path as a URI, also file:///… and file://localhost/…
    s3://bucket/folder      pyarrow's; AWS_ENDPOINT_URL names a server other than Amazon's
    gs://bucket/folder      pyarrow's
    abfs://…, hf://…        whatever pyarrow.fs or an installed fsspec package opens

Credentials come from where each cloud's own tools read them, never from the URI.
"""

from __future__ import annotations

import errno
import os
import re
from urllib.parse import parse_qsl, unquote_to_bytes

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
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)")
"""How a URI begins."""


def canonical(place: str) -> str:
    """A place as all code takes it: a local path, or a URI with its scheme in lower case.

    `~` and `file:` URIs become the paths that they mean; every other path, a checkpoint's hub id
    and `package.module:factory` stay as they are. Raises ValueError for what names no place: an
    empty text, a URI with one slash, a file on another machine, an unknown user's home, a name
    that is too long, a link to itself.
    """
    if not place.strip():
        raise ValueError("a place is empty; name a folder, a file or a URI")
    if place.lower().startswith("file:"):
        place = _file_path(place)
    elif begin := SCHEME.match(place):
        scheme, slashes = begin.groups()
        if slashes == "/":
            raise ValueError(
                f"{place}: has one slash behind {scheme}:, a URI has two; write "
                f"{scheme}:/{place[begin.end() - 1 :]}, or ./{place} for a folder of that name"
            )
        return scheme.lower() + place[len(scheme) :]
    elif place.startswith("~"):
        user = place.partition("/")[0]
        home = os.path.expanduser(place)
        if home == place:
            raise ValueError(
                f"{place}: there is no home folder of {user}; write ./{place} for that name"
            )
        place = home
    if "\0" in place:
        raise ValueError(f"{place!r}: a path cannot hold a zero byte")
    try:
        os.lstat(place)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # No waiting helps.
            raise ValueError(f"{short(place)}: {error.strerror}; name another") from error
    return place


def short(path: str) -> str:
    """A path for a line, cut in the middle where it would fill the screen."""
    return path if len(path) <= 120 else f"{path[:80]}…{path[-30:]}"


def _file_path(uri: str) -> str:
    """The local path of a `file:` URI; `?` and `#` in it belong to the name."""
    rest = uri[len("file:") :]
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.lower() not in ("", "localhost"):
        raise ValueError(
            f"{uri}: names a file of the machine {host}; write file:///folder for one of this "
            "machine's, or a URI of shared storage"
        )
    if not rest.startswith("/"):
        raise ValueError(f"{uri}: expected an absolute path, file:///folder")
    return os.fsdecode(unquote_to_bytes(os.fsencode(rest)))


def is_uri(place: str) -> bool:
    """Whether a place is a URI of other storage than local files."""
    return "://" in place and not place.lower().startswith("file:")


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
    """The folder of a file and the file's name; a URI's query stays with the folder.

    Raises ValueError as `canonical`.
    """
    place = canonical(place)
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
