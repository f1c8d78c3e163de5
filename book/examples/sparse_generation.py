"""Text of SmolLM2 by dense attention and by Double Sparsity, with a calibration that is kept in a file."""

from lossbook import data
from lossbook.integrations.transformers import Calibration, DoubleSparsityConfig, attach_calibration, calibrate

lm = data.smollm2()
model, tokenizer = lm.model, lm.tokenizer

# Once for a model, on any text.
passages = data.token_blocks(data.text("python_source"), tokenizer, context=128, count=2)
calibrate(model, passages, name=lm.name).save("smollm2.safetensors")

# Wherever the model decodes. Short texts are dense by default; this one is not, to show something.
calibration = Calibration.load("smollm2.safetensors")
config = DoubleSparsityConfig(budget=1 / 8, r=16, dense_below=0)
attach_calibration(model, calibration, config)

prompt = data.token_blocks(data.text("python_docs"), tokenizer, context=256, count=1)
for name in ("sdpa", "double_sparsity"):
    model.set_attn_implementation(name)
    text = model.generate(prompt, max_new_tokens=16, do_sample=False)
    print(f"{name}: {tokenizer.decode(text[0, prompt.shape[1] :])!r}")
