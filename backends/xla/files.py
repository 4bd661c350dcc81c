"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_bytes(path: Path, data: bytes | bytearray) -> None:
    """Write `data` under another name in the same folder, then move it to `path`.

    Raises:
        OSError: it cannot be written; what was at `path` before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
