"""A window onto runs: a page, a REST API, a stream of events and metrics; the extra ``monitor``.

Imported by name: ``from trio_ckpt import monitor``.  `serve` runs inside the user's nursery and
ends with it.  It may not know how a run saves, and changes one only as its users can.

    serve, server, guard           from the user's nursery to a connection, and to a request
    access                         who may see and do what
    endpoints, parameters, routes  the table of paths; what they take; from request to answer
    openapi, metrics, events       the document of them; figures for Prometheus; the live view
    api, acts                      queries and actions without HTTP
    sources, views, answers, jobs  a run from inside or outside; what is answered about it
"""

from .._util.extras import needs_extra

with needs_extra("monitor", "trio_ckpt.monitor"):
    from ._metrics import Metrics as Metrics
    from ._serve import Serving as Serving, serve as serve
