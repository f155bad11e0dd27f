"""HTTP: one outermost layer for every path; below it inference, and FastAPI for all else."""
