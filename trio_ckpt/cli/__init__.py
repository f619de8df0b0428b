"""The command ``trio-ckpt``; the only reader of environment variables.

It asks the rooms below and shows their answers; it may not decide anything that they decide.
"""

from ._app import main as main
