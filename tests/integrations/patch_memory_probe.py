"""Peak memory of one training step in a fresh process: ``python patch_memory_probe.py plain|patched``; prints JSON."""

import json
import re
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lossbook.integrations.transformers import patch

TOKENS, VOCAB = 2048, 24576


def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


def main(method):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, **sizes))
    if method == "patched":
        patch(model)
    tokens = torch.randint(VOCAB, (1, TOKENS))
    # The libraries allocate on first use; that is not the method's.
    model(input_ids=tokens[:, :64], labels=tokens[:, :64], use_cache=False).loss.backward()
    model.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    extra = resident("VmHWM") - before
    print(json.dumps({"extra_mib": extra, "logits_mib": TOKENS * VOCAB * 4 / 2**20, "loss": loss.item()}))


if __name__ == "__main__":
    main(sys.argv[1])
