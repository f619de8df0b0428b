"""The parts of the crawler around its heart: failures, redirects, the display, the command line."""
