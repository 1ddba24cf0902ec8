"""How much memory a training step takes, from the model's configuration alone.

All weights are fp32, 4 bytes each; below an adapter in bf16 2. What is trained has a gradient of 4 bytes and
Adam's two moments of 8 (Kingma & Ba 2015). Autocast keeps a copy in bf16 of every trained matrix until the
backward pass has used it.

What a layer keeps of each token for its backward pass is counted as in Korthikanti et al. 2022
(arXiv:2205.05198, sec. 4.1), who find 34 bytes x hidden size in fp16 with dropout and GELU. Here there is no
dropout, attention keeps no scores (Dao et al. 2022) and the MLP is gated. H hidden size, Q and K sizes of all
heads of queries and of keys, I inner size of the MLP; c bytes of a number in matrix products, r in the
residual stream, which is in the precision of the embeddings:

    two norms          r 2H             their inputs
    attention          c (2Q + 2K)      rotated queries and keys, values, and its output
    inputs of matrices c (2H + I)       after both norms and the activation; attention's output is there
    activation         c 2I             gate and up, whose product is computed again in the fused pass

Below an adapter every adapted matrix keeps the input of A: the same tensor in fp32 and in the fused pass, in
peft's own layers in bf16 a copy of its own, c (5H + Q + I). In transformers' modules a norm keeps its
normalised input too (4 bytes x H each), autocast a copy for every matrix, and the activation its result
(c I); an MLP without gate keeps its activation's steps. Norms of queries and keys keep c (Q + K). What other
architectures keep beyond that, such as the capped scores of Gemma 2, is left to the measurement.

The backward pass holds the head's gradients first and those of one layer after another later, so that the
larger of both counts. The head's are a block of logits in fp32 and in the run's precision
(`objectives.logprobs.HELD`, `HELD_ON_CPU`), and in fp32 the gradients of its matrix and of the hidden states
while they are added up. A layer's are about what it keeps, or, where that is more, what attention's backward
pass holds on a CPU (`policies.cpu_attention`): queries, keys, values, output and its gradient, 5 c Q, three
gradients 3 c Q, and their sums 4 (Q + 2K); of rows shorter than SHORT in bf16 the first 20 Q again in fp32,
and the gradients 12 Q. peft's own layers in bf16 add 8 I: the input of A in fp32, and its gradient. With
checkpointing a layer keeps its input only, r H, and one layer at a time everything.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch

from trimtab.hub import only_local
from trimtab.objectives.logprobs import HELD, HELD_ON_CPU
from trimtab.policies.cpu_attention import SHORT
from trimtab.policies.folders import Source, look, reading
from trimtab.policies.fused import is_of_family
from trimtab.policies.load import ModelConfig, lora_config, resolve_device, resolve_precision

STEPS = {"gelu_new": 4, "gelu": 1, "relu": 1}  # tensors that an activation without gate keeps, of size I


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters, trained: all, and those with a gradient.
        multiplied: those of the trained matrices that autocast copies.
        inner: of the MLP.
        queries, keys: of all heads together.
        adapted: whether there is an adapter.
        fused: whether trimtab's own pass runs, instead of transformers' modules.
        fused_lora: whether adapters in it run without peft's own layers.
        bf16: of matrix products.
        checkpointing: as ModelConfig.gradient_checkpointing.
        cpu: whether it runs on one.
        head_norms: whether queries and keys have norms of their own.
    """

    parameters: int
    trained: int
    multiplied: int
    hidden: int
    inner: int
    layers: int
    queries: int
    keys: int
    vocabulary: int
    gated: bool
    adapted: bool
    fused: bool
    fused_lora: bool
    bf16: bool
    checkpointing: bool = False
    activation: str = "silu"
    cpu: bool = True
    head_norms: bool = False

    @property
    def bytes_of_weight(self) -> int:
        return 2 if self.bf16 and self.adapted else 4

    @property
    def bytes_of_product(self) -> int:
        return 2 if self.bf16 else 4

    @property
    def copied(self) -> bool:
        """Whether matrix products keep copies of their inputs."""
        return self.bf16 and not (self.fused and (self.fused_lora or not self.adapted))

    @cached_property
    def kept_by_layer(self) -> int:
        """Bytes a token; see the module."""
        r, c = self.bytes_of_weight, self.bytes_of_product
        h, q, k, i = self.hidden, self.queries, self.keys, self.inner
        norms, attention = 2 * r * h, c * (2 * q + 2 * k)
        norms += c * (q + k) if self.head_norms else 0
        inputs = c * (5 * h + q + i) if self.copied and self.gated else c * (2 * h + i)
        activation = c * 2 * i
        if not self.fused:
            norms += (
                2 * 4 * h if self.gated else 0
            )  # LayerNorm, beside MLPs without gate, keeps its input only
            activation = c * 3 * i if self.gated else c * STEPS.get(self.activation, 2) * i
        return norms + attention + inputs + activation

    def gradients_of_layer(self, longest: int) -> int:
        """Bytes a token that a layer's backward pass takes at most, in rows of at most so many tokens."""
        q, k, c = self.queries, self.keys, self.bytes_of_product
        rows = 20 * q + 12 * q if self.bf16 and longest < SHORT else 3 * c * q
        attention = 5 * c * q + rows + 4 * (q + 2 * k)
        rounded = 8 * self.inner if self.adapted and self.copied else 0
        return max(self.kept_by_layer + rounded, attention if self.cpu else 0)


