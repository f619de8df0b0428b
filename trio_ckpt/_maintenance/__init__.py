"""What an owner does beside the program: verify, repair, compact, export, import, explain.

This room may not know its callers: no command, no page, no network.  What only reads works while a
program runs; what changes a run takes its lock (`offline`).

    verify_store, verify_states, verify_outputs    records, saved states, files: each byte
    drift, losses                                  files that differ; blobs that a start misses
    explain, explain_*, reasons                    what a start would do, and why
    repair, recovery, recover_*                    what can be saved of a damaged store
    compact, export, import_, archive_*            fewer states; a run as one file
    restore                                        the outputs of an older generation
    steer, ask_inbox                               acts on a run, open or not
    doctor, read_arrays                            what a machine can do; arrays of a state
"""
