"""The Open Inference Protocol V2: translation between the wire and tensors, nothing else."""
