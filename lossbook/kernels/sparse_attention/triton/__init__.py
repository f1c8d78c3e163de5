"""Double Sparsity in Triton.  Imported only when a step runs on it: nothing above this package imports Triton."""
