"""A small paged API over the Unicode character database, with faults on request."""
