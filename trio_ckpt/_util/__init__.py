"""What every room uses: errors, checked arguments, plain values, numbers, text, threads.

It may not know what a batch, a record or a store is.
"""
