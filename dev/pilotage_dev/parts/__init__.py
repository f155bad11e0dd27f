"""One file a part of the stack."""
