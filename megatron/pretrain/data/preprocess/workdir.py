"""What a run keeps on disk until its pair is complete: finished shards, a journal of them, and a lock."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.pretrain.data.preprocess.shards import ShardResult, disk_error, is_intact
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.files import sync_folder, write_bytes


class WorkDir:
    """The folder `<prefix>.parts`. Its journal counts: a shard file without a line in it does not exist.

    ```
    stdlib.parts/job.json             what is being made (hash of sources and recipe)
    stdlib.parts/journal.jsonl        one line per finished shard, appended and synced after its files
    stdlib.parts/shard-000000.tokens  .lengths
    stdlib.parts/final.bin, .idx      the pair, until it is renamed into place
    ```
    """

    def __init__(self, prefix: str, dtype: str) -> None:
        self.folder = Path(prefix + ".parts")
        self._journal = self.folder / "journal.jsonl"
        self._job = self.folder / "job.json"
        self._dtype = dtype

    def job(self) -> str | None:
        """Identity of the unfinished job in the folder; None without one."""
        try:
            return str(json.loads(self._job.read_bytes())["job"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it; the lock dies with this process.

        Raises:
            DataError: another run holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"--output-prefix: {error.strerror} for {self.folder}", "a folder to write to", "choose another prefix"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise DataError(
                f"{self.folder} in use by another run", "one run per --output-prefix", "wait for it or end it"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def start(self, job: str) -> None:
        """Empty the folder and note which job it is for."""
        for path in self.folder.iterdir():
            path.unlink()
        try:
            write_bytes(self._job, json.dumps({"job": job}).encode())
        except OSError as error:
            raise disk_error(error, self._job) from error

    def finished(self) -> dict[int, ShardResult]:
        """Shards that the journal lists and whose files are there in full."""
        results: dict[int, ShardResult] = {}
        if self._journal.is_file():
            for line in self._journal.read_bytes().splitlines():
                try:
                    result = ShardResult.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue  # the line that was being written when the run was killed
                if is_intact(self.folder, result, self._dtype):
                    results[result.number] = result
        return results

    def record(self, result: ShardResult) -> None:
        """Add a finished shard to the journal."""
        try:
            with self._journal.open("ab") as stream:
                # The first line end keeps a torn line of a killed run from swallowing this one.
                stream.write(b"\n" + json.dumps(result.to_json()).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise disk_error(error, self._journal) from error

    def remove(self) -> None:
        """Delete the folder, after the pair is in place."""
        shutil.rmtree(self.folder)
        sync_folder(self.folder.parent)
