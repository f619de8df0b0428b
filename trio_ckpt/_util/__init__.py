"""What every room uses: errors, checked arguments, plain values, numbers, text, threads.

It may not know what a batch, a record or a store is.

    errors, exceptions, extras      errors of the library; of others; of a missing extra
    arguments, plain                what the border accepts; values as they are stored
    index_set, exact_sum            sets of batches as intervals; sums without rounding
    text, shown, screen, log        numbers and names as users read them; where they are shown
    opening                         what `open_*` functions return
    threads, nursery, uninterrupted what runs in threads; beside a block; without a Ctrl-C
    patience, lease_option          limits in time
    forks, fsync, closing, network  processes, disks, descriptors and sockets
    lazy, version                   names imported when they are asked for; what is installed
"""
