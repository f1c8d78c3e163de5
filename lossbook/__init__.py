"""Losses, kernels and reproductions of Lossbook.

The subpackages are imported on demand: ``lossbook.losses``, ``lossbook.kernels``, ``lossbook.data``,
``lossbook.chapter``, ``lossbook.bench``.  Importing ``lossbook`` itself loads none of them.
"""

__version__ = "0.1.0"
