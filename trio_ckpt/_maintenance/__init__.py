"""What an owner does while no program runs: verify, repair, compact, export, import, explain.

It may not know who asks: no command, no page, no network.
"""
