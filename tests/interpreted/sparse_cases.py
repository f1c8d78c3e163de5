"""Key-value caches for the interpreter, with garbage wherever nothing may be read."""

from typing import NamedTuple

import torch
from torch import Tensor

# Largest relative Frobenius errors.  In float32 a stage computes the same sums in nearly the same order, as far as the
# matrix product of the processor at hand keeps it: a few units in the last place.  Where
# parts of a list are joined the order is another one.  16-bit results are rounded, in bfloat16 toward zero by the
# interpreter, and so are the weights of the softmax in float16.
SAME_ORDER = 8 * torch.finfo(torch.float32).eps
JOINED = 1e-5
ROUNDED = {torch.float32: SAME_ORDER, torch.float16: 1e-3, torch.bfloat16: 5e-3}


class Cache(NamedTuple):
    """One query token per request, and the keys and values of its tokens; NaN behind each request's length."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths: Tensor

    def double(self) -> "Cache":
        """The same numbers in float64; a float8 cache stays as it is."""
        caches = (x if x.dtype == torch.float8_e4m3fn else x.double() for x in (self.k, self.v))
        return Cache(self.q.double(), *caches, self.lengths)

    def paged(self, page: int) -> tuple["Cache", Tensor]:
        """The same tokens in shuffled pages of a pool with pages of others, and their table, which ends in garbage."""
        batch, key_heads, tokens, features = self.k.shape
        pages = -(-tokens // page)
        places = torch.randperm(batch * pages + 3, generator=torch.Generator().manual_seed(3))[: batch * pages]
        table = places.view(batch, pages).to(torch.int32)
        pools = []
        for cache in (self.k, self.v):
            pool = cache.new_empty(batch * pages + 3, key_heads, page, features).fill_(torch.nan)
            whole = cache.new_empty(batch, key_heads, pages * page, features).fill_(torch.nan)
            whole[:, :, :tokens] = cache
            pool[places] = whole.unflatten(2, (pages, page)).transpose(1, 2).flatten(0, 1)
            pools.append(pool)
        unused = torch.arange(pages) * page >= self.lengths[:, None]
        return self._replace(k=pools[0], v=pools[1]), table.masked_fill(unused, 1 << 30)


def cache(lengths=(37, 20), key_heads=2, group=3, features=16, *, dtype=torch.float32, kv_dtype=None, seed=0) -> Cache:
    """Random queries, keys and values of requests of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens = len(lengths), max(lengths)
    q = torch.randn(batch, key_heads * group, features, generator=generator).to(dtype)
    k, v = (torch.randn(batch, key_heads, tokens, features, generator=generator) for _ in range(2))
    for request, length in enumerate(lengths):
        k[request, :, length:] = v[request, :, length:] = torch.nan
    return Cache(q, k.to(kv_dtype or dtype), v.to(kv_dtype or dtype), torch.tensor(lengths, dtype=torch.int32))


def channels(heads, r, features, *, seed=0) -> Tensor:
    """Distinct channels of each head, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(features, generator=generator)[:r] for _ in range(heads)])


def lists(lengths, heads, budget, *, seed=0) -> tuple[Tensor, Tensor]:
    """Random lists of tokens, ascending, some shorter than the budget and one empty; -1 behind them."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((len(lengths), heads, budget), -1, dtype=torch.int32)
    count = torch.zeros(len(lengths), heads, dtype=torch.int32)
    for request, length in enumerate(lengths):
        for head in range(heads):
            most = min(budget, length)
            taken = most if head % 2 == 0 else int(torch.randint(most + 1, (), generator=generator))
            index[request, head, :taken] = torch.randperm(length, generator=generator)[:taken].sort().values
            count[request, head] = taken
    count[-1, -1] = 0
    return index, count


def error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error where the reference is finite; both must be the same where it is not."""
    finite = want.isfinite()
    assert torch.equal(got.double()[~finite], want.double()[~finite])
    got, want = got.double()[finite], want.double()[finite]
    return ((got - want).norm() / want.norm()).item() if want.any() else got.norm().item()
