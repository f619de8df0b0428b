"""The store in a PostgreSQL database, which many machines reach.

It takes and gives bytes; it may not know what is in them.
"""
