"""Network namespaces joined by rate-limited links, for measuring on one machine what a slow network does to a run.

Reading order: `links` (what a link is), `network` (namespaces, switch, shaping), `owner` (whose they are), `ranks`
(processes), `measure` (what the links achieve), `cli`. Standard library only; Linux, root, `ip` and `tc`.
"""
