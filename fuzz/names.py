"""What there is to fuzz, told without importing it."""

from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
NAMES = tuple(sorted(folder.name for folder in CORPUS.iterdir()))
