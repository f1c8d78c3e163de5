"""Independent references of sparse attention: loops over single numbers, written from the formulas alone."""

import math

import torch


def tensors(generator, batch=2, key_heads=2, group=1, tokens=12, features=8, dtype=torch.float64):
    """Queries, keys and values."""
    kv = (batch, key_heads, tokens, features)
    shapes = (batch, key_heads * group, features), kv, kv
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def channels_of(generator, heads, features, r):
    """Random channels of each head."""
    return torch.stack([torch.randperm(features, generator=generator)[:r] for _ in range(heads)])


def poison(cache, lengths):
    """NaN behind every request's last token."""
    cache = cache.clone()
    for row, length in zip(cache, lengths, strict=True):
        row[:, length:] = torch.nan
    return cache


def ranking(scores, length, sink=0, recent=0):
    """Tokens of one request from best to worst: forced ones, then by score and index, NaN last."""

    def key(token):
        score = scores[token]
        forced = token < sink or token >= length - recent
        return (not forced, math.isnan(score), 0.0 if math.isnan(score) else -score, token)

    return sorted(range(length), key=key)


def attend(q, k, v, chosen):
    """Attention of all heads in float64; ``chosen(b, h)`` lists the tokens of a query head."""
    batch, heads, features = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(batch, heads, features, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            tokens = chosen(b, h)
            dots = [sum(float(x) * float(y) for x, y in zip(q[b, h], k[b, h // group, t], strict=True)) for t in tokens]
            weights = [math.exp((dot - max(dots)) / features**0.5) for dot in dots]
            for t, weight in zip(tokens, weights, strict=True):
                out[b, h] += weight / sum(weights) * v[b, h // group, t].double()
    return out


def double_sparse(q, k, v, channels, budget, lengths, sink=0, recent=0):
    """The whole step with 16-bit labels, per query head or with the largest score of the group."""
    heads, rows = q.shape[1], channels.shape[0]
    share, group = heads // rows, heads // k.shape[1]

    def chosen(b, h):
        label_head = h // share
        members = range(label_head * share, (label_head + 1) * share)
        scores = [
            max(sum(float(q[b, m, c] * k[b, h // group, t, c]) for c in channels[label_head].tolist()) for m in members)
            for t in range(lengths[b])
        ]
        return sorted(ranking(scores, lengths[b], sink, recent)[:budget])

    return attend(q, k, v, chosen)


def as_pages(k, page, generator, spare=2):
    """A contiguous cache in shuffled pages, with pages of NaN between them, and the table that finds them."""
    batch, heads, tokens, features = k.shape
    count = -(-tokens // page)
    order = torch.randperm(batch * count + spare, generator=generator)[: batch * count].view(batch, count)
    pages = torch.full((batch * count + spare, heads, page, features), torch.nan).to(k.dtype)
    for b in range(batch):
        for i in range(count):
            part = k[b, :, i * page : (i + 1) * page]
            pages[order[b, i], :, : part.shape[1]] = part
    return pages, order.to(torch.int32)
