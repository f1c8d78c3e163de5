"""Peak memory and CPU time of one call in a fresh process: ``python memory_probe.py METHOD ROWS VOCAB FEATURES``.

Prints JSON: extra peak resident memory in MiB over what inputs and libraries hold, CPU seconds, and the loss.
"""

import json
import re
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from lossbook.kernels import cut_cross_entropy


def with_entropy(e, c, t):
    """The loss, by a graph through which the entropy's gradient flows too."""
    loss, entropy, _ = cut_cross_entropy(e, c, t, temperature=0.9, return_entropy=True, return_argmax=True)
    return loss + 0.01 * entropy.mean()


METHODS = {
    "dense": lambda e, c, t: F.cross_entropy(e @ c.T, t),
    "torch_chunked": lambda e, c, t: F.linear_cross_entropy(e, c, t, options=torch.nn.LinearCrossEntropyOptions()),
    "two_pass": lambda e, c, t: cut_cross_entropy(e, c, t, reduction="none").mean(),
    "grad_in_forward": lambda e, c, t: cut_cross_entropy(e, c, t),
    "grad_in_forward_auto": lambda e, c, t: cut_cross_entropy(e, c, t, filter_eps="auto"),
    "two_pass_auto": lambda e, c, t: cut_cross_entropy(e, c, t, filter_eps="auto", reduction="none").mean(),
    "entropy": with_entropy,
    "frozen_c": lambda e, c, t: cut_cross_entropy(e, c.detach(), t),
    "frozen_e": lambda e, c, t: cut_cross_entropy(e.detach(), c, t),
}


def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


def main(method, rows, vocab, features):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    # Peaked logits around 30 times the noise for the right word, so that a filter has something to drop.
    c = torch.randn(vocab, features, generator=generator)
    target = torch.randint(vocab, (rows,), generator=generator)
    e = 0.6 * c[target] + torch.randn(rows, features, generator=generator)
    e, c = (e * 16 / features).requires_grad_(), c.requires_grad_()
    run = METHODS[method]
    # The libraries allocate on first use; that is not the method's.
    small_e, small_c = torch.ones(256, features, requires_grad=True), torch.ones(512, features, requires_grad=True)
    run(small_e, small_c, torch.zeros(256, dtype=torch.int64)).backward()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, started = resident("VmRSS"), time.process_time()
    loss = run(e, c, target)
    loss.backward()
    seconds = time.process_time() - started
    print(json.dumps({"extra_mib": resident("VmHWM") - before, "seconds": seconds, "loss": loss.item()}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
