"""Peak memory of one training step of a small language model with a large vocabulary, with and without its logits.

Run ``python peak_memory.py``. On a machine with a GPU the memory is the GPU's.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lossbook.integrations.transformers import patch


def peak_mib(device: str) -> float:
    """Highest memory this process has held so far: allocated by PyTorch on a GPU, resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(method: str, tokens: int, vocab: int) -> dict[str, float]:
    """What one step needs beyond everything before it, and its loss; call once in a process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, max_position_embeddings=tokens, **sizes)
    model = LlamaForCausalLM(config).to(device)
    if method == "patched":
        patch(model)
    text = torch.randint(vocab, (1, tokens), device=device)
    # A short step first: libraries allocate on first use, and the gradients exist from then on.
    model(input_ids=text[:, :32], labels=text[:, :32], use_cache=False).loss.backward()
    before = peak_mib(device)
    loss = model(input_ids=text, labels=text, use_cache=False).loss
    loss.backward()
    return {"extra_mib": peak_mib(device) - before, "loss": loss.item()}


def main() -> None:
    """Measure both in processes of their own, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in the batch (default 2048)")
    parser.add_argument("--vocab", type=int, default=24_576, help="entries of the vocabulary (default 24576)")
    parser.add_argument("--method", choices=("plain", "patched"), help="measure one in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments.method, arguments.tokens, arguments.vocab)))
        return
    logits = arguments.tokens * arguments.vocab * 4 / 2**20
    print(f"logits of {arguments.tokens} tokens over {arguments.vocab} entries in float32: {logits:.0f} MiB")
    result = {}
    for method in ("plain", "patched"):
        command = [sys.executable, __file__, f"--tokens={arguments.tokens}", f"--vocab={arguments.vocab}"]
        done = subprocess.run([*command, f"--method={method}"], stdout=subprocess.PIPE, text=True, check=True)
        result[method] = json.loads(done.stdout)
        print(f"{method}: {result[method]['extra_mib']:.0f} MiB more, loss {result[method]['loss']:.6f}", flush=True)
    print(f"patched / plain = {result['patched']['extra_mib'] / result['plain']['extra_mib']:.3f}")


if __name__ == "__main__":
    main()
