"""What is kept between runs: where it lies, and what is known of files that have not changed since."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ceit.weights.atomic import replace_files


def cache_dir() -> Path:
    """``$CEIT_DATA``, or ``~/.cache/ceit``."""
    return Path(os.environ.get("CEIT_DATA") or Path.home() / ".cache" / "ceit")


def remembered(state: Iterable[str], check: Callable[[], Sequence[object]]) -> dict[int, str]:
    """The strings among the results of ``check``, by position; kept in the cache for as long as ``state`` is this."""
    digest = hashlib.sha256()
    for part in state:
        digest.update(f"{part}\n".encode(errors="surrogateescape"))
    verdict = cache_dir() / "checked" / f"{digest.hexdigest()[:32]}.json"
    if verdict.is_file():
        return dict(json.loads(verdict.read_text(encoding="utf-8")))
    broken = [(number, reason) for number, reason in enumerate(check()) if isinstance(reason, str)]
    with suppress(OSError):  # a cache that cannot be written costs the next run this check, no more
        verdict.parent.mkdir(parents=True, exist_ok=True)
        replace_files({verdict: json.dumps(broken).encode()})
    return dict(broken)


def file_state(path: str | Path) -> str:
    """A line that changes when the file does: its place, size and time of last change; of a missing one, its place."""
    place = os.path.abspath(path)
    try:
        stat = os.stat(place)
    except OSError:
        return place
    return f"{place}\0{stat.st_size}\0{stat.st_mtime_ns}"
