"""A worker: the functions that it runs, and the store that it reaches through its foreman.

This room may not know which jobs exist.
"""
