"""Bridges between asyncio and trio: runs in an asyncio program, and asyncio in their batches."""

from ._bridge import call as call, run as run

__all__ = ["call", "run"]
