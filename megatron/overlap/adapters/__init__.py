"""Hooks into megatron-core, one file per upstream file and named after it.

Every adapter checks the shape of what it hooks before it touches anything, and undoes its work exactly through
`Replacements`.
"""
