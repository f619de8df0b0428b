"""The arrays of a state: captured, compared by blocks, compressed, and assembled again.

It may not know what else a state is made of, nor where its bytes are kept.
"""
