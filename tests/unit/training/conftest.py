"""The CPU platform for every test of the trainer's parts."""

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the test modules cause
