"""The foreman: its jobs, its workers, and which worker has which item.

This room may not know how a worker runs a function.
"""
