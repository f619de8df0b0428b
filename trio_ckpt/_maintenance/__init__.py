"""What an owner does while no program runs: verify, repair, compact, export, import, explain.

This room may not know its callers: no command, no page, no network.
"""
