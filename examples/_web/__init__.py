"""The parts of the crawler that have nothing to do with checkpoints: URLs, HTTP, HTML, manners."""
