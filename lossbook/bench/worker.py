"""Measure one method and print the answer; started as ``python -m lossbook.bench.worker '<JSON>'``.

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
from lossbook.bench.inputs import Inputs, make_inputs
from lossbook.bench.measure import gauge_for, sample
from lossbook.bench.methods import METHODS, Loss, Method, NotAvailableError

_WARM_UP_ROWS, _WARM_UP_VOCAB = 64, 1024


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure one method as ``spec`` says.

    Args:
        spec: ``method``, the input arguments of :func:`~lossbook.bench.inputs.make_inputs` (``dtype`` as a string),
            ``threads``, ``repeats`` and ``check_rows``.

    Returns:
        ``{"not_available": reason}``, or the samples, the errors and the facts of the process.
    """
    torch.set_num_threads(spec["threads"])
    method = METHODS[spec["method"]]
    try:
        loss = method.build()
    except NotAvailableError as reason:
        return {"not_available": str(reason)}
    inputs = make_inputs(
        **{name: spec[name] for name in ("n", "vocab", "dim", "device", "seed", "data", "scale")},
        dtype=getattr(torch, spec["dtype"]),
    )
    gauge = gauge_for(spec["device"])
    _warm_up(method, loss, inputs)

    samples = []
    for _ in range(spec["repeats"]):
        samples.append(asdict(sample(lambda: loss(inputs.e, inputs.c, inputs.target), gauge)))
        gradient_bytes = inputs.e.grad.nbytes + inputs.c.grad.nbytes
        inputs.e.grad = inputs.c.grad = None
    return {
        "samples": samples,
        "gradient_bytes": gradient_bytes,
        "accuracy": asdict(check(loss, inputs, min(rows, spec["n"]))) if (rows := spec["check_rows"]) else None,
        "scale": inputs.scale,
        "clock": gauge.clock,
        "memory": gauge.memory,
        "environment": _environment(spec["device"]),
    }


def _warm_up(method: Method, loss: Loss, inputs: Inputs) -> None:
    """Load the libraries a first call loads, without touching memory of the measured size unless the method must."""
    rows, vocab = (None, None) if method.warm_up_full else (_WARM_UP_ROWS, _WARM_UP_VOCAB)
    e, c = (x.detach()[:size].clone().requires_grad_() for x, size in ((inputs.e, rows), (inputs.c, vocab)))
    calls = 3 if inputs.e.is_cuda else 1  # a GPU needs a few calls to raise its clock and pick its algorithms
    for _ in range(calls):
        loss(e, c, inputs.target[:rows] % len(c)).backward()


def _environment(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def serve() -> None:
    """Fork a child for every request and print its exit status.

    A request is ``{"spec": ..., "out": path, "err": path}``; the paths receive the child's output.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _measure_and_exit(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _measure_and_exit(request: dict[str, Any]) -> None:
    status = 1
    try:
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        print(json.dumps(measure(request["spec"])), flush=True)
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
        print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
