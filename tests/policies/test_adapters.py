"""Actor, critic, reward model and reference on one trunk, each against a model of its own."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests import tiny
from tests.models import LETTERS, alone, causal_model, gradients, pack, random_rows
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trimtab.errors import UserError
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.adapters import active, adapter_critic, shared_reward_model
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model

ROWS = random_rows(5, seed=3)


def config(model: str | Path = "", **options: Any) -> ModelConfig:
    options = {"precision": "fp32", "device": "cpu", "lora_rank": 2, **options}
    return ModelConfig(str(model or tiny.model_folder()), **options)


def shake(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Moves what starts at zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def actor_critic(model: str | Path = "", **options: Any) -> ActorCritic:
    """An actor and a critic on one trunk, both far from where they start."""
    actor = load_language_policy(config(model, **options))
    shake(actor.parameters(), seed=1)
    critic = adapter_critic(actor, config(model, **options), seed=2)
    shake(critic.own, seed=3)
    return ActorCritic(actor, critic)


def reward_folder(folder: Path, model: str | Path = "", **options: Any) -> str:
    """A LoRA reward model as `trimtab train reward_model --lora-rank` leaves it."""
    model = load_reward_model(config(model, **options))
    shake(model.parameters(), seed=4)
    model.save(folder)
    return str(folder)


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.model_folder())


def standing_alone(folder: Path, trainable: bool = False) -> tuple[PeftModel, PeftModel, nn.Linear]:
    """Actor, critic and value head as peft reads them, each on a trunk of its own."""
    actor = PeftModel.from_pretrained(base(), str(folder), is_trainable=trainable)
    critic = PeftModel.from_pretrained(base(), str(folder / "critic"), is_trainable=trainable)
    head = nn.Linear(32, 1)
    head.load_state_dict(load_file(folder / "critic" / "head.safetensors"))
    return actor, critic, head


def values_alone(model: Any, head: nn.Linear, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """[R] the values before each token of one response, by transformers alone."""
    ids = torch.tensor([[*prompt, *response]])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return head(hidden[len(prompt) - 1 : -1])[:, 0]


def assert_gradients(ours: Sequence[nn.Parameter], theirs: Sequence[nn.Parameter]) -> None:
    """Equal but for rounding, which is of the size of the largest."""
    expected = gradients(theirs)
    torch.testing.assert_close(gradients(ours), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_is_saved_is_an_adapter_for_each_that_says_the_same_alone(tmp_path: Path) -> None:
    policy = actor_critic()
    policy.save(tmp_path)
    described = json.loads((tmp_path / "critic" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == tiny.model_folder()
    assert sorted(f.name for f in (tmp_path / "critic").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    ]
    actor, critic, head = standing_alone(tmp_path)
    with torch.no_grad():
        ours = policy.evaluate(pack(ROWS))
        logprobs = torch.cat([alone(actor, *row) for row in ROWS])
        values = torch.cat([values_alone(critic, head, *row) for row in ROWS])
    mask = pack(ROWS).mask
    torch.testing.assert_close(ours.logprobs[mask], logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.values[mask], values, rtol=0, atol=1e-5)
    merged = load_language_policy(config(tmp_path, lora_rank=0), trainable=False)
    torch.testing.assert_close(merged.logprobs(pack(ROWS))[mask], logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("between", ["nothing", "the reference", "both adapters used"])
def test_one_backward_pass_gives_both_their_gradients(
    tmp_path: Path, checkpointing: bool, between: str
) -> None:
    policy, sequences = actor_critic(gradient_checkpointing=checkpointing), pack(ROWS)
    policy.save(tmp_path)
    actor, critic, head = standing_alone(tmp_path, trainable=True)
    logprobs = torch.cat([alone(actor, *row) for row in ROWS])
    values = torch.cat([values_alone(critic, head, *row) for row in ROWS])
    weights = torch.linspace(-1, 2, len(logprobs))
    (logprobs @ weights + values @ weights.flip(0)).backward()

    ours = policy.evaluate(sequences)
    if between == "the reference":
        with policy.actor.reference():
            policy.actor.logprobs(sequences)
    elif between == "both adapters used":
        policy.evaluate(sequences)
    (ours.logprobs[sequences.mask] @ weights + ours.values[sequences.mask] @ weights.flip(0)).backward()
    assert_gradients(policy.actor.parameters(), [p for p in actor.parameters() if p.requires_grad])
    trained = [p for p in critic.parameters() if p.requires_grad]
    assert_gradients(policy.critic_parameters(), [*trained, *head.parameters()])


def test_a_checkpointed_critic_can_be_differentiated_twice() -> None:
    policy, sequences = actor_critic(gradient_checkpointing=True), pack(ROWS)
    total = policy.evaluate(sequences).values.sum()
    total.backward(retain_graph=True)
    once = gradients(policy.critic_parameters())
    total.backward()
    torch.testing.assert_close(gradients(policy.critic_parameters()), 2 * once)
    assert once.abs().max() > 0


def test_a_critic_goes_on_learning_after_the_reference_was_asked() -> None:
    policy = actor_critic()
    with policy.actor.reference():
        policy.actor.logprobs(pack(ROWS))
    policy.evaluate(pack(ROWS)).values.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in policy.critic_parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(tmp_path: Path, fails: bool) -> None:
    policy = actor_critic()
    shared_reward_model(policy.actor, reward_folder(tmp_path))
    model = policy.actor.model
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with active(model, "reward"):
            with active(model, "critic"):
                assert model.active_adapter == "critic"
                assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
            assert model.active_adapter == "reward"
            if fails:
                raise InterruptedError
    except InterruptedError:
        pass
    assert model.active_adapter == "default"
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    trained = {name for name, flag in flags.items() if flag}
    assert {name.split(".")[-2] for name in trained} == {"default", "critic"}


def test_no_adapter_works_where_all_are_off() -> None:
    policy = actor_critic()
    with policy.actor.reference(), pytest.raises(ValueError, match="critic cannot work where all adapters"):
        policy.evaluate(pack(ROWS))


def test_a_new_critic_says_nothing_and_is_drawn_by_the_seed() -> None:
    actor = load_language_policy(config())
    critic = adapter_critic(actor, config(), seed=7)
    with torch.no_grad():
        assert ActorCritic(actor, critic).evaluate(pack(ROWS)).values.count_nonzero() == 0
    again = adapter_critic(load_language_policy(config()), config(), seed=7)
    other = adapter_critic(load_language_policy(config()), config(), seed=8)
    assert all(torch.equal(a, b) for a, b in zip(critic.own, again.own, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic.own, other.own, strict=True))


def test_the_actors_parameters_are_its_own(tmp_path: Path) -> None:
    plain = load_language_policy(config())
    policy = actor_critic()
    shared_reward_model(policy.actor, reward_folder(tmp_path))
    shapes = [p.shape for p in plain.parameters()]
    assert [p.shape for p in policy.actor.parameters()] == shapes
    assert [p.shape for p in policy.critic_parameters()] == [*shapes, (1, 32), (1,)]
    assert [p.shape for p in policy.parameters()] == [*shapes, *shapes, (1, 32), (1,)]
    assert len({id(p) for p in policy.parameters()}) == len(policy.parameters())


def test_the_actor_is_saved_without_those_on_its_trunk(tmp_path: Path) -> None:
    policy = actor_critic()
    shared_reward_model(policy.actor, reward_folder(tmp_path / "reward"))
    policy.actor.save(tmp_path / "actor")
    assert not [file for file in (tmp_path / "actor").iterdir() if file.is_dir()]
    load_language_policy(config()).save(tmp_path / "alone")
    names = [load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in ("actor", "alone")]
    assert names[0] == names[1]


def test_four_models_on_one_trunk_by_number(tmp_path: Path) -> None:
    """The trunk once, three adapters and two heads; the reference is free.

    Llama of 2 layers: H 32, MLP 64, 4 heads and 2 of keys of 8, 40 tokens.
    """
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64  # q, o; k, v; gate, up, down
    trunk = 2 * 40 * 32 + 2 * (layer + 2 * 32) + 32  # embeddings in and out; norms
    adapter = 2 * 2 * (2 * 64 + 2 * 48 + 3 * 96)  # rank 2, two layers, in + out of each matrix
    policy = actor_critic()
    reward = shared_reward_model(policy.actor, reward_folder(tmp_path))
    models = (policy.actor.model, policy.critic.head, reward.head)
    held = {p.data_ptr(): p.numel() for model in models for p in model.parameters()}
    assert sum(held.values()) == trunk + 3 * adapter + (32 + 1) + 32
    separate = (base(), base(), load_reward_model(config(lora_rank=0)).model, base())
    assert sum(p.numel() for model in separate for p in model.parameters()) == 4 * trunk - 40 * 32 + 32


def test_training_moves_actor_and_critic_and_nothing_else(tmp_path: Path) -> None:
    policy, sequences = actor_critic(), pack(ROWS)
    reward = shared_reward_model(policy.actor, reward_folder(tmp_path))
    optimiser = torch.optim.AdamW(policy.parameters(), lr=0.02)
    scores, before = reward.scores(sequences), policy.evaluate(sequences)
    for _ in range(3):
        with policy.actor.reference():
            reference = policy.actor.logprobs(sequences)
        now = policy.evaluate(sequences)
        optimiser.zero_grad()
        ((now.values - reward.scores(sequences)[:, None]) ** 2 - now.logprobs).sum().backward()
        optimiser.step()
        plain = torch.cat([alone(base(), *row) for row in ROWS])
        torch.testing.assert_close(reference[sequences.mask], plain, rtol=0, atol=1e-5)
        assert torch.equal(reward.scores(sequences), scores)
    after = policy.evaluate(sequences)
    assert (after.logprobs - before.logprobs).abs().max() > 0.1
    assert (after.values - before.values).abs().max() > 0.1


def test_policy_and_critic_on_a_merged_base(tmp_path: Path) -> None:
    """Its base is in no folder: the policy is saved whole, and its critic all the same."""
    first = actor_critic()
    first.actor.save(tmp_path / "first")
    policy = actor_critic(tmp_path / "first")
    with torch.no_grad():
        expected = policy.actor.logprobs(pack(ROWS))
        values = policy.evaluate(pack(ROWS)).values
    policy.save(tmp_path / "second")
    whole = load_language_policy(config(tmp_path / "second", lora_rank=0), trainable=False)
    torch.testing.assert_close(whole.logprobs(pack(ROWS)), expected, rtol=0, atol=1e-5)
    trunk = load_language_policy(config(tmp_path / "first", lora_rank=0), trainable=False)
    critic = PeftModel.from_pretrained(trunk.model, str(tmp_path / "second" / "critic"))
    head = nn.Linear(32, 1)
    head.load_state_dict(load_file(tmp_path / "second" / "critic" / "head.safetensors"))
    with torch.no_grad():
        again = torch.cat([values_alone(critic, head, *row) for row in ROWS])
    torch.testing.assert_close(values[pack(ROWS).mask], again, rtol=0, atol=1e-5)


def test_a_critic_on_the_trunk_needs_an_actor_with_an_adapter() -> None:
    with pytest.raises(UserError, match="set --lora-rank"):
        adapter_critic(load_language_policy(config(lora_rank=0)), config(), seed=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj, down_proj"])
def test_shared_scores_equal_those_of_the_model_itself(tmp_path: Path, precision: str, targets: str) -> None:
    folder = reward_folder(tmp_path, lora_targets=targets)
    itself = load_reward_model(config(folder, lora_rank=0, precision=precision), trainable=False)
    policy = actor_critic(precision=precision, gradient_checkpointing=True)
    shared = shared_reward_model(policy.actor, folder)
    expected = itself.scores(pack(ROWS))
    torch.testing.assert_close(
        shared.scores(pack(ROWS)), expected, rtol=0, atol=1e-4 if precision == "fp32" else 0.3
    )
    assert expected.max() - expected.min() > 1
    assert shared.device == policy.device and not shared.scores(pack(ROWS)).requires_grad
    assert shared.tokenizer("abc").input_ids == itself.tokenizer("abc").input_ids


def test_a_row_for_padding_is_not_needed(tmp_path: Path) -> None:
    """A reward model whose embeddings grew by its padding token, on a trunk that has not grown."""
    names = ["<s>", "</s>", *LETTERS]
    letters = Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>")
    causal_model(vocab_size=len(names), pad_token_id=None).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folder = reward_folder(tmp_path / "reward", tmp_path / "base")
    rows = [([0, 5, 6], [7, 8, 1]), ([9], [10, 11, 12, 1])]
    itself = load_reward_model(config(folder, lora_rank=0), trainable=False)
    assert itself.model.get_input_embeddings().num_embeddings == len(names) + 1
    shared = shared_reward_model(load_language_policy(config(tmp_path / "base")), folder)
    torch.testing.assert_close(shared.scores(pack(rows)), itself.scores(pack(rows)), rtol=0, atol=1e-4)
    assert len(shared.tokenizer) == len(names)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_dropout_of_its_training_is_off(tmp_path: Path) -> None:
    policy, folder = actor_critic(), reward_folder(tmp_path)
    edit(tmp_path, lora_dropout=0.5)
    shared = shared_reward_model(policy.actor, folder)
    assert policy.actor.model.training
    expected = load_reward_model(config(folder, lora_rank=0), trainable=False).scores(pack(ROWS))
    torch.testing.assert_close(shared.scores(pack(ROWS)), expected, rtol=0, atol=1e-4)


def refusal(actor: LanguagePolicy, folder: str | Path) -> str:
    """The one sentence with which this reward model is refused on the policy's trunk."""
    with pytest.raises(UserError) as caught:
        shared_reward_model(actor, str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reward_models_that_cannot_share_the_trunk(tmp_path: Path) -> None:
    actor = load_language_policy(config())
    assert re.search(
        "not a LoRA reward model.*--lora-rank` on the policy's --model, or",
        refusal(actor, tiny.model_folder()),
    )
    load_reward_model(config(lora_rank=0)).save(tmp_path / "whole")
    assert "not a LoRA reward model" in refusal(actor, tmp_path / "whole")
    actor.save(tmp_path / "policy")
    assert "not a LoRA reward model" in refusal(actor, tmp_path / "policy")
    other = reward_folder(tmp_path / "other", tiny.model_folder(seed=1))
    assert f"a reward model on {tiny.model_folder(seed=1)}, but the policy is on" in refusal(actor, other)
    folder = reward_folder(tmp_path / "reward")
    assert "only below adapters: set --lora-rank" in refusal(
        load_language_policy(config(lora_rank=0)), folder
    )
    merged = load_language_policy(config(tmp_path / "policy"))
    assert "a base that was merged from an adapter" in refusal(merged, folder)


def test_reward_models_that_are_more_or_less_than_an_adapter_and_a_head(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = reward_folder(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    embeddings = base().get_input_embeddings().weight.detach().clone()
    key = "base_model.model.model.embed_tokens.weight"

    save_file({**weights, key: embeddings}, file)  # those of the trunk
    shared = shared_reward_model(load_language_policy(config()), folder)
    assert shared.scores(pack(ROWS)).isfinite().all()
    save_file({**weights, key: embeddings + 0.1}, file)
    assert "trained more than an adapter and a score head" in refusal(load_language_policy(config()), folder)
    save_file({name: w for name, w in weights.items() if "score" not in name}, file)
    assert "no score head with one output" in refusal(load_language_policy(config()), folder)
    save_file({name: w for name, w in weights.items() if "layers.1.mlp" not in name}, file)
    assert re.search(
        r"does not fit its configuration, as .*layers\.1\.mlp",
        refusal(load_language_policy(config()), folder),
    )
    save_file(weights, file)
    edit(tmp_path, r=3)
    assert "its adapter does not fit its base" in refusal(load_language_policy(config()), folder)
