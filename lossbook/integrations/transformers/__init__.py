"""Models of Hugging Face Transformers with the kernels of this package inside.

Importing this package does not import ``transformers``.
"""

from lossbook.integrations.transformers.loss import patch, unpatch

__all__ = ["patch", "unpatch"]
