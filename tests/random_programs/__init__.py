"""Random programs over many sessions, judged by a reading of records and files of its own.

A program is some streams of different kinds, worked on by sessions of which most end badly: killed,
stopped, cancelled, by an exception, with saves that fail.  Between them batches are put back to
work, by the program or by commands, and outputs are damaged.  After each session `reader` reads
the store and the output folder without a line of the library, adds everything up again, and
`judge` compares: the records with each other, with the files, with what the sessions said that
they did, and with what the library makes of them.

``python -m tests.random_programs --programs 2000`` runs as many; the tests run a share.
"""