def source_of(config: ModelConfig, *, reward_model: bool = False) -> Source:
    """Where the parts of the model are. Raises UserError for what cannot be loaded."""
    kind = "AutoModelForSequenceClassification" if reward_model else "AutoModelForCausalLM"
    rules = {"allow_pickle": config.allow_pickle, "trust_remote_code": config.trust_remote_code}
    return look(config.model, kind, **rules)


def shape_of(config: ModelConfig, *, reward_model: bool = False) -> Shape:
    """The sizes of a model that is not loaded: its configuration with weights that have no memory.

    Raises UserError if there is no configuration, or no such architecture.
    """
    import transformers

    base, trusted = source_of(config, reward_model=reward_model).base, config.trust_remote_code
    kind: Any = transformers.AutoModelForCausalLM
    task, outputs = "CAUSAL_LM", {}
    if reward_model:
        kind = transformers.AutoModelForSequenceClassification
        task, outputs = "SEQ_CLS", {"num_labels": 1}
    with reading("configuration", base), torch.device("meta"):
        settings = transformers.AutoConfig.from_pretrained(
            base, local_files_only=only_local(base), trust_remote_code=trusted, **outputs
        )
        model: Any = kind.from_config(settings, trust_remote_code=trusted)
        is_fused = "fused" not in config.left_out and "packing" not in config.left_out
        is_fused = is_fused and is_of_family(model.base_model)
        if config.lora_rank > 0:
            from peft import get_peft_model

            model = get_peft_model(model, lora_config(config, task))
    precision = resolve_precision(config.precision, resolve_device(config.device))
    ways = {"fused": is_fused, "fused_lora": "fused-lora" not in config.left_out, "bf16": precision == "bf16"}
    return _shape(model, settings.get_text_config(), config, ways)


def _shape(model: Any, settings: Any, config: ModelConfig, ways: dict[str, bool]) -> Shape:
    hidden, heads = settings.hidden_size, settings.num_attention_heads
    size = getattr(settings, "head_dim", None) or hidden // heads
    inner = getattr(settings, "intermediate_size", None) or getattr(settings, "n_inner", None) or 4 * hidden
    trained = [p for p in model.parameters() if p.requires_grad]
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        multiplied=sum(p.numel() for p in trained if p.dim() == 2) - _looked_up(model),
        hidden=hidden,
        inner=inner,
        layers=settings.num_hidden_layers,
        queries=heads * size,
        keys=(getattr(settings, "num_key_value_heads", None) or heads) * size,
        vocabulary=settings.vocab_size,
        gated=any(name.endswith("gate_proj") for name, _ in model.named_modules()),
        adapted=config.lora_rank > 0,
        **ways,
        checkpointing=config.gradient_checkpointing,
        activation=getattr(settings, "activation_function", getattr(settings, "hidden_act", "silu")),
        cpu=resolve_device(config.device).type == "cpu",
        head_norms=any(name.endswith("q_norm") for name, _ in model.named_modules()),
    )


def _looked_up(model: Any) -> int:
    """Trained weights of an embedding that no matrix product reads."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_tied = head is not None and head.weight is embedding
    return 0 if is_tied or not embedding.requires_grad else embedding.numel()


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a training step.

    Attributes:
        weights, gradients, moments: see the module.
        copies: of trained matrices in bf16.
        activations: kept for the backward pass.
        backward: what that pass holds of its own, in the head or in one layer.
        reference: a second model that is held all the time.
        critic: one with weights, gradients and moments of its own.
    """

    weights: int
    gradients: int
    moments: int
    copies: int
    activations: int
    backward: int
    reference: int = 0
    critic: int = 0
    parts: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", {f.name: getattr(self, f.name) for f in fields(self) if f.init})

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def estimate(
    shape: Shape,
    tokens: int,
    *,
    predicted: int | None = None,
    longest: int = 0,
    reference: bool = False,
    critic: str = "none",
) -> Estimate:
    """The memory of a step whose largest micro-batch has so many tokens.

    Args:
        tokens: that are read; a prompt that several responses share counts once.
        predicted: those of responses, for which logits are computed; all if not given.
        longest: of the longest prompt with its response.
        reference: whether a frozen model is held beside, as online methods do without an adapter.
        critic: none, head, adapter or model.
    """
    s, c = shape, shape.bytes_of_product
    predicted = tokens if predicted is None else predicted
    layers = 1 if s.checkpointing else s.layers
    activations = tokens * s.kept_by_layer * layers
    if s.checkpointing:
        activations += tokens * s.bytes_of_weight * s.hidden * s.layers
    activations += (tokens + predicted) * c * s.hidden
    if critic in ("adapter", "model"):  # a second pass through layers of its own, kept as well
        activations += tokens * s.kept_by_layer * (1 if s.checkpointing else s.layers)
    block = min(HELD_ON_CPU if s.cpu else HELD, predicted * s.vocabulary) * (4 + c)
    sums = 0 if s.adapted else (s.vocabulary + predicted) * s.hidden * 4
    own = {"adapter": s.trained * 16, "model": s.parameters * 16}.get(critic, 0)
    return Estimate(
        weights=(s.parameters - s.trained) * s.bytes_of_weight + s.trained * 4,
        gradients=s.trained * 4,
        moments=s.trained * 8,
        copies=s.multiplied * 2 if s.bf16 else 0,
        activations=activations,
        backward=max(block + sums, tokens * s.gradients_of_layer(longest)),
        reference=s.parameters * 4 if reference else 0,
        critic=own,
    )
