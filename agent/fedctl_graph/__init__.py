"""The interpreter of training graphs, optimisers and metrics, in NumPy; never imported by the daemon."""
