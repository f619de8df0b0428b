"""`map_tasks`: functions over items in several processes, and no server to start."""

from ._map import map_tasks as map_tasks
