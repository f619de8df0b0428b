"""Damage for everything that reads what others may have written: one table of targets.

``python -m tests.fuzz all`` feeds each with inputs that atheris finds by coverage; the tests
run a bounded number of plain mutations with fixed seeds, without it.
"""
