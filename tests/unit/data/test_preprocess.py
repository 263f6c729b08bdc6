"""From inputs to shards to a pair: the same output for any division of the work."""

import dataclasses
import errno
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megatron.pretrain.data.preprocess import shards as shards_module
from megatron.pretrain.data.preprocess.documents import read_documents
from megatron.pretrain.data.preprocess.job import Job, plan_job
from megatron.pretrain.data.preprocess.progress import ProgressLines
from megatron.pretrain.data.preprocess.publish import publish_pair
from megatron.pretrain.data.preprocess.run import tokenize_shards
from megatron.pretrain.data.preprocess.shards import ShardResult, token_dtype
from megatron.pretrain.data.preprocess.sources import cut_into_shards, find_sources
from megatron.pretrain.data.token_files import open_token_file, unigram_entropy_nats
from megatron.pretrain.data.tokenizers import TokenizerChoice
from overlap_recompute.plan.errors import DataError

BYTE = TokenizerChoice(tokenizer_type="ByteLevelTokenizer")
SAME_FOLDER = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Silent:
    """Progress that remembers how many shards were tokenized."""

    def __init__(self) -> None:
        self.added = 0

    def add(self, result: ShardResult) -> None:
        self.added += 1

    def close(self) -> None:
        pass


def plan(inputs: list[pathlib.Path], prefix: pathlib.Path, **options: Any) -> Job:
    found = find_sources(
        [str(path) for path in inputs],
        include=options.pop("include", ("*.txt",)),
        split_lines=options.pop("split_lines", False),
    )
    return plan_job(found, prefix=str(prefix), tokenizer=BYTE, **options)


def make(job: Job, *, workers: int = 1, strict: bool = False) -> dict[str, Any]:
    workdir = job.workdir()
    with workdir.locked():
        if workdir.job() != job.parts_identity:
            workdir.start(job.parts_identity)
        results, _ = tokenize_shards(job, workdir, workers=workers, progress=Silent(), strict=strict)
        return publish_pair(job, workdir, results)


def texts(prefix: pathlib.Path) -> list[str]:
    pair = IndexedDataset(str(prefix))
    return [bytes(pair[number][pair[number] < 256].astype(np.uint8)).decode() for number in range(len(pair))]


@SAME_FOLDER
@given(
    lines=st.lists(st.text(st.sampled_from(["a", "é", "\r", " ", "漢"]), max_size=9), max_size=20),
    ended=st.booleans(),
    shard_bytes=st.integers(1, 50),
)
def test_no_cut_loses_or_doubles_a_line(
    tmp_path: pathlib.Path, lines: list[str], ended: bool, shard_bytes: int
) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(("\n".join(lines) + "\n" * ended).encode())
    expected = [line for raw in path.read_bytes().split(b"\n") if (line := raw.decode().removesuffix("\r")).strip()]
    cut = cut_into_shards(find_sources([str(path)], split_lines=True), shard_bytes)
    found = [document.text for shard in cut for piece in shard.pieces for document in read_documents(piece, "text")]
    assert found == expected
    assert sum(shard.input_bytes for shard in cut) == path.stat().st_size


def test_kinds_of_input(tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "tree"
    for name in ("b/two.py", "a.py", "b/skip.txt", ".git/hidden.py", "B/upper.py", ".hidden.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "loop").symlink_to(tree)
    (tmp_path / "lines.jsonl").write_text('{"text": "first"}\n\n{"text": "second", "other": 1}\r\n')
    (tmp_path / "whole.txt").write_text("\ufeffline one\nline two\n")
    job = plan([tmp_path / "lines.jsonl", tree, tmp_path / "whole.txt"], tmp_path / "out", include=("*.py",))
    summary = make(job)
    assert texts(tmp_path / "out") == [
        "first", "second", "B/upper.py", "a.py", "b/two.py", "line one\nline two\n"
    ]  # fmt: skip
    assert (summary["documents"], summary["malformed"], summary["empty"]) == (6, 0, 0)
    assert not job.workdir().folder.exists()


def test_the_pair_and_its_sidecar(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("abc\ndé\n")
    summary = make(plan([tmp_path / "in.txt"], tmp_path / "out", split_lines=True, append_eod=True))
    pair = IndexedDataset(str(tmp_path / "out"))
    assert [pair[0].tolist(), pair[1].tolist()] == [[97, 98, 99, 256], [100, 195, 169, 256]]
    assert pair.document_indices.tolist() == [0, 1, 2]
    assert summary == json.loads((tmp_path / "out.meta.json").read_text())
    assert (summary["tokens"], summary["bytes"], summary["input_bytes"], summary["eod"]) == (8, 16, 8, 256)
    assert summary["unigram_entropy_nats"] == unigram_entropy_nats(str(tmp_path / "out"))


def test_output_does_not_depend_on_workers_or_on_the_size_of_shards(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"document {n} " * (n % 7)}) + "\n" for n in range(200)))
    outputs = []
    for name, workers, shard_bytes in (("one", 1, 1 << 20), ("many", 1, 700), ("parallel", 2, 1000)):
        make(plan([source], tmp_path / name, shard_bytes=shard_bytes, append_eod=True), workers=workers)
        outputs.append([(tmp_path / f"{name}{end}").read_bytes() for end in (".bin", ".idx", ".meta.json")])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(texts(tmp_path / "one")) == 200 - 29  # those of no words are empty


MALFORMED = b'{"text": "good"}\n{"text": 3}\n{"text"\n[1]\n\n{"other": "x"}\n\xff\n{"text": "\\ud800"}\n{"text": ""}\n'


