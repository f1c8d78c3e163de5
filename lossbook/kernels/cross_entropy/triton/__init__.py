"""Cut Cross-Entropy in Triton.  Imported only when a head runs on it: nothing above this package imports Triton."""
