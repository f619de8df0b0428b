"""Buckets of object stores: URLs, requests that are sent until they are answered, their clocks.

Stores and outputs in a bucket share it.  It may not know what objects are for.  `bucket` is the
only file that talks to the library for object stores.
"""
