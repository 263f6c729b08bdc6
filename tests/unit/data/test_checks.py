"""Every fault of the data files is found before training, in one sentence with names and numbers."""

import json
import pathlib
import subprocess
import sys

import pytest

from megatron.pretrain.data.checks import check_data_files
from megatron.pretrain.data.sidecar import sidecar_path
from megatron.pretrain.data.tokenizers import TokenizerChoice, load_tokenizer
from overlap_recompute.plan.errors import DataError
from tests.unit.data.conftest import PairMaker
from tests.unit.data.support import ROOT, make_config

BYTE = "--tokenizer-type ByteLevelTokenizer"
HUNDRED = [[number] * 20 for number in range(100)]


def test_sound_data_passes(make_pair: PairMaker) -> None:
    identity = load_tokenizer(TokenizerChoice(tokenizer_type="ByteLevelTokenizer")).unique_identifiers
    prefix = make_pair(HUNDRED, tokenizer=dict(identity))
    check_data_files(make_config(f"{BYTE} --data-path {prefix} --split 90,5,5"))
    check_data_files(make_config(f"{BYTE} --train-data-path {prefix} --valid-data-path 1 {prefix} 2 {prefix}"))
    check_data_files(make_config("--mock-data --tokenizer-type NullTokenizer --vocab-size 100"))


def test_the_tokenizer_that_made_the_pair_is_required(make_pair: PairMaker, bpe_file: pathlib.Path) -> None:
    other = load_tokenizer(TokenizerChoice(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(bpe_file)))
    prefix = make_pair(HUNDRED, tokenizer=dict(other.unique_identifiers))
    config = make_config(f"{BYTE} --data-path {prefix} --split 90,5,5")
    with pytest.raises(DataError, match=r"ByteLevelTokenizer \(.*expected the one that made it: HuggingFaceTokenizer"):
        check_data_files(config)
    sidecar_path(prefix).write_text("{")
    with pytest.raises(DataError, match=r"pair.meta.json, which is not JSON"):
        check_data_files(config)
    sidecar_path(prefix).unlink()
    check_data_files(config)


def test_ids_beyond_the_vocabulary(make_pair: PairMaker) -> None:
    prefix = make_pair([[1, 2, 300]] * 100)
    with pytest.raises(DataError, match=r"token id 300 in .*pair.bin; expected ids below .* 257"):
        check_data_files(make_config(f"{BYTE} --data-path {prefix}"))


def test_a_split_that_would_be_empty_is_refused_or_left_out(make_pair: PairMaker) -> None:
    prefix = make_pair(HUNDRED)
    with pytest.raises(DataError, match=r"--split 969,30,1, which gives test 0 of the 100 documents"):
        check_data_files(make_config(f"{BYTE} --data-path {prefix}"))
    check_data_files(make_config(f"{BYTE} --data-path {prefix} --split 97,3,0"))
    check_data_files(make_config(f"{BYTE} --data-path {prefix} --eval-iters 0"))


def test_a_split_of_empty_documents(make_pair: PairMaker) -> None:
    prefix = make_pair([[1, 2], [], []])
    with pytest.raises(DataError, match=r"gives validation 1 of the 3 documents \(and no tokens\)"):
        check_data_files(make_config(f"{BYTE} --data-path {prefix} --split 1,1,1"))


def test_blends_without_weights_must_suffice(make_pair: PairMaker) -> None:
    first, second, tiny = make_pair(HUNDRED, "first"), make_pair(HUNDRED[:50], "second"), make_pair([[1]] * 8, "tiny")
    check_data_files(make_config(f"{BYTE} --train-data-path {first} {second} --eval-iters 0"))
    with pytest.raises(DataError, match=r"373 training samples in 2 prefixes without weights .* the 400 samples"):
        check_data_files(make_config(f"{BYTE} --train-data-path {first} {second} --train-iters 100 --eval-iters 0"))
    with pytest.raises(DataError, match=r"8 training tokens in .*tiny; expected more than --seq-length 8"):
        check_data_files(make_config(f"{BYTE} --train-data-path {first} {tiny} --eval-iters 0"))
    check_data_files(make_config(f"{BYTE} --train-data-path 3 {first} 1 {tiny} --train-iters 100 --eval-iters 0"))


def test_every_prefix_of_a_blend_is_opened(make_pair: PairMaker) -> None:
    prefix = make_pair(HUNDRED)
    with pytest.raises(DataError, match="no file missing.idx"):
        check_data_files(make_config(f"{BYTE} --data-path 1 {prefix} 1 missing"))


def test_the_check_loads_neither_torch_nor_megatron_core(make_pair: PairMaker) -> None:
    prefix = make_pair(HUNDRED)
    program = (
        "import sys; from tests.unit.data.support import make_config\n"
        "from megatron.pretrain.data.checks import check_data_files\n"
        f"check_data_files(make_config('{BYTE} --split 90,5,5 --data-path {prefix}'))\n"
        "import json; print(json.dumps(sorted({'torch', 'megatron.core'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
