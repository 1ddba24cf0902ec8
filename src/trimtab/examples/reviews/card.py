"""Writes the finished base model as a folder that transformers loads, with its model card."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.examples.reviews import corpus
from trimtab.examples.reviews.data import prompt_and_response, split_sentences
from trimtab.examples.reviews.evaluation import perplexities

SAMPLES = 8  # of each sort, on the card

CARD = """\
---
license: cc-by-4.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# The reviews model: {parameters:.1f} million parameters that write film reviews

The base model of trimtab's built-in example, trained from scratch on a CPU. It is small so that aligning it
takes seconds; it is not meant for anything else.

| | |
|---|---|
| architecture | Llama: {layers} layers, width {width}, {heads} heads, tied embedding; {dtype} |
| tokenizer | byte-level BPE, {vocabulary} entries, `<s>` in front, `</s>` at the end of a sentence |
| held-out perplexity per token | {token_perplexity:.2f} |
| held-out perplexity per word | {word_perplexity:.2f} |
| training sentences' perplexity per token | {train_perplexity:.2f} |
| held-out text | {held_out} sentences; no training sentence begins with the same three words |
| training | {millions:.1f} million tokens, {minutes:.0f} minutes |
| steps | {steps}, {sentence_steps} of them on sentences |

A word is what stands between spaces; the end of the sentence counts as one. Perplexity is that of the stored
{dtype} weights, computed in fp32.

## Data
- Sentence Polarity Dataset v1.0 (Bo Pang and Lillian Lee, 2005), the training half: {train} sentences.
- Polarity Dataset v2.0 (Bo Pang and Lillian Lee, 2004): {documents} whole reviews; those that quote a
  held-out sentence were left out.

Both are licensed under CC BY 4.0 and come from https://www.cs.cornell.edu/people/pabo/movie-review-data/.
All text is lower case, with spaces around punctuation. No sentiment label was used.

## Train it again
```
{command}
```
The learning rate and the mixture of data follow the clock, so a faster machine reads more in these minutes,
and two runs are alike but not equal.

## What it writes
Temperature 1.0, not chosen.

From nothing:

{free}

From the opening (bold) of a held-out sentence:

{prompted}

## Limits
How far the two perplexities per token are apart tells how well it remembers the sentences it was trained
on. It knows the words and the manner of reviews of about the year 2000, and little else: sentences often
lose their thread, names and titles are mixed up or invented, and what it says of films and people is not
true. It repeats the judgements and prejudices of its sources.
"""


def export(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, facts: dict[str, Any]
) -> tuple[float, float]:
    """Writes weights in the half precision that loses less, tokenizer and card; returns the perplexities.

    facts: steps, sentence_steps, millions (of tokens), minutes, documents, command.
    """
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        max_new_tokens=64,
    )
    tokenizer.save_pretrained(out)
    measured = {dtype: _save(model, tokenizer, dtype, out) for dtype in (torch.bfloat16, torch.float16)}
    exact, _ = perplexities(model, tokenizer)
    best = min(measured, key=lambda dtype: abs(measured[dtype][0] - exact))
    _save(model, tokenizer, best, out)
    stored = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    card = _card(stored, tokenizer, measured[best], str(best).removeprefix("torch."), facts)
    (out / "README.md").write_text(card, encoding="utf-8")
    return measured[best]


def _save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, out: Path
) -> tuple[float, float]:
    """Saves a copy in `dtype` and measures what was saved."""
    copy.deepcopy(model).to(dtype=dtype).save_pretrained(out)  # type: ignore[call-arg]
    return perplexities(LlamaForCausalLM.from_pretrained(out, dtype=torch.float32), tokenizer)


def _card(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    perplexity: tuple[float, float],
    dtype: str,
    facts: dict[str, Any],
) -> str:
    held_out = split_sentences("held_out")
    openings = [prompt_and_response(sentence.text)[0] for sentence in held_out[:: len(held_out) // SAMPLES]]
    config = model.config
    return CARD.format(
        parameters=model.num_parameters() / 1e6,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        dtype=dtype,
        vocabulary=len(tokenizer),
        token_perplexity=perplexity[0],
        word_perplexity=perplexity[1],
        train_perplexity=perplexities(model, tokenizer, "train")[0],
        held_out=len(held_out),
        train=len(split_sentences("train")),
        free="\n".join(f"- {text}" for _, text in sample(model, tokenizer, [""] * SAMPLES)),
        prompted="\n".join(
            f"- **{opening}**{text}" for opening, text in sample(model, tokenizer, openings[:SAMPLES], seed=1)
        ),
        **facts,
    )


def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int = 0
) -> list[tuple[str, str]]:
    """Each prompt with a continuation of at most 64 tokens, at temperature 1."""
    torch.manual_seed(seed)
    samples = []
    for prompt, ids in zip(prompts, corpus.encode(tokenizer, prompts, end=False), strict=True):
        tokens = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=True, top_k=0)  # type: ignore[misc]
        samples.append((prompt, str(tokenizer.decode(tokens[0, len(ids) :], skip_special_tokens=True))))
    return samples
