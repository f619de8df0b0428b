"""`map_tasks`: calls a function with items in several processes, without a server to start.

The engine that runs the items may be processes of this machine, a cluster of Dask or Ray, or any
executor of `concurrent.futures`: it decides where and when an item runs, and replaces lost workers.
State, ownership and results are in the store.

It may not know of commands or pages; it starts a foreman and its workers, or an engine, and ends
what it has started.
"""

from ._engine import Resources as Resources
from ._errors import EngineLostError as EngineLostError, OtherStoreError as OtherStoreError
from ._map import map_tasks as map_tasks, open_map as open_map
