"""The command ``trio-ckpt``; the only reader of environment variables."""

from ._app import main as main
