"""What users hold: runs, streams, their loops, and how they resume.

It may not know of other processes, of commands, or of the network.

    config, lifecycle          the arguments of `open_run`; from the lock of a run to its end
    run_lock, opening, closing waiting for the lock; a run that is poisoned early; its end
    run, open_run              a run as its program holds it; its live state
    again, again_stream        a complete run that is done again; where its streams begin
    lag                        how far before the last cursors that is
    limited, brake             a run with limits; batches that failed in an outage
    open_collection            the arguments, the signals and the deadline of a collection
    collection, partition      many runs that are one collection; one of them
    partition_list             which of them are left
    session, manifest          what a session found and how it ended; the list of all outputs
    code                       whether the code of a run has changed: code_source, code_digest
    stream, stream_operations  a stream as its owner holds it; what he does beside its loops
    resume, verify             opening a stream: state restored, blobs missed; outputs verified
    source, loop, loop_bounds  where batches come from; one after the other; begin and end
    surroundings               a cancel scope around a loop that has ended its body
    parallel, deferred         several batches at once; a run that has only deferred ones left
    phase, stream_table        what is done once; all streams of a run, and who waits for them
    steering                   what other processes may ask of a run
    act_server, act_inbox      how they reach it: a socket, or the inbox in the store
    statistics, live_publisher  what is shown; announce, tracing: what is logged and traced
"""
