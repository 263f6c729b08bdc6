"""The study of tools/reproduce_study.py: its matrix, its figures, its page and its plots."""
