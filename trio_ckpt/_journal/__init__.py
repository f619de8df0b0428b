"""Records and what follows from them: progress, history, sums, and the contract of every store.

It may not know how records are made durable, nor what a loop is.

    store, stored          the contract of a store; the values that it takes and returns
    record, folds          what is saved: a record of each batch, progress as a whole now and then
    progress, apply        the sum of the records of a stream; how a record is added to it
    notes, deferral, code  what batches note; until when one waits; which code confirmed which
    item_marks             the sum of the items, which shows that a list has changed
    history                the records themselves; session_record: those of a session
    statistics, summary    counts, rate and ETA; sums over streams, and the status of a run
    changes                what changed from one generation to the next
    overview, collection   what a list shows of a run; of many runs that are one collection
    live_view, acts        what an open run shows to other processes; what they may ask of it
    inbox                  how acts come where there is no socket
    observer               the contract of what is told while a run works
"""
