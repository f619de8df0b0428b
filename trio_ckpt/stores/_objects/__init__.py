"""The store in a bucket of an object store: one object for each group of checkpoints.

It takes and gives bytes; it may not know what is in them.
"""
