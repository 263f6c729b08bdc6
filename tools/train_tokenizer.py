#!/usr/bin/env python3
"""Train a byte-level BPE tokenizer on text and write it as `tokenizer.json`, for --tokenizer-type HuggingFaceTokenizer.

The same text gives the same file. Every byte is a token, so any text can be written in it and read back.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from megatron.pretrain.data.preprocess.documents import read_documents
from megatron.pretrain.data.preprocess.sources import DEFAULT_INCLUDE, cut_into_shards, find_sources
from overlap_recompute.plan.errors import DataError, UserError
from overlap_recompute.plan.files import write_if_changed

END_OF_DOCUMENT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
"""All bytes and the end-of-document token."""


def train(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train GPT-2's kind of tokenizer: byte-level BPE without normalization."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(inputs: Sequence[str], include: Sequence[str], json_key: str) -> Iterator[str]:
    """All well-formed documents of the inputs, in order."""
    for shard in cut_into_shards(find_sources(inputs, include=include), 1 << 62):
        for piece in shard.pieces:
            for document in read_documents(piece, json_key):
                if document.text:
                    yield document.text


def main(argv: Sequence[str]) -> int:
    """Train and write; a file that is already right is not touched."""
    parser = argparse.ArgumentParser(prog="train_tokenizer.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=".jsonl files, text files, folders")
    parser.add_argument("--include", nargs="+", default=list(DEFAULT_INCLUDE), metavar="PATTERN")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="default: %(default)s")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="count of tokens")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    options = parser.parse_args(argv)
    try:
        if options.vocab_size < SMALLEST_VOCABULARY:
            raise DataError(
                f"--vocab-size {options.vocab_size}",
                f"at least {SMALLEST_VOCABULARY} (every byte and the end of a document)",
                "raise it",
            )
        tokenizer = train(texts_of(options.input, options.include, options.json_key), options.vocab_size)
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            written = write_if_changed(options.output, (tokenizer.to_str(pretty=True) + "\n").encode("utf-8"))
        except OSError as error:
            raise DataError(
                f"--output {options.output}: {error.strerror}",
                "a file to write to",
                "choose another place or make room",
            ) from error
    except UserError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return 1
    found = tokenizer.get_vocab_size()
    if found < options.vocab_size:
        print(f"train_tokenizer: the text yields {found} tokens, fewer than --vocab-size asks for", file=sys.stderr)
    print(f"{options.output}: {found} tokens, {'written' if written else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
