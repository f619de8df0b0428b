"""The law of order: a batch passes the gate, is committed with its group, and is then confirmed.

It may not know who holds a run or how its loops are written.
"""
