"""Text to `.bin/.idx` pairs: in parallel, resumable, and never half-written.

Reading order: `sources` (what is read, cut into shards), `documents` (the texts of a piece), `shards` (one shard to
tokens, in any process), `workdir` (what a killed run leaves behind), `run` (all shards), `publish` (the final pair;
the only part that loads torch and megatron-core).
"""
