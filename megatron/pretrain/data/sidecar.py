"""The `.meta.json` beside a pair: which tokenizer made it, from what, and what came out."""

import json
from pathlib import Path
from typing import Any

from megatron.pretrain.data.tokenizers.base import Tokenizer
from overlap_recompute.plan.errors import DataError

FORMAT = 1


def sidecar_path(prefix: str) -> Path:
    """Path of the side-car of a pair."""
    return Path(prefix + ".meta.json")


def read_sidecar(prefix: str) -> dict[str, Any] | None:
    """Read the side-car of a pair; None when there is none (pairs made by other tools have none).

    Raises:
        DataError: it is there and is not a side-car.
    """
    path = sidecar_path(prefix)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        content, reason = None, f"not JSON ({error})"
    else:
        reason = "without the fields of a side-car"
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not isinstance(content.get("tokenizer"), dict)
    ):
        raise DataError(
            f"{path}, which is {reason}",
            "the side-car that tools/preprocess_data.py wrote",
            "make the pair again, or remove this file to skip the check of the tokenizer",
        )
    return content


def check_tokenizer(prefix: str, tokenizer: Tokenizer) -> None:
    """Check that the run's tokenizer is the one that made the pair, as far as a side-car tells.

    Raises:
        DataError: it is another one.
    """
    sidecar = read_sidecar(prefix)
    if sidecar is None or sidecar["tokenizer"] == tokenizer.unique_identifiers:
        return
    raise DataError(
        f"the tokenizer {_text(tokenizer.unique_identifiers)} with {prefix}.bin",
        f"the one that made it: {_text(sidecar['tokenizer'])}",
        f"give that tokenizer by --tokenizer-type and --tokenizer-model (if the ids do agree, remove "
        f"{sidecar_path(prefix)})",
    )


def _text(identity: dict[str, Any]) -> str:
    parts = [f"{key} {str(value)[:12]}" for key, value in identity.items() if key != "class"]
    return f"{identity.get('class')} ({', '.join(parts)})"
