"""Claims of a note on nanoGPT's init, their evidence and their pictures; run by examples/nanogpt_claims.py."""
