"""Build of the `overlap-recompute` package; settings live in pyproject.toml, the extension's build in csrc/."""

import pathlib
import sys

from setuptools import find_namespace_packages, setup

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "csrc"))
from build_extension import BuildExtension, extension_modules

# `megatron` is a namespace shared with pip's megatron-core: this repository must never own megatron/__init__.py.
setup(
    packages=find_namespace_packages(include=["overlap_recompute*", "megatron.overlap*", "megatron.pretrain*"]),
    ext_modules=extension_modules(),
    cmdclass={"build_ext": BuildExtension},
)
