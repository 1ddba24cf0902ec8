"""The other side of PPO in `benchmarks.language`, for which TRL 1.16 has no trainer: a plain loop.

Answers by transformers' `generate`, log-probs from all logits of the answers' tokens, a linear head on the
actor's own hidden states as critic, a second model as reference. Advantages and losses are trimtab's `ppo`.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
import transformers
from benchmarks import language_work as work
from benchmarks.language_work import Meter, Row, Turn
from torch import Tensor, nn
from transformers import AutoTokenizer


def run(turn: Turn, meter: Meter, rows: list[Row]) -> Any:
    """Trains; returns the model."""
    tokenizer = AutoTokenizer.from_pretrained(turn.folder, padding_side="left")
    load: Any = transformers.Qwen2ForCausalLM.from_pretrained
    meter.loading()
    model = load(turn.folder, dtype=turn.base_dtype).to(turn.device)
    reference = load(turn.folder, dtype=turn.base_dtype).to(turn.device).eval()
    if turn.lora_rank:
        from benchmarks.language_trl import adapter
        from peft import get_peft_model

        model = get_peft_model(model, adapter(turn))
    loop = Loop(turn, tokenizer, model, reference)
    torch.manual_seed(work.SEED)
    order = work.in_order(rows, turn)
    for start in range(0, len(order), turn.prompts):
        meter.tokens += loop.refresh([list(rows[i].prompt) for i in order[start : start + turn.prompts]])
        meter.step()
    return model


class Loop:
    """Actor, critic and reference, and the optimiser of the first two."""

    def __init__(self, turn: Turn, tokenizer: Any, model: Any, reference: Any) -> None:
        self.turn = turn
        self.tokenizer = tokenizer
        self.model = model
        self.reference = reference
        self.head = nn.Linear(reference.config.hidden_size, 1, device=turn.device)
        nn.init.zeros_(self.head.weight)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = (trained, work.LEARNING_RATE), (list(self.head.parameters()), work.HEAD_LEARNING_RATE)
        self.optimiser = torch.optim.AdamW(
            [{"params": params, "lr": rate} for params, rate in groups],
            eps=work.EPSILON,
            weight_decay=0.0,
            fused=True,
        )

    def precision(self) -> AbstractContextManager[Any]:
        """One for each pass: within a context weights stay cast, although the optimiser moves them."""
        return torch.autocast(self.turn.device, torch.bfloat16, enabled=self.turn.precision == "bf16")

    def refresh(self, prompts: list[Any]) -> int:
        """Answers, then the epochs on them; returns the tokens of prompts and answers."""
        ids, mask = self.answers(prompts)
        parts = torch.arange(len(ids)).split(max(1, self.turn.batch_tokens // ids.shape[1]))
        with torch.no_grad():
            seen = [self.evaluate(self.model, ids[part], mask[part]) for part in parts]
            known = [self.evaluate(self.reference, ids[part], mask[part])[0] for part in parts]
        old, values = (torch.cat(found) for found in zip(*seen, strict=True))
        rewards = -work.BETA["ppo"] * (old - torch.cat(known))
        texts = self.tokenizer.batch_decode(ids[:, -self.turn.new_tokens :], skip_special_tokens=True)
        rewards[:, -1] += torch.tensor([work.letters(text) for text in texts], device=ids.device)
        advantages = estimate(rewards, values)
        returns = advantages + values
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(work.EPOCHS):
            for part in parts:
                now, value = self.evaluate(self.model, ids[part], mask[part])
                losses = ppo_loss(now - old[part], advantages[part], value - returns[part])
                (losses.mean() * len(part) / len(ids)).backward()
            self.step()
        return int(mask.sum())

    def answers(self, prompts: list[Any]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of prompts and answers, [B, P + T], left-padded."""
        texts = self.tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
        read = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.turn.device)
        self.model.eval()
        with self.precision():
            ids = self.model.generate(
                input_ids=read.input_ids,
                attention_mask=read.attention_mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=self.turn.samples,
                max_new_tokens=self.turn.new_tokens,
                eos_token_id=self.turn.never,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        self.model.train()
        mask = read.attention_mask.repeat_interleave(self.turn.samples, 0)
        return ids, torch.cat([mask, mask.new_ones(len(mask), self.turn.new_tokens)], 1)

    def evaluate(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and values of the answers' tokens: [B, T], [B, T]."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self.precision():
            out = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
            hidden = out.last_hidden_state[:, -self.turn.new_tokens - 1 : -1]
            logprobs = base.lm_head(hidden).float().log_softmax(-1)
        chosen = ids[:, -self.turn.new_tokens :, None]
        return logprobs.gather(-1, chosen)[..., 0], self.head(hidden.float())[..., 0]

    def step(self) -> None:
        for group in self.optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], work.MAX_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def ppo_loss(log_ratio: Tensor, advantages: Tensor, error: Tensor) -> Tensor:
    """The clipped objective and the critic's squared error: [B, T]."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - work.CLIP, 1 + work.CLIP)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    return work.VALUE_WEIGHT * 0.5 * error.square() - gain


def estimate(rewards: Tensor, values: Tensor) -> Tensor:
    """Generalised advantages without discount; nothing follows the last token. [B, T]"""
    running, found = torch.zeros_like(rewards[:, 0]), []
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    for delta in reversed((rewards + following - values).unbind(1)):
        running = delta + work.LAM * running
        found.append(running)
    return torch.stack(found[::-1], 1)
