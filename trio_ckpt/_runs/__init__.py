"""What users hold: runs, streams, their loops, and how they resume.

It may not know of other processes, of commands, or of the network.
"""
