"""Repeats calls to storage that fail temporarily; one that fails for good raises one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random_exponential

PATIENCE_SECONDS = 300.0
"""How long one call is repeated."""
LONGEST_PAUSE = 15.0
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
FOR_GOOD = (*MISSING, PermissionError)
"""Errors that waiting does not fix. fsspec raises these without an errno."""
FOR_GOOD_NUMBERS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
REFUSALS = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH"
    r"|UNRECOGNIZED_CLIENT|(Expired|Invalid)Token|HTTP status 401|Bucket '.*' not found"
    r"|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""The same as messages of object stores, which have no errno."""

T = TypeVar("T")


class StorageError(OSError):
    """An object store did not answer until the last try."""


class RefusedError(StorageError):
    """An object store answered and refuses (no access, no bucket): the user has to fix it."""


def again(
    once: Callable[[], T],
    uri: str | None = None,
    *,
    patience: float | None = None,
    on_retry: Callable[[str], None] = lambda error: None,
) -> T:
    """Call until it succeeds, fails for good, or `patience` seconds are over.

    uri: of the store, None for local files. on_retry: called with the error of each failed try.
    Raises what the last try raised; an object store's error as a StorageError or RefusedError in
    one line.
    """

    def report(state: RetryCallState) -> None:
        assert state.outcome is not None
        on_retry(str(state.outcome.exception()))

    retrying: Any = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE),
        stop=stop_after_delay(PATIENCE_SECONDS if patience is None else patience),
        before_sleep=report,
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
    # Before it are names, which may hold any word.
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
