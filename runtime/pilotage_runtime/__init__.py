"""Pilotage's inference runtime: one engine, transports that only translate."""

__version__ = "0.1.0"
