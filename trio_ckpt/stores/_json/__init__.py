"""The store in JSON files that people can read.

It takes and gives bytes; it may not know what is in them.
"""
