"""The law of order: a batch passes the gate, is committed with its group, and is then confirmed.

It may not know who holds a run or how its loops are written.

    batch, batch_files         an attempt as its body holds it; what it writes
    open_stream                the stream that it belongs to
    exits, gate                how a batch can be left, as a table; the one way to the store
    submission                 what an attempt submits: its checks, its record
    stream_log, group_commit   from submitted to durable, progress and token
    saves                      records that are not about a batch
    ownership, lease           who owns the run, and proof that this process lives
    retry, http_retries        whether a failed batch runs again; http_errors: what a server said
    rate_limit, pace, pauses   a rate that tasks share; how fast requests may go; none may
    stream_outputs             the files of a stream; path_owners: who owns which
    adopt                      files that no record names
    state_manager              the state: state_capture, stored_state, snapshots; archive_states
    redo, give_up              batches that are re-queued; that are given up from outside
    shutdown                   a stop in good order
    awaits, extent, observers  forgotten awaits; how much is left; who is told
"""
