"""How client updates become the next model, block by block."""
