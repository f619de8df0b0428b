"""The store in JSON files that people can read.

It takes and gives bytes.  Its files show the fields of records, so it decodes them; it may not know
what they mean.
"""
