"""Measure one method on the CPU and print the answer; started as ``python -m lossbook.bench.worker '<JSON>'``.

The last line of standard output is the answer, a JSON object.  A failure leaves a traceback on standard error and a
non-zero exit status.  With ``--serve`` instead of JSON, requests come line by line on standard input, and each is
measured in a forked child.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict
from typing import Any

import torch

from lossbook.bench.accuracy import check
from lossbook.bench.environment import device_facts
from lossbook.bench.inputs import Inputs, make_inputs
from lossbook.bench.measure import CPUGauge, sample
from lossbook.bench.methods import METHODS, Loss, Method, failure
from lossbook.bench.sparsity import describe_inputs

_WARM_UP_ROWS, _WARM_UP_VOCAB = 64, 1024


def answer(spec: dict[str, Any]) -> dict[str, Any]:
    """Describe the inputs, or measure one method on them.

    Args:
        spec: ``method``, or None for the description; the input arguments of
            :func:`~lossbook.bench.inputs.make_inputs` (``dtype`` as a string), ``threads``, ``repeats``,
            ``check_rows`` and ``methods``, all those of the run.

    Returns:
        ``{"unreachable": reason}`` if there are no such inputs; the facts of
        :func:`~lossbook.bench.sparsity.describe_inputs`; or ``{"not_available": reason}``, or the samples, the errors
        and the facts of the process.
    """
    torch.set_num_threads(spec["threads"])
    sizes = {name: spec[name] for name in ("n", "vocab", "dim", "device", "seed", "data", "density", "scale")}
    try:
        inputs = make_inputs(**sizes, dtype=getattr(torch, spec["dtype"]))
    except ValueError as error:
        return {"unreachable": str(error)}
    if spec["method"] is None:
        return describe_inputs(inputs, [METHODS[name].filter for name in spec["methods"] if METHODS[name].filter])
    try:
        return _measure(METHODS[spec["method"]], inputs, spec)
    except Exception as error:
        return {"not_available": failure(error)}


def _measure(method: Method, inputs: Inputs, spec: dict[str, Any]) -> dict[str, Any]:
    loss = method.build("torch")
    gauge = CPUGauge()
    _warm_up(method, loss, inputs)
    samples = []
    for _ in range(spec["repeats"]):
        samples.append(asdict(sample(lambda: loss(inputs.e, inputs.c, inputs.target), gauge)))
        gradient_bytes = inputs.e.grad.nbytes + inputs.c.grad.nbytes
        inputs.e.grad = inputs.c.grad = None
    rows = min(spec["check_rows"], spec["n"])
    return {
        "samples": samples,
        "gradient_bytes": gradient_bytes,
        "accuracy": asdict(check(loss, inputs, rows)) if rows else None,
        "environment": device_facts("cpu")
        | {"threads": torch.get_num_threads(), "clock": "time.process_time", "memory": gauge.memory},
    }


def _warm_up(method: Method, loss: Loss, inputs: Inputs) -> None:
    """Load the libraries a first call loads, without touching memory of the measured size unless the method must."""
    rows, vocab = (None, None) if method.warm_up_full else (_WARM_UP_ROWS, _WARM_UP_VOCAB)
    e, c = (x.detach()[:size].clone().requires_grad_() for x, size in ((inputs.e, rows), (inputs.c, vocab)))
    loss(e, c, inputs.target[:rows] % len(c)).backward()


def serve() -> None:
    """Fork a child for every request and print its exit status.

    A request is ``{"spec": ..., "out": path, "err": path}``; the paths receive the child's output.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _answer_and_exit(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _answer_and_exit(request: dict[str, Any]) -> None:
    status = 1
    try:
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        print(json.dumps(answer(request["spec"])), flush=True)
        status = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)  # the parent's buffers and exit handlers are not the child's to run


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        print(json.dumps(answer(json.loads(sys.argv[1]))), flush=True)
