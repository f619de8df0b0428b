"""Records and what follows from them: progress, history, sums, and the contract of every store.

It may not know how records are made durable, nor what a loop is.
"""