@pytest.mark.parametrize("shard_bytes", [1 << 20, 20])
def test_malformed_lines_are_counted_with_their_places(tmp_path: pathlib.Path, shard_bytes: int) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(MALFORMED)
    job = plan([source], tmp_path / "out", shard_bytes=shard_bytes)
    workdir = job.workdir()
    with workdir.locked():
        workdir.start(job.parts_identity)
        results, _ = tokenize_shards(job, workdir, workers=1, progress=Silent())
        summary = publish_pair(job, workdir, results)
    assert (summary["documents"], summary["malformed"], summary["empty"]) == (1, 6, 1)
    examples = [example for result in results for example in result.examples]
    expected = [
        ":2: int under key 'text'", ":3: not JSON (", ":4: no key 'text'", ":6: no key 'text'",
        ":7: byte 0 of the line is not UTF-8",
        *([":8: no tokens for it"] if shard_bytes == 20 else []),
    ]  # fmt: skip
    assert len(examples) == len(expected)
    for example, part in zip(examples, expected, strict=True):
        assert example.startswith(f"{source}{part}")


def test_strict_refuses_the_first_malformed_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(MALFORMED)
    job = plan([tmp_path / "in.jsonl"], tmp_path / "out")
    with pytest.raises(DataError, match=r"malformed input at .*in.jsonl:2: int under key 'text'"):
        make(job, strict=True)
    assert not (tmp_path / "out.idx").exists()
    with pytest.raises(DataError, match=r"malformed input at .*in.jsonl:2"):  # from the journal
        make(job, strict=True)
    assert make(job)["malformed"] == 6


def test_inputs_that_are_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"--input .*nowhere: No such file"):
        find_sources([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match=r"no file that matches \*.py in"):
        find_sources([str(tmp_path)], include=("*.py",))
    (tmp_path / "in.txt").write_text("")
    with pytest.raises(DataError, match="0 malformed and 1 empty documents and no other"):
        make(plan([tmp_path / "in.txt"], tmp_path / "out"))
    (tmp_path / "in.jsonl").write_text('{"content": "text under another key"}\n')
    with pytest.raises(DataError, match=r"1 malformed and 0 empty documents .* \(.*in.jsonl:1: no key 'text'\)"):
        make(plan([tmp_path / "in.jsonl"], tmp_path / "out"))


def test_a_source_that_changes_during_the_run(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("before")
    job = plan([source], tmp_path / "out")
    source.write_text("longer than before")
    with pytest.raises(DataError, match=r"in.txt of 18 bytes, which changed while it was read"):
        make(job)


def test_a_full_disk_leaves_no_pair_and_keeps_finished_shards(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("line\n" * 100)
    job = plan([tmp_path / "in.txt"], tmp_path / "out", split_lines=True, shard_bytes=100)
    write = shards_module.write_bytes

    def fill_up(path: pathlib.Path, content: bytes) -> None:
        if path.name.startswith("shard-000003"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_bytes", fill_up)
        with pytest.raises(DataError, match=r"No space left on device while .*shard-000003.* was written"):
            make(job)
    assert not (tmp_path / "out.bin").exists()
    workdir, progress = job.workdir(), Silent()
    assert sorted(workdir.finished()) == [0, 1, 2]
    with workdir.locked():
        results, kept = tokenize_shards(job, workdir, workers=1, progress=progress)
        publish_pair(job, workdir, results)
    assert (kept, progress.added) == (3, 2)
    assert open_token_file(str(tmp_path / "out")).documents == 100


def test_the_journal_survives_a_torn_line_and_distrusts_damaged_shards(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("line\n" * 100)
    job = plan([tmp_path / "in.txt"], tmp_path / "out", split_lines=True, shard_bytes=100)
    workdir = job.workdir()
    with workdir.locked():
        workdir.start(job.parts_identity)
        tokenize_shards(job, workdir, workers=1, progress=Silent())
        (workdir.folder / "shard-000001.tokens").write_bytes(b"short")
        assert sorted(workdir.finished()) == [0, 2, 3, 4]
        journal = workdir.folder / "journal.jsonl"
        records = [line for line in journal.read_bytes().splitlines(keepends=True) if b'"number": 1,' not in line]
        journal.write_bytes(b"".join(records) + b'\n{"number": 1, "docum')
        results, kept = tokenize_shards(job, workdir, workers=1, progress=Silent())
        assert sorted(workdir.finished()) == [0, 1, 2, 3, 4]
        publish_pair(job, workdir, results)
    assert kept == 4
    assert texts(tmp_path / "out") == ["line"] * 100


def test_one_run_per_prefix(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("text")
    workdir = plan([tmp_path / "in.txt"], tmp_path / "out").workdir()
    with workdir.locked(), pytest.raises(DataError, match=r"out.parts in use by another run"), workdir.locked():
        pass


def test_token_types_are_those_of_megatron_core() -> None:
    @dataclasses.dataclass
    class Sized:
        vocab_size: int

    for size in (257, 65499, 65500, 200_000):
        assert token_dtype(Sized(size)) == DType.optimal_dtype(size).__name__  # type: ignore[arg-type]


def test_progress_lines_tell_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    clock = iter([0.0, 5.0, 20.0])
    lines = ProgressLines(4_000_000, sys.stdout, clock=lambda: next(clock))
    result = ShardResult(number=0, documents=1, tokens=100_000, input_bytes=500_000, empty=0, malformed=0, examples=())
    lines.add(result)
    lines.add(result)
    assert capsys.readouterr().out == "1.0 of 4.0 MB (25 %), 10000 tokens/s, 60 s left\n"
