"""One-shot tokens, what is pending of them, and the coordinator that has no I/O.

It may not know what a store or a stream is.
"""
