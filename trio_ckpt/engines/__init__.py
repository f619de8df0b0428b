"""`map_tasks`: calls a function with items in several processes, without a server to start.

It may not know of commands or pages; it starts a foreman and its workers, and ends them.
"""

from ._map import map_tasks as map_tasks
