"""The foreman: its jobs, its workers, and which worker has which item.

This room may not know how a worker runs a function.

    serve, peers, foreman           a foreman on the network; one connection; without its sockets
    job, attempt, results           a job as a run; an attempt at an item; what its client gets
    pool, waiting, lease            workers, waiting items, and which worker has which
    dispatch, renewal               an item from worker to worker; the lock of its run
    store_proxy, task_checkpoints   the store of a worker; the saved states of an item
    job_reader, job_views           jobs as a store has them, and as the REST interface shows them
    live, publisher                 what other processes see of a foreman, and ask of it
"""
