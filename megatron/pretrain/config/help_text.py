"""The text of --help, from the option dataclasses."""

import textwrap

from megatron.pretrain.config.field_docs import field_docs
from megatron.pretrain.config.flags import Flag, all_flags
from megatron.pretrain.config.pretrain_config import GROUPS

WIDTH = 100
INDENT = 6

INTRODUCTION = """\
usage: pretrain_gpt.py --num-layers N --hidden-size N --num-attention-heads N --seq-length N
                       --micro-batch-size N --train-iters N --lr X [flag ...]

Train a GPT model on Megatron-Core. Flags have Megatron-LM's names and meanings and are never
abbreviated. Start one process per GPU, or per CPU core, with torchrun or srun.
"""

EPILOG = """
Examples

  One process on a CPU, with made-up tokens:

    python pretrain_gpt.py --distributed-backend gloo --mock-data --vocab-size 512 \\
        --num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 \\
        --micro-batch-size 2 --global-batch-size 8 --train-iters 20 --lr 1e-3 --log-interval 1

  A Llama-style model on 8 GPUs, two pipeline stages of four tensor-parallel ranks:

    torchrun --nproc-per-node 8 pretrain_gpt.py --bf16 \\
        --tensor-model-parallel-size 4 --sequence-parallel --pipeline-model-parallel-size 2 \\
        --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --swiglu \\
        --group-query-attention --num-query-groups 8 --normalization RMSNorm \\
        --position-embedding-type rope --disable-bias-linear \\
        --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 \\
        --seq-length 4096 --micro-batch-size 1 --global-batch-size 256 --train-iters 10000 \\
        --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 100 \\
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \\
        --data-path 0.7 data/web 0.3 data/code --tokenizer-type HuggingFaceTokenizer \\
        --tokenizer-model tokenizer.json --save checkpoints --load checkpoints \\
        --save-interval 500

docs/flags.md lists the same flags, the flags of Megatron-LM that are refused, and why.
"""


def help_text() -> str:
    """Every flag by group, with values, default and meaning; ends in two example commands."""
    return INTRODUCTION + "".join(_group(options) for _, options in GROUPS) + EPILOG


def describe_default(flag: Flag) -> str:
    """What holds when the flag is not given."""
    if flag.is_required:
        return "required"
    if flag.is_switch:
        return "on" if flag.default else "off"
    if flag.default is None:
        return "not set"
    return str(flag.default).removesuffix(".0") or "empty"


def describe_argument(flag: Flag) -> str:
    """What follows the flag on the command line."""
    if flag.is_switch:
        return ""
    names = {int: "N", float: "X", str: "TEXT"}
    one = "{" + ",".join(map(str, flag.choices)) + "}" if flag.choices else names[flag.base]
    return f"{one} ..." if flag.is_tuple else one


def describe_effect(flag: Flag, doc: str) -> str:
    """What the flag does; a --no- switch takes away what the field's docstring describes."""
    if not (flag.is_switch and flag.default):
        return doc
    return f"Switch off: {doc if doc[1].isupper() else doc[0].lower() + doc[1:]}"


def _group(options: type) -> str:
    docs = field_docs(options)
    title = (options.__doc__ or "").rstrip(".")
    return f"\n{title}\n" + "".join(_entry(flag, docs[flag.field_name]) for flag in all_flags(options))


def _entry(flag: Flag, doc: str) -> str:
    head = f"  {flag.name} {describe_argument(flag)}".rstrip()
    text = f"{describe_effect(flag, doc)} [{describe_default(flag)}]"
    if len(head) > WIDTH:
        head, text = f"  {flag.name} VALUE", f"{text} VALUE is {flag.describe_values()}."
    lead = " " * INDENT
    body = textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
    return f"{head}\n{body}\n"
