"""One dataclass per group of flags; a new group is one file here and one field of PretrainConfig."""
