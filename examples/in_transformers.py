"""Guidance inside transformers' `generate`, and scores of texts: no server, no vLLM."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab import Guidance, demo  # the demo: a small base and scorers; use your own paths

model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(demo.base())
guidance = Guidance({"sentiment": demo.scorers()["sentiment"]}, tokenizer, beta=4.0)

inputs = tokenizer("The museum was", return_tensors="pt")
output = model.generate(
    **inputs, max_new_tokens=40, do_sample=True, logits_processor=guidance.processors(**inputs)
)
print(tokenizer.decode(output[0], skip_special_tokens=True))

texts = ["The room was lovely and the staff were kind.", "The room was dirty and loud."]
for text, score in zip(texts, guidance.score(texts)["sentiment"], strict=True):
    print(f"{score:+.2f}  {text}")
