"""Loaders turn a model's files into something that runs; one module a format, imported when needed."""
