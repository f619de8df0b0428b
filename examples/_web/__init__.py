"""The parts of the crawler that have nothing to do with checkpoints: URLs, HTTP, HTML, manners."""

from trio_ckpt._util.extras import needs_extra

with needs_extra("crawler", "an example that asks servers"):
    import h11  # noqa: F401  # the files of this package import what they use
    import lxml  # noqa: F401
    import protego  # noqa: F401
    import yarl  # noqa: F401
