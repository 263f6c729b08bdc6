"""The three data tools as a user runs them, with a kill in the middle."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from megatron.pretrain.data.token_files import open_token_file
from tests.unit.data.support import ROOT, load_tool

preprocess_data = load_tool("preprocess_data")
build_stdlib_corpus = load_tool("build_stdlib_corpus")
train_tokenizer = load_tool("train_tokenizer")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """About 750 kB of JSON lines."""
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}: " + "words " * 120}) + "\n" for n in range(1000)))
    return path


def arguments(source: pathlib.Path, prefix: pathlib.Path, *more: str) -> list[str]:
    return [
        "--input", str(source), "--output-prefix", str(prefix), "--tokenizer-type", "ByteLevelTokenizer",
        "--append-eod", "--shard-mib", "0.02", *more,
    ]  # fmt: skip


def digest(prefix: pathlib.Path) -> list[str]:
    return [hashlib.sha256(pathlib.Path(f"{prefix}{end}").read_bytes()).hexdigest() for end in (".bin", ".idx")]


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HALTS_AFTER_SIX_SHARDS = """
import runpy, sys, time
from megatron.pretrain.data.preprocess.workdir import WorkDir
record, recorded = WorkDir.record, []
def recording(folder, result):
    record(folder, result)
    recorded.append(result)
    if len(recorded) == 6:
        print("halts", flush=True)
        time.sleep(600)
WorkDir.record = recording
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_run_goes_on_where_it_stopped(
    source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess_data.main(arguments(source, tmp_path / "whole", "--workers", "1")) == 0
    prefix = tmp_path / "killed"
    tool = str(ROOT / "tools" / "preprocess_data.py")
    command = [sys.executable, "-c", HALTS_AFTER_SIX_SHARDS, tool, *arguments(source, prefix, "--workers", "2")]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"halts\n", process.communicate()[1].decode()
        workers = children_of(process.pid)
        assert workers
        process.kill()
        process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert not list(tmp_path.glob("killed.[bi]*")), "a killed run left a file of the pair"
    deadline_s = time.monotonic() + 60
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline_s, "workers outlived their parent"
        time.sleep(0.01)
    capsys.readouterr()
    assert preprocess_data.main(arguments(source, prefix, "--workers", "1", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 6 == summary["shards_from_earlier_run"] < summary["shards"]
    assert digest(prefix) == digest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("killed*")) == ["killed.bin", "killed.idx", "killed.meta.json"]


def test_a_run_killed_between_the_renames_is_finished(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    replace = os.replace

    def die_before_the_index(here: str, there: str) -> None:
        if str(there).endswith("out.idx"):
            raise Killed
        replace(here, there)

    prefix = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die_before_the_index)
        with pytest.raises(Killed):
            preprocess_data.main(arguments(source, prefix, "--workers", "1"))
    assert (tmp_path / "out.bin").exists()
    assert not (tmp_path / "out.idx").exists()
    assert preprocess_data.main(arguments(source, prefix, "--workers", "1")) == 0
    assert open_token_file(str(prefix)).documents == 1000


def test_running_again(source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.jsonl"
    small.write_text(source.read_text()[:5000].rpartition("\n")[0] + "\n")
    prefix = tmp_path / "out"
    assert preprocess_data.main(arguments(small, prefix)) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out*")}
    assert preprocess_data.main(arguments(small, prefix)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out*")} == before
    small.write_text('{"text": "something else"}\n')
    assert preprocess_data.main(arguments(small, prefix)) == 1
    message = capsys.readouterr().err
    assert f"found {prefix}.idx made from other inputs" in message
    assert "--overwrite" in message
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out*")} == before
    assert preprocess_data.main(arguments(small, prefix, "--overwrite")) == 0
    assert open_token_file(str(prefix)).documents == 1


def test_unfinished_work_of_another_job_is_not_discarded_unasked(
    source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "good"}\n{\n')
    prefix = tmp_path / "out"
    assert preprocess_data.main(arguments(bad, prefix, "--strict")) == 1
    bad.write_text('{"text": "good"}\n{"text": "mended"}\n')
    assert preprocess_data.main(arguments(bad, prefix, "--strict")) == 1
    assert "unfinished work of another job in" in capsys.readouterr().err
    assert preprocess_data.main(arguments(bad, prefix, "--strict", "--overwrite")) == 0
    assert open_token_file(str(prefix)).documents == 2


def test_several_keys_make_several_pairs(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"title": "T", "text": "body"}\n')
    prefix = tmp_path / "out"
    assert preprocess_data.main(arguments(tmp_path / "in.jsonl", prefix, "--json-keys", "title", "text")) == 0
    assert open_token_file(f"{prefix}_title").tokens == 2
    assert open_token_file(f"{prefix}_text").tokens == 5


def test_the_standard_library_corpus(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "corpus.jsonl"
    assert build_stdlib_corpus.main(["--output", str(output)]) == 0
    first, stamp = output.read_bytes(), output.stat().st_mtime_ns
    assert build_stdlib_corpus.main(["--output", str(output)]) == 0
    assert output.read_bytes() == first
    assert output.stat().st_mtime_ns == stamp, "an unchanged corpus must keep its time, or everything is made anew"
    documents = [json.loads(line) for line in first.splitlines()]
    names = [document["name"] for document in documents]
    assert len(names) == len(set(names)) > 100
    assert names != sorted(names)
    assert not any(name.startswith("_sysconfigdata") for name in names)
    assert 3e6 < len(first) < 6e6
    assert "class _Pickler" in next(document["text"] for document in documents if document["name"] == "pickle.py")


def test_tokenizer_training_is_deterministic(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("the cat sat on the mat, the dog sat on the cat\n" * 20)
    for name in ("a.json", "b.json"):
        command = ["--input", str(tmp_path / "in.txt"), "--vocab-size", "270", "--output", str(tmp_path / name)]
        assert train_tokenizer.main(command) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["added_tokens"][0]["content"] == "<|endoftext|>"
    assert train_tokenizer.main(["--input", str(tmp_path), "--vocab-size", "256", "--output", "x"]) == 1
    assert "--vocab-size 256; expected at least 257" in capsys.readouterr().err
