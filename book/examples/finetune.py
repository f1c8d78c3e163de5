"""Two training steps of SmolLM2 on real text, with gradient accumulation and without logits."""

import torch

from lossbook import data
from lossbook.integrations.transformers import patch

lm = data.smollm2()
text = data.text("python_docs")
tokens = data.token_blocks(text, lm.tokenizer, context=64, count=2)
model = patch(lm.model.requires_grad_(True).train())

optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
items = tokens[:, 1:].numel()  # nothing predicts a sequence's first token
for step in range(2):
    optimizer.zero_grad()
    total = 0.0
    for batch in tokens.split(1):
        inputs = {"input_ids": batch, "labels": batch}
        output = model(**inputs, num_items_in_batch=items)
        output.loss.backward()
        total += output.loss.item()
    optimizer.step()
    print(f"step {step}: {total:.3f} nats per token; {output.logits=}")
