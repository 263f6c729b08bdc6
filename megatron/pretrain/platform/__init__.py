"""The only place where CPU and GPU differ: `install_platform(backend)` before the first import of megatron.core."""

from megatron.pretrain.platform.install import install_platform
from megatron.pretrain.platform.versions import Versions, has_package, versions

__all__ = ["Versions", "has_package", "install_platform", "versions"]
