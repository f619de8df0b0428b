"""The messages of foreman, workers and clients: their formats, frames, and the protocol's table.

This room may not know how a message is handled.
"""
