"""Programs that use trio_ckpt for real work."""
