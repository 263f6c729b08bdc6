"""Shared by the tests that start ranks: a small real corpus, and running the trainer on it."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from tests.distributed.launch import RankResult, run_ranks

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Token files of a few standard-library modules, one token a byte."""

    prefix: pathlib.Path
    cache: pathlib.Path

    @property
    def flags(self) -> list[str]:
        """The flags that make a run read it."""
        return [
            "--data-path", str(self.prefix), "--split", "90,10,0", "--data-cache-path", str(self.cache),
            "--tokenizer-type", "ByteLevelTokenizer", "--num-workers", "0",
        ]  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Forty documents of real text, made by the project's own tool."""
    folder = tmp_path_factory.mktemp("corpus")
    source = folder / "text.jsonl"
    library = pathlib.Path(json.__file__).parents[1]
    with source.open("w") as stream:
        for path in sorted(library.glob("*.py"))[:40]:
            stream.write(json.dumps({"text": path.read_text(errors="replace")[:4000]}) + "\n")
    subprocess.run(
        [sys.executable, str(ROOT / "tools/preprocess_data.py"), "--input", str(source),
         "--output-prefix", str(folder / "text"), "--tokenizer-type", "ByteLevelTokenizer", "--append-eod"],
        check=True, timeout=120, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return Corpus(prefix=folder / "text", cache=folder / "cache")


def trainer(*flags: str) -> list[str]:
    """The command of one rank of the trainer on gloo."""
    return [sys.executable, str(ROOT / "pretrain_gpt.py"), "--distributed-backend", "gloo", *flags]


def read_metrics(path: pathlib.Path, kind: str = "iteration") -> list[dict]:
    """The records of one kind in a metrics file."""
    return [record for line in path.read_text().splitlines() if (record := json.loads(line))["kind"] == kind]


def losses(path: pathlib.Path) -> list[float]:
    """The training losses in a metrics file, in order."""
    return [record["loss"] for record in read_metrics(path)]


@pytest.fixture
def train(tmp_path: pathlib.Path, corpus: Corpus) -> Callable[..., list[float]]:
    """Train on `world_size` ranks with the corpus; return the losses, or fail with what the ranks printed."""

    def run(world_size: int, flags: Sequence[str], *, name: str = "run") -> list[float]:
        metrics = tmp_path / f"{name}.jsonl"
        results = run_ranks(trainer(*corpus.flags, "--metrics-file", str(metrics), *flags), world_size)
        assert all(result.returncode == 0 for result in results), report(results)
        return losses(metrics)

    return run


def report(results: Sequence[RankResult]) -> str:
    """What every rank printed last, for a failed assertion."""
    return "\n".join(f"--- rank {r.rank} exited {r.returncode}\n{r.output[-3000:]}" for r in results)
