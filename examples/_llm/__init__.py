"""The parts of the pipeline of language models: clients of batch APIs, and a provider to try."""
