"""A state without its arrays: leaves, classes, differences, and the frame that is stored.

It may not know NumPy, nor where a frame is kept.
"""
