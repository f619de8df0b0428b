"""The parts of the collector around its heart: what comes from the API, and the command line."""
