"""Tiles loaded by tensor descriptors, as on devices with a tensor memory accelerator."""

import pytest
import torch
from triton_cases import EVERYTHING, assert_equals_dense, head

from lossbook.kernels.cross_entropy.triton import config

FILTERS = [None, 2.0**-5, (2.0**-7, 2.0**-4), (2.0**-7, None), (None, 2.0**-7)]


@pytest.fixture
def described(monkeypatch):
    """Shapes of the matrices that descriptors were made of."""
    shapes = []
    describe = config.descriptor

    def spy(matrix):
        shapes.append(tuple(matrix.shape))
        return describe(matrix)

    monkeypatch.setattr(config, "descriptor", spy)
    return shapes


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
def test_described_tiles(filter_eps, architecture, pretend, described):
    """Ragged in every direction: rows, columns of a span, and features past the last whole tile."""
    pretend(architecture)
    heads = head(300, 333, 72, dtype=torch.float16, ignored=5)
    for chunk_bytes in (1, 1 << 30):
        options = {"filter_eps": filter_eps, "chunk_bytes": chunk_bytes, "reduction": "none"}
        assert_equals_dense(heads, **options)
        assert_equals_dense(heads, **options, softcap=9.0, label_smoothing=0.1, **EVERYTHING)
    assert (240, 72) in described and (333, 72) in described


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 33, 8), (129, 31, 64), (128, 256, 128), (40, 20, 200)], ids=str)
def test_shapes(shape, pretend, described):
    pretend("sm_90")
    assert_equals_dense(head(*shape, dtype=torch.float16, ignored=0), reduction="none", filter_eps=2.0**-6)
    assert described


@pytest.mark.parametrize("case", ["odd width", "float32", "unaligned start"])
def test_what_descriptors_cannot_read_is_read_by_pointers(case, pretend, described):
    pretend("sm_90")
    heads = head(
        140, 90, 25 if case == "odd width" else 24, dtype=torch.float32 if case == "float32" else torch.float16
    )
    if case == "unaligned start":
        shifted = torch.empty(heads.c.numel() + 1, dtype=heads.c.dtype)[1:].view_as(heads.c).copy_(heads.c.detach())
        heads = heads._replace(c=shifted.requires_grad_())
    assert_equals_dense(heads, reduction="none")
    assert (90, heads.c.shape[1]) not in described
