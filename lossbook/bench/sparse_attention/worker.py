"""Measure the attention of a decode step by all methods in one process, in turns.

:func:`records` is run by :mod:`lossbook.bench.stream`.  Every method is checked against float64 before it is timed.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lossbook.bench.environment import device_facts
from lossbook.bench.gpu.correctness import TOLERANCES
from lossbook.bench.measure import copy_bandwidth, timed_calls, use_device
from lossbook.bench.methods import failure
from lossbook.bench.sparse_attention.cases import (
    BASELINE_PART,
    DECODE_METHODS,
    DecodeMethod,
    DecodeShape,
    Sparsity,
)
from lossbook.bench.sparse_attention.results import STEP
from lossbook.kernels import (
    LabelCache,
    approx_scores,
    build_labels,
    dense_decode,
    double_sparse_decode,
    select_tokens,
    sparse_decode,
)

_WARM_UP = 3
# Calls of one CUDA graph: enough that starting it costs each of them next to nothing.
_GRAPH_CALLS = 10
_MOST_CALLS = 200
_PAGE = 16

Call = Callable[[], object]


class WrongResultError(RuntimeError):
    """A method's result is not what it has to be, so its time would mean nothing."""


@dataclasses.dataclass(frozen=True)
class _Cache:
    """One query token per request, and the keys and values it attends to."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A method that is ready to be timed: its parts, each with one call for every cache."""

    calls: dict[str, list[Call]]
    bytes: dict[str, int | None]
    error: float
    score_error: float | None


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the methods at every shape and say what is being done.

    Args:
        spec: ``shapes`` (name to sizes), ``methods``, ``device``, ``dtype``, ``impl`` of this package's kernels,
            ``seed``, ``threads``, ``repeats`` (turns of every method) and ``seconds`` (of a part's turn).

    Yields:
        ``{"environment": ..., "bandwidth": ...}``; then for every shape ``{"shape"}``, for every method ``{"begin":
        method}`` before anything that may go wrong, ``{"method", "not_available"}`` or ``{"method", "answer"}``, for
        every turn ``{"method", "samples"}``, and at the end ``{"shape", "done": true}``.
    """
    torch.set_num_threads(spec["threads"])
    device = spec["device"]
    use_device(device)
    clock = "CUDA events" if device != "cpu" else "time.process_time"
    bandwidth = copy_bandwidth(device)
    environment = {"clock": clock, "threads": torch.get_num_threads(), "copy_terabytes": bandwidth / 1e12}
    yield {"environment": device_facts(device) | environment, "bandwidth": bandwidth}
    for name, sizes in spec["shapes"].items():
        yield {"shape": name}
        yield from _shape_records(DecodeShape(**sizes), spec)
        yield {"shape": name, "done": True}


def _shape_records(shape: DecodeShape, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    device = spec["device"]
    methods = [DECODE_METHODS[name] for name in spec["methods"]]
    caches = _caches(shape, methods, spec)
    # Graphs run one after the other and what they leave behind is not used: they can share their memory.
    pool = None if device == "cpu" else torch.cuda.graph_pool_handle()
    ready: dict[str, dict[str, tuple[Call, int]]] = {}
    for method in methods:
        yield {"begin": method.name}
        try:
            prepared = _prepare(method, caches, shape, spec)
            units = {part: _unit(calls, device, pool) for part, calls in prepared.calls.items()}
            ready[method.name] = {part: (call, count) for part, (call, count, _) in units.items()}
            outcome = {
                "answer": {
                    "error": prepared.error,
                    "score_error": prepared.score_error,
                    "bytes": prepared.bytes,
                    "graphs": {part: captured for part, (_, _, captured) in units.items()},
                }
            }
        except Exception as error:
            outcome = {"not_available": failure(error)}
        gc.collect()
        if device != "cpu":
            torch.cuda.synchronize()  # raises, and so ends this process, if the GPU cannot be used any more
        yield {"method": method.name} | outcome
    for _ in range(spec["repeats"]):
        for name, parts in ready.items():
            yield {"begin": name}
            samples = {}
            for part, (call, count) in parts.items():
                times = timed_calls(call, device, seconds=spec["seconds"], most=_MOST_CALLS)
                samples[part] = statistics.median(times) / count
            yield {"method": name, "samples": samples}


def _caches(shape: DecodeShape, methods: list[DecodeMethod], spec: dict[str, Any]) -> list[_Cache]:
    """Enough caches in turn that what the sparsest method reads has left the second-level cache when it returns."""
    dtype, device = getattr(torch, spec["dtype"]), spec["device"]
    count = 1
    if device != "cpu":
        least = min(_bytes(method, shape, dtype.itemsize)[STEP] for method in methods)
        count += 2 * torch.cuda.get_device_properties(device).L2_cache_size // least
    generator = torch.Generator(device).manual_seed(spec["seed"])
    keys = (shape.batch, shape.key_heads, shape.tokens, shape.features)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    return [
        _Cache(draw(shape.batch, shape.query_heads, shape.features), draw(*keys), draw(*keys)) for _ in range(count)
    ]


def _bytes(method: DecodeMethod, shape: DecodeShape, item_bytes: int) -> dict[str, int | None]:
    """What each part of a method has to read and write."""
    whole = Sparsity(BASELINE_PART, 1, 16, False) if method.sparsity is None else method.sparsity
    counted = whole.bytes(shape, item_bytes)
    if method.dense:
        return {STEP: counted["dense"]}
    if method.baseline is not None:
        heads = shape.query_heads if method.baseline == "quest" else shape.key_heads
        kv = counted["kv"] * heads // shape.query_heads
        return {STEP: kv, "select": None, "attend": kv}
    return {
        STEP: counted["total"],
        "append": None,
        "scores": counted["labels"] + counted["scores"],
        "select": counted["scores"],
        "attend": counted["kv"],
    }


def _prepare(method: DecodeMethod, caches: list[_Cache], shape: DecodeShape, spec: dict[str, Any]) -> _Prepared:
    """Check a method on the first cache and make its calls."""
    item_bytes = caches[0].k.element_size()
    if method.dense:
        prepared = _dense(method, caches, shape, spec["impl"])
    elif method.baseline is not None:
        prepared = _baseline(method, caches, shape, spec["impl"])
    else:
        prepared = _double_sparsity(method.sparsity, caches, shape, spec)
    for error in (prepared.error, prepared.score_error):
        if error is not None and not error <= TOLERANCES[spec["dtype"]]:
            raise WrongResultError(f"its relative error is {error:.2g}, above {TOLERANCES[spec['dtype']]}")
    return dataclasses.replace(prepared, bytes=_bytes(method, shape, item_bytes))


def _dense(method: DecodeMethod, caches: list[_Cache], shape: DecodeShape, impl: str) -> _Prepared:
    if method.backend is None:

        def attend(cache: _Cache) -> Tensor:
            return dense_decode(cache.q, cache.k, cache.v, impl=impl)

    else:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = getattr(SDPBackend, method.backend)

        def attend(cache: _Cache) -> Tensor:
            with sdpa_kernel(backend), torch.no_grad():
                return torch.nn.functional.scaled_dot_product_attention(
                    cache.q[:, :, None], cache.k, cache.v, enable_gqa=shape.query_heads > shape.key_heads
                ).squeeze(2)

    error = _attention_error(attend(caches[0]), caches[0])
    return _Prepared({STEP: [lambda cache=cache: attend(cache) for cache in caches]}, {}, error, None)


def _baseline(method: DecodeMethod, caches: list[_Cache], shape: DecodeShape, impl: str) -> _Prepared:
    from lossbook import nn

    choose = getattr(nn, method.baseline)
    budget = max(_PAGE, shape.tokens // BASELINE_PART)

    def select(cache: _Cache) -> tuple[Tensor, Tensor]:
        return choose(cache.q, cache.k, budget=budget)

    lists = [select(cache) for cache in caches]

    def attend(cache: _Cache, listed: tuple[Tensor, Tensor]) -> Tensor:
        return sparse_decode(cache.q, cache.k, cache.v, *listed, impl=impl)

    calls = {
        STEP: [lambda cache=cache: attend(cache, select(cache)) for cache in caches],
        "select": [lambda cache=cache: select(cache) for cache in caches],
        "attend": [lambda pair=pair: attend(*pair) for pair in zip(caches, lists, strict=True)],
    }
    error = _attention_error(attend(caches[0], lists[0]), caches[0], lists[0])
    return _Prepared(calls, {}, error, None)


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Double Sparsity on one cache; its label cache holds all tokens, the last of which every step appends anew."""

    cache: _Cache
    labels: LabelCache
    before: Tensor
    budget: int
    impl: str

    def append(self) -> None:
        self.labels.lengths.copy_(self.before)
        self.labels.append(self.cache.k[:, :, -1:])

    def scores(self) -> Tensor:
        return approx_scores(self.cache.q, self.labels, impl=self.impl)

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return select_tokens(scores, self.budget, self.labels.lengths, impl=self.impl)

    def attend(self, listed: tuple[Tensor, Tensor]) -> Tensor:
        return sparse_decode(self.cache.q, self.cache.k, self.cache.v, *listed, impl=self.impl)

    def step(self) -> Tensor:
        self.append()
        cache = self.cache
        return double_sparse_decode(
            cache.q, cache.k, cache.v, self.labels.channels, budget=self.budget, labels=self.labels, impl=self.impl
        )


def _double_sparsity(sparsity: Sparsity, caches: list[_Cache], shape: DecodeShape, spec: dict[str, Any]) -> _Prepared:
    generator = torch.Generator().manual_seed(spec["seed"])
    heads = shape.key_heads if sparsity.share_kv else shape.query_heads
    order = torch.rand(heads, shape.features, generator=generator).argsort(1)
    channels = order[:, : sparsity.r].to(caches[0].k.device)
    decoders = []
    for cache in caches:
        labels = build_labels(cache.k, channels, sparsity.bits, impl=spec["impl"])
        decoders.append(_Decoder(cache, labels, labels.lengths - 1, sparsity.budget(shape.tokens), spec["impl"]))
    scores = [decoder.scores() for decoder in decoders]
    lists = [decoder.select(score) for decoder, score in zip(decoders, scores, strict=True)]
    calls = {
        STEP: [decoder.step for decoder in decoders],
        "append": [decoder.append for decoder in decoders],
        "scores": [decoder.scores for decoder in decoders],
        "select": [lambda d=d, score=score: d.select(score) for d, score in zip(decoders, scores, strict=True)],
        "attend": [lambda d=d, listed=listed: d.attend(listed) for d, listed in zip(decoders, lists, strict=True)],
    }
    first = decoders[0]
    _check_selection(first, scores[0], lists[0])
    return _Prepared(calls, {}, _attention_error(first.step(), caches[0], lists[0]), _score_error(first, scores[0]))


def _sample(cache: _Cache) -> Iterator[tuple[int, int]]:
    """The first and the last key head of the first and the last request."""
    return itertools.product(*({0, size - 1} for size in cache.k.shape[:2]))


def _rows(head: int, heads: int, key_heads: int) -> slice:
    """Those of ``heads`` heads that belong to a key head."""
    each = heads // key_heads
    return slice(head * each, (head + 1) * each)


def _attention_error(got: Tensor, cache: _Cache, listed: tuple[Tensor, Tensor] | None = None) -> float:
    """Relative Frobenius error against float64 on the sample; the larger one of its heads."""
    key_heads, errors = cache.k.shape[1], []
    for request, head in _sample(cache):
        rows = _rows(head, cache.q.shape[1], key_heads)
        one = slice(request, request + 1)
        q, (k, v) = cache.q[one, rows].double(), (x[one, head : head + 1].double() for x in (cache.k, cache.v))
        if listed is None:
            want = dense_decode(q, k, v, impl="torch")
        else:
            listing = (part[one, _rows(head, part.shape[1], key_heads)] for part in listed)
            want = sparse_decode(q, k, v, *listing, impl="torch")
        errors.append(((got[one, rows].double() - want).norm() / want.norm()).item())
    return max(errors)


def _score_error(decoder: _Decoder, scores: Tensor) -> float:
    """The same for scores, against the stored labels in float64."""
    labels, q, errors = decoder.labels, decoder.cache.q, []
    key_heads = labels.key_heads
    for request, head in _sample(decoder.cache):
        rows, one = _rows(head, labels.channels.shape[0], key_heads), slice(request, request + 1)
        part = dataclasses.replace(
            labels,
            channels=labels.channels[rows],
            lengths=labels.lengths[one],
            key_heads=1,
            **{
                name: None if value is None else value[one, rows]
                for name, value in (("values", labels.values), ("scale", labels.scale), ("zero", labels.zero))
            },
        )
        want = approx_scores(q[one, _rows(head, q.shape[1], key_heads)].double(), part, impl="torch")
        errors.append(((scores[one, rows].double() - want).norm() / want.norm()).item())
    return max(errors)


def _check_selection(decoder: _Decoder, scores: Tensor, listed: tuple[Tensor, Tensor]) -> None:
    """Require the tokens that plain torch selects."""
    for request, head in _sample(decoder.cache):
        one, rows = slice(request, request + 1), _rows(head, scores.shape[1], decoder.labels.key_heads)
        want = select_tokens(scores[one, rows], decoder.budget, impl="torch")
        if not all(torch.equal(x[one, rows], y) for x, y in zip(listed, want, strict=True)):
            raise WrongResultError("its selection is not that of a stable sort")


def _unit(calls: list[Call], device: str, pool: Any) -> tuple[Call, int, bool]:
    """What is timed at once: a CUDA graph of calls that take turns on the caches, where they can be captured.

    Returns:
        The unit, the number of calls in it, and whether it is a graph.
    """
    for call in itertools.chain(*[calls] * (_WARM_UP if device != "cpu" else 1)):
        call()
    if device == "cpu":
        turns = itertools.cycle(calls)
        return lambda: next(turns)(), 1, False
    rounds = -(-_GRAPH_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.empty_cache()  # of what the warm-up needed; a graph has its own
    try:
        with torch.cuda.graph(graph, pool=pool):
            for call in calls * rounds:
                call()
    except RuntimeError:
        torch.cuda.synchronize()

        def unit() -> None:
            for call in calls * rounds:
                call()

        return unit, rounds * len(calls), False
    return graph.replay, rounds * len(calls), True
