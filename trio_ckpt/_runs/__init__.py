"""What users hold: runs, streams, their loops, and how they resume.

It may not know of other processes, of commands, or of the network.

    config, lifecycle          the arguments of `open_run`; from the lock of a run to its end
    run, open_run              a run as its program holds it; its live state
    open_collection            the arguments, the signals and the deadline of a collection
    collection, partition      many runs that are one collection; one of them
    partition_list             which of them are left
    session, manifest          what a session found and how it ended; the list of all outputs
    stream, stream_operations  a stream as its owner holds it; what he does beside its loops
    resume, verify             opening a stream: state restored, blobs missed; outputs verified
    source, loop, loop_bounds  where batches come from; one after the other; begin and end
    parallel                   several batches at once
    phase, stream_table        what is done once; all streams of a run, and who waits for them
    steering, act_server       what other processes may ask of a run; how they reach it
    statistics, live_publisher  what is shown; announce, tracing: what is logged and traced
"""
