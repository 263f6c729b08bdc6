"""Check all data files of a run before any process group exists. Loads neither torch nor megatron-core."""

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.blends import SEVERAL, SPLIT_FLAGS, SPLITS, Blend, DataPlan, data_plan
from megatron.pretrain.data.sidecar import check_tokenizer
from megatron.pretrain.data.token_files import TokenFile, largest_sampled_token, open_token_file
from megatron.pretrain.data.tokenizers import Tokenizer, build_tokenizer
from overlap_recompute.plan.errors import DataError


def check_data_files(config: PretrainConfig) -> None:
    """Check tokenizer, pairs, blends and splits of a run; takes constant time per pair.

    Raises:
        DataError: the first fault, with file names and numbers. Among them a split that would be empty although
            samples are wanted from it, on which Megatron-Core 0.16 loops for ever.
    """
    tokenizer = build_tokenizer(config)
    plan = data_plan(config)
    prefixes = dict.fromkeys(prefix for blend in plan.blends if blend is not None for prefix in blend.prefixes)
    files = {prefix: open_token_file(prefix) for prefix in prefixes}
    for file in files.values():
        check_tokenizer(file.prefix, tokenizer)
        _check_vocabulary(file, tokenizer)
    for split, blend in enumerate(plan.blends):
        if blend is not None and plan.is_used(split):
            tokens = {prefix: _tokens_of_split(plan, split, files[prefix]) for prefix in blend.prefixes}
            _check_unweighted(config, plan, split, blend, tokens)


def _check_vocabulary(file: TokenFile, tokenizer: Tokenizer) -> None:
    largest = largest_sampled_token(file)
    if largest >= tokenizer.vocab_size:
        raise DataError(
            f"token id {largest} in {file.prefix}.bin",
            f"ids below the tokenizer's vocabulary of {tokenizer.vocab_size}",
            "give the tokenizer that made the file by --tokenizer-type and --tokenizer-model",
        )


def _tokens_of_split(plan: DataPlan, split: int, file: TokenFile) -> int:
    """Count of tokens that a split gets from a pair.

    Raises:
        DataError: none.
    """
    documents = plan.documents(split, file.documents)
    tokens = file.tokens_between(documents.start, documents.stop) if documents else 0
    if tokens:
        return tokens
    share = SPLIT_FLAGS[split] if plan.shares is None else f"--split {','.join(f'{share:g}' for share in plan.shares)}"
    advice = "remake the pair from text that is not empty"
    if plan.shares is not None:
        advice = f"raise the {SPLITS[split]} share, set it to 0, use more documents, or set --eval-iters 0"
    raise DataError(
        f"{share}, which gives {SPLITS[split]} {len(documents)} of the {file.documents} documents (and no tokens) of "
        f"{file.prefix}",
        f"tokens to draw {plan.samples[split]} {SPLITS[split]} samples from (whole documents are divided)",
        advice,
    )


def _check_unweighted(config: PretrainConfig, plan: DataPlan, split: int, blend: Blend, tokens: dict[str, int]) -> None:
    """Several prefixes without weights are read once each: no repeats, so they must suffice."""
    if blend.weights is not None or len(blend.prefixes) < SEVERAL:
        return
    length = config.model.seq_length
    samples = {prefix: (count - 1) // length for prefix, count in tokens.items()}
    short = next((prefix for prefix in blend.prefixes if samples[prefix] == 0), None)
    if short is not None:
        raise DataError(
            f"{tokens[short]} {SPLITS[split]} tokens in {short}",
            f"more than --seq-length {length} from every prefix of a blend without weights",
            "leave it out, or write a weight before every prefix to allow repeats",
        )
    total = sum(samples[prefix] for prefix in blend.prefixes)
    if total < plan.samples[split]:
        raise DataError(
            f"{total} {SPLITS[split]} samples in {len(blend.prefixes)} prefixes without weights (never repeated)",
            f"the {plan.samples[split]} samples that this run draws",
            "write a weight before every prefix to allow repeats, or shorten the run",
        )
