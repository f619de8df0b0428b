"""Whole programs built on trio_ckpt, to read and to start from."""
