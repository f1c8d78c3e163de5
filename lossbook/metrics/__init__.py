"""Metrics of the book's chapters, on NumPy arrays or CPU tensors.

One file holds one family (``ranking.py``, ``calibration.py``, ...) and lists its public names in ``__all__``; this
package re-exports all of them flat.  Where scikit-learn has a metric, that is what is called.
"""

__all__: list[str] = []
