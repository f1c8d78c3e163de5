"""Two training steps of SmolLM2 on real text, with gradient accumulation and without logits."""

import torch

from lossbook import data
from lossbook.integrations.transformers import patch

lm = data.smollm2()
tokens = data.token_blocks(data.text("python_docs"), lm.tokenizer, context=64, count=2)
model = patch(lm.model.requires_grad_(True).train())

optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
predicted = tokens[:, 1:].numel()  # the first token of a sequence is predicted from nothing
for step in range(2):
    optimizer.zero_grad()
    total = 0.0
    for batch in tokens.split(1):
        output = model(input_ids=batch, labels=batch, num_items_in_batch=predicted)
        output.loss.backward()
        total += output.loss.item()
    optimizer.step()
    print(f"step {step}: {total:.3f} nats per token, logits {output.logits}")
