"""Checks of options against each other: small functions in one table per subject."""
