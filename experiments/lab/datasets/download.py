"""Download a file from the first mirror that delivers what was expected."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import DataError

TIMEOUT_SECONDS = 20


def fetch(urls: tuple[str, ...], path: Path, verify: Callable[[Path], object]) -> None:
    """Put a file at `path`, from the first of `urls` whose file `verify` accepts (else it raises).

    The file appears complete or not at all, also when several processes fetch it at once.
    DataError, naming every mirror's failure, when none delivers or the folder cannot be written.
    """
    try:
        import pooch
    except ImportError:
        raise DataError(f"{path} is missing, and to download it the package pooch is expected; "
                        "pip install 'batchlab[data]', or copy the file there from a machine that has it.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} is missing and its folder cannot be made ({error.strerror}), expected a writable place; "
                        "choose another with --data-dir or BATCHLAB_DATA_DIR.") from error
    downloader: Any = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)  # pooch's own annotation of it is wrong
    failures = []
    for url in urls:
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            # No hash here: `verify` decides, and may look at the decompressed content.
            pooch.retrieve(url, known_hash=None, fname=partial.name, path=partial.parent, downloader=downloader)
            verify(partial)
            os.replace(partial, path)
            return
        # requests, urllib3 and pooch share no base class, and every mirror must get its turn.
        except Exception as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            failures.append(f"{url}: {first_line[:200]}")
        finally:
            partial.unlink(missing_ok=True)
    raise DataError(f"{path} is missing and no mirror delivered it ({'; '.join(failures)}); "
                    "go online, or copy the file there from a machine that has it.")
