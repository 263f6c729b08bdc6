"""What `overlap-recompute watch` is made of: following a metrics file, judging it, drawing it, serving it.

Data flows `follow` (bytes to whole lines) - `lines` (lines to values) - `history` (what is known of the run) - `alarms`
- `frame` and `exposition` (text). Only `follow`, `screen` and `endpoint` touch the world.
"""
