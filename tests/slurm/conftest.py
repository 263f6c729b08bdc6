"""One cluster for all tests of this folder, and a tiny run of the trainer to give it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.conftest import Corpus, corpus
from tests.slurm.cluster import SlurmCluster, running_cluster, why_not

__all__ = ["corpus"]

MODEL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --max-position-embeddings 32\n"
    "--attention-dropout 0.1 --hidden-dropout 0.1 --micro-batch-size 2 --global-batch-size 8 --eval-iters 0\n"
    "--lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine --lr-decay-iters 100 --log-interval 1 --seed 1234\n"
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A running Slurm with two idle nodes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def flags_file(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A tiny model on a little text, as the scripts read it."""
    path = tmp_path_factory.mktemp("flags") / "tiny.flags"
    path.write_text(f"# tiny\n{MODEL}{' '.join(corpus.flags)}\n")
    return path
