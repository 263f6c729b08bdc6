#!/usr/bin/env python3
"""Write the sources of Python's own standard library as JSON lines: real text that every machine has.

One document per top-level module of the library (about 170 modules, 4 to 5 MB), without packages, tests and files that
differ from machine to machine. Documents stand in the order of a hash of their names, so that a share of them cut off
at the end, as `--split 95,5,0` does, is a fair sample of the whole.
"""

import argparse
import hashlib
import json
import sys
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

from overlap_recompute.plan.errors import DataError, UserError
from overlap_recompute.plan.files import write_if_changed

MACHINE_FILES = "_sysconfigdata"
"""Beginning of the names of modules that record how this very Python was built."""


def module_files(library: Path) -> list[Path]:
    """Top-level modules of a standard library, in the order of a hash of their names."""
    paths = [path for path in library.glob("*.py") if path.is_file() and not path.name.startswith(MACHINE_FILES)]
    return sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())


def corpus(library: Path) -> tuple[bytes, int]:
    """JSON lines with the keys text and name, and the count of documents.

    Raises:
        DataError: there are no sources, as in an installation that ships byte code alone.
    """
    lines = []
    for path in module_files(library):
        with tokenize.open(path) as stream:  # honours the file's own declaration of its encoding
            text = stream.read()
        lines.append(json.dumps({"text": text, "name": path.name}, ensure_ascii=False))
    if not lines:
        raise DataError(
            f"no Python sources in {library}", "the standard library's .py files", "use a Python that ships them"
        )
    return ("\n".join(lines) + "\n").encode("utf-8"), len(lines)


def main(argv: Sequence[str]) -> int:
    """Write the corpus; a file that is already right is not touched."""
    parser = argparse.ArgumentParser(prog="build_stdlib_corpus.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .jsonl file to write")
    options = parser.parse_args(argv)
    try:
        content, documents = corpus(Path(sysconfig.get_path("stdlib")))
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            written = write_if_changed(options.output, content)
        except OSError as error:
            raise DataError(
                f"--output {options.output}: {error.strerror}",
                "a file to write to",
                "choose another place or make room",
            ) from error
    except UserError as error:
        print(f"build_stdlib_corpus: {error}", file=sys.stderr)
        return 1
    state = "written" if written else "already there"
    print(f"{options.output}: {documents} documents, {len(content) / 1e6:.2f} MB, {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
