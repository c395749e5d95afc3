"""What travels between workstation and device: messages, codec, limits, names, tensors, signing.

A leaf: standard library only, no NumPy, and `cryptography` only inside the signing functions that
need it, so that the idle daemon never loads it.
"""
