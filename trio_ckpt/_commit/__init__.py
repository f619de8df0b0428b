"""The law of order: a batch passes the gate, is committed with its group, and is then confirmed.

It may not know who holds a run or how its loops are written.

    batch, batch_files         an attempt as its body holds it; what it writes
    batch_host, staged         what a batch asks of its stream; what it has staged for its record
    open_stream, extent        the stream that it belongs to; how much of that is left
    exits, gate                how a batch can be left, as a table; the one way to the store
    submission, introduce      what an attempt submits; what a record says of the whole stream
    stream_log, group_commit   from submitted to durable, progress and token
    saves, fold_schedule       records that are not about a batch; what is saved beside records
    ownership, lease           who owns the run, and proof that this process lives
    retry, http_retries        whether a failed batch runs again; http_errors: what a server said
    deferrals, give_up         batches that wait until they are due; that are given up from outside
    redo                       batches that are re-queued
    rate_limit, pace, pauses   a rate that tasks share; how fast requests may go; a stream waits
    limits, limit_watch        what a run may cost; the stop where a limit is reached
    intents, reservations      what is on record before a batch is done; what it may cost
    stream_outputs             the files of a stream; path_owners: who owns which
    line_appender, rotation    lines before their records; files in parts; sink_writer: how written
    rows                       rows in a database, before the record of their batch
    adopt, carried             files that no record names; those of the last generation
    previous                   what the last generation knows of each item
    state_manager              the state: state_capture, stored_state, snapshots; archive_states
    shutdown                   a stop in good order
    awaits, observers          forgotten awaits; who is told
"""
