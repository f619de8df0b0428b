"""The store in one SQLite database.

It takes and gives bytes; it may not know what is in them.
"""
