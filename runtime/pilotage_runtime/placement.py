"""Where and how precisely a model computes: words that settings and loaders share."""

from typing import Literal

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "float16", "bfloat16"]
