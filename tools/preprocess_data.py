#!/usr/bin/env python3
"""Turn text into a Megatron `.bin/.idx` pair: JSON lines, text files, source trees; resumable (docs/data.md)."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from megatron.pretrain.data.preprocess.job import Job, is_complete, plan_job, refuse_to_replace
from megatron.pretrain.data.preprocess.progress import make_progress
from megatron.pretrain.data.preprocess.run import tokenize_shards
from megatron.pretrain.data.preprocess.sources import DEFAULT_INCLUDE, find_sources
from megatron.pretrain.data.sidecar import read_sidecar
from megatron.pretrain.data.tokenizers import TOKENIZER_TYPES, TokenizerChoice
from overlap_recompute.plan.errors import UserError

EXAMPLES_SHOWN = 5
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Make the pairs that the command line asks for; 0 when they are in place."""
    options = parse(argv)
    try:
        sources = find_sources(options.input, include=options.include, split_lines=options.split_lines)
        choice = TokenizerChoice(
            tokenizer_type=options.tokenizer_type,
            tokenizer_model=options.tokenizer_model,
            vocab_size=options.vocab_size,
            vocab_file=options.vocab_file,
            merge_file=options.merge_file,
        )
        for key in options.json_keys:
            prefix = options.output_prefix if len(options.json_keys) == 1 else f"{options.output_prefix}_{key}"
            job = plan_job(
                sources,
                prefix=prefix,
                tokenizer=choice,
                json_key=key,
                append_eod=options.append_eod,
                shard_bytes=int(options.shard_mib * (1 << 20)),
            )
            report(make_pair(job, options), as_json=options.json)
    except UserError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preprocess_data: interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def make_pair(job: Job, options: argparse.Namespace) -> dict[str, object]:
    """Make one pair, or find it made, and return the summary."""
    started_s = time.monotonic()
    if not options.overwrite:
        if is_complete(job):
            return {**(read_sidecar(job.prefix) or {}), "prefix": job.prefix, "status": "up to date"}
        refuse_to_replace(job)
    workdir = job.workdir()
    with workdir.locked():
        if workdir.job() != job.parts_identity:
            workdir.start(job.parts_identity)
        progress = make_progress(sum(shard.input_bytes for shard in job.shards), sys.stderr)
        try:
            results, kept = tokenize_shards(
                job, workdir, workers=options.workers, progress=progress, strict=options.strict
            )
        finally:
            progress.close()
        tokenized_s = time.monotonic() - started_s
        # Takes seconds to import: not for the worker processes, and not when there was nothing to do.
        from megatron.pretrain.platform import install_platform

        install_platform("gloo")
        from megatron.pretrain.data.preprocess.publish import publish_pair

        sidecar = publish_pair(job, workdir, results)
    examples = [example for result in results for example in result.examples][:EXAMPLES_SHOWN]
    return {
        **sidecar,
        "prefix": job.prefix,
        "status": "written",
        "examples": examples,
        "shards": len(results),
        "shards_from_earlier_run": kept,
        "workers": options.workers,
        "elapsed_s": round(time.monotonic() - started_s, 3),
        "tokens_per_s": round(sidecar["tokens"] * (1 - kept / len(results)) / max(tokenized_s, 1e-9)),
    }


def report(summary: dict[str, object], *, as_json: bool) -> None:
    """Print the summary of one pair: for a person, or as one line of JSON."""
    if as_json:
        print(json.dumps(summary))
        return
    prefix = summary["prefix"]
    if summary["status"] != "written":
        print(f"{prefix}.bin and .idx are complete and made from these inputs: nothing to do (--overwrite makes anew)")
        return
    print(
        f"{prefix}.bin: {summary['documents']} documents, {summary['tokens']} tokens, {summary['bytes']} bytes, "
        f"{summary['tokens_per_s']} tokens/s, unigram entropy {summary['unigram_entropy_nats']:.3f} nats/token"
    )
    if summary["shards_from_earlier_run"]:
        print(f"{summary['shards_from_earlier_run']} of {summary['shards']} shards were finished by an earlier run")
    if summary["empty"] or summary["malformed"]:
        print(f"left out: {summary['empty']} empty and {summary['malformed']} malformed documents", file=sys.stderr)
        for example in summary["examples"]:  # type: ignore[attr-defined]
            print(f"  {example}", file=sys.stderr)


def positive(text: str) -> int:
    """An int above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def size(text: str) -> float:
    """A number of MiB that comes to at least one byte, for argparse."""
    value = float(text)
    if not value * (1 << 20) >= 1:
        raise argparse.ArgumentTypeError(f"{value} MiB is less than one byte")
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="preprocess_data.py", description=__doc__)
    add_input_flags(parser.add_argument_group("input"))
    add_tokenizer_flags(parser.add_argument_group("tokenizer"))
    add = parser.add_argument_group("output and work").add_argument
    add("--output-prefix", required=True, metavar="PATH", help="path of the pair without .bin and .idx")
    add("--overwrite", action="store_true", help="replace an existing pair and discard another job's unfinished work")
    add("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes; default: %(default)s")
    add(
        "--shard-mib", type=size, default=8.0, metavar="MIB",
        help="text per shard: what a worker does at a time and at most loses when killed; default: %(default)s",
    )  # fmt: skip
    add("--json", action="store_true", help="print the summary as one line of JSON")
    return parser.parse_args(argv)


def add_input_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say what to read."""
    group.add_argument(
        "--input", nargs="+", required=True, metavar="PATH",
        help=".jsonl files (a document per line), text files (a document each), and folders to walk",
    )  # fmt: skip
    group.add_argument(
        "--json-keys", nargs="+", default=["text"], metavar="KEY",
        help="keys of the text in JSON lines; several make a pair each, <prefix>_<key>",
    )  # fmt: skip
    group.add_argument(
        "--include", nargs="+", default=list(DEFAULT_INCLUDE), metavar="PATTERN",
        help='which files of a folder to read, as "*.py"; default: %(default)s',
    )  # fmt: skip
    group.add_argument("--split-lines", action="store_true", help="a document per line of a text file")
    group.add_argument("--strict", action="store_true", help="refuse malformed input instead of counting it")


def add_tokenizer_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say what turns text into tokens."""
    group.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    group.add_argument("--tokenizer-model", metavar="PATH", help="tokenizer.json, SentencePiece model, or folder")
    group.add_argument("--vocab-file", metavar="PATH", help="vocab.json of GPT2BPETokenizer")
    group.add_argument("--merge-file", metavar="PATH", help="merges.txt of GPT2BPETokenizer")
    group.add_argument("--vocab-size", type=positive, metavar="N", help="token numbers of NullTokenizer")
    group.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document id")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
