"""Keep Megatron-Core's cached sample indices honest: tied to the content of the data, and never half-written.

Stock caches are named after the path of the data, so a pair that was made anew at the same path would silently be read
through the index of the old one; and they are written in place, so a run that is killed while it writes one leaves a
file that stops every later run.
"""

import hashlib
from pathlib import Path

import numpy as np

from overlap_recompute.plan.errors import DataError

WHOLE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
CHUNKS = 16


def content_fingerprint(prefix: str) -> str:
    """Hash of a pair that changes when its documents do.

    Takes in the `.idx` file, whole up to 64 MiB and else 16 evenly spread MiB of it, and the size of `.bin`. That is
    what sample indices are derived from; the tokens themselves play no part in them.
    """
    index = Path(prefix + ".idx")
    size = index.stat().st_size
    digest = hashlib.sha256(f"{size} {Path(prefix + '.bin').stat().st_size}".encode())
    with index.open("rb") as stream:
        if size <= WHOLE_BYTES:
            digest.update(stream.read())
        else:
            for chunk in range(CHUNKS):
                stream.seek(chunk * (size - CHUNK_BYTES) // (CHUNKS - 1))
                digest.update(stream.read(CHUNK_BYTES))
    return digest.hexdigest()[:32]


def discard_damaged(folder: Path) -> list[Path]:
    """Remove cached arrays that are cut short, so that Megatron-Core builds them again.

    Call it in one process only, before the datasets are built.

    Returns:
        What was removed.

    Raises:
        DataError: an array holds pickled objects. Megatron-Core would unpickle it, and no index needs that.
    """
    damaged = [path for path in sorted(folder.glob("*_index.npy")) if not _is_whole(path)]
    for path in damaged:
        path.unlink()
    return damaged


def _is_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(stream)
        except (ValueError, EOFError, KeyError):
            return False
        if dtype.hasobject:
            raise DataError(
                f"{path}, which holds pickled objects",
                "an array of numbers",
                "find out who put it there, and remove it or choose another --data-cache-path",
            )
        return path.stat().st_size == stream.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
