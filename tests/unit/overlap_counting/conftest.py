"""The CPU platform for tests that count models."""

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the tests cause
