"""A worker: the functions it runs, and the store it reaches through its foreman.

It may not know which jobs there are.
"""
