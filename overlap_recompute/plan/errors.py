"""The errors that users see: one sentence on what was found, what was expected and what to do."""


class UserError(ValueError):
    """A fault that the user can mend.

    Args:
        found: what was found, naming the flag, file or rank ("--num-attention-heads 6").
        expected: what would have been right ("a multiple of --tensor-model-parallel-size 4").
        next_step: what to do about it ("choose 4 or 8 heads, or a tensor-parallel size of 2 or 3").
    """

    def __init__(self, found: str, expected: str, next_step: str) -> None:
        self.found, self.expected, self.next_step = found, expected, next_step
        super().__init__(f"found {found}; expected {expected}; {next_step}.")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.next_step)


class ConfigError(UserError):
    """A command-line value that is wrong by itself or contradicts another."""


class DataError(UserError):
    """A data file, tokenizer or split that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or does not fit this run."""


class ClusterError(UserError):
    """A process group that cannot be formed, or a rank that is lost."""
