"""From text to microbatches: tokenizers, `.bin/.idx` pairs, Megatron-Core's datasets, and the loader.

Import from the submodules. This package file imports nothing, so that the checks before training and the worker
processes of the preprocessing tool load neither torch nor megatron-core.
"""
