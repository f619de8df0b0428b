"""What foreman, workers and clients say to each other: messages, frames, and the protocol's table.

It may not know what is done about it.
"""
