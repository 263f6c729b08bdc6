"""The command `overlap-recompute`: a table of subcommands, each loaded only when it is called."""
