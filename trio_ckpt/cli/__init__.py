"""The command ``trio-ckpt``; the only reader of environment variables.

It asks the rooms below and shows their answers; it may not decide anything that they decide.

    app, options, select           what was typed; the common options; which store, run and streams
    render, exits                  how a command answers: texts, documents, exit codes
    show, watch, pending           `ls` and `show`; `watch`; what an owner is at; collections
    explain, verify, doctor        what a start would do; what is damaged; what a machine can do
    change, ctl                    what changes a run that is not open; what asks an open one
    changes                        what a run that was done again has changed; older outputs
    export, init, new              a run as a file; a store; a project
    monitor, remote                what runs until it is stopped
"""

from ._app import main as main
