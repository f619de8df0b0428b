"""The foreman: its jobs, its workers, and who has which item.

It may not know how a worker runs a function.
"""
