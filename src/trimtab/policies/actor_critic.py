"""Actor and critic of a language model: log-probs, entropy and values of the same sequences."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.feedback.sequences import Sequences
from trimtab.objectives.distributions import CATEGORICAL
from trimtab.policies.base import ABSENT, Evaluation
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.reward_model import RewardModel


@dataclass(frozen=True)
class Critic:
    """Says what score a response that began so can expect.

    Attributes:
        hidden: (sequences, the actor's hidden states) -> hidden states [N, H] that `head` reads.
        head: [H] -> 1.
        own: the parameters that only the critic has; those of `head` among them.
        save: writes it into a folder.
        learning_rate: of AdamW for `own`, if the run does not say.
    """

    hidden: Callable[[Sequences, Tensor], Tensor]
    head: nn.Module
    own: list[nn.Parameter]
    save: Callable[[Path], None]
    learning_rate: float = 1e-5

    def values(self, sequences: Sequences, actor_hidden: Tensor) -> Tensor:
        """[S, R + 1] float32: before each token of the response, and after its last; zero beyond."""
        hidden = self.hidden(sequences, actor_hidden)[sequences.state_index]
        head = next(self.head.parameters())
        return sequences.unpack_states(self.head(hidden.to(head.dtype))[:, 0].float())


def head_critic(actor: LanguagePolicy) -> Critic:
    """A linear head on the actor's own hidden states: one trunk, and one forward pass, for both.

    It starts at zero, so that the first values are what a policy without critic assumes.
    """
    head = value_head(actor)
    own = list(head.parameters())
    return Critic(
        lambda _, hidden: hidden, head, own, lambda folder: save_head(head, folder), learning_rate=1e-3
    )


def model_critic(model: RewardModel) -> Critic:
    """A model of its own: a reward model that goes on learning, or the policy's weights with a new head."""
    trunk = model.trunk

    def hidden(sequences: Sequences, _: Tensor) -> Tensor:
        with model.autocasting():
            return trunk.hidden(sequences)

    return Critic(hidden, trunk.hf.score, model.parameters(), model.save)


def value_head(actor: LanguagePolicy) -> nn.Linear:
    """[H] -> 1 for the actor's trunk, in float32, zero."""
    head = nn.Linear(actor.trunk.hf.config.hidden_size, 1, device=actor.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def save_head(head: nn.Module, folder: Path) -> None:
    """Writes the weights of a value head as safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: w.detach().cpu().contiguous() for name, w in head.state_dict().items()},
        folder / "head.safetensors",
    )


class ActorCritic:
    """A language policy that learns from its own responses, with or without a critic.

    Args:
        temperature: of sampling, and so of every log-prob here.

    Attributes:
        made_ahead: what `evaluate_ahead` gave and nobody has taken yet. Who moves the weights clears it.
    """

    family = CATEGORICAL
    is_flat = False

    def __init__(self, actor: LanguagePolicy, critic: Critic | None = None, temperature: float = 1.0) -> None:
        self.actor = actor
        self.critic = critic
        self.temperature = temperature
        self.tokenizer = actor.tokenizer
        self.made_ahead: list[tuple[Sequences, Evaluation]] = []

    @property
    def device(self) -> torch.device:
        return self.actor.device

    @property
    def has_adapter(self) -> bool:
        return self.actor.has_adapter

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the policy itself."""
        own = {id(p) for p in self.critic_parameters()}
        named = self.actor.model.named_parameters()
        return {name: p for name, p in named if p.requires_grad and id(p) not in own}

    def critic_parameters(self) -> list[nn.Parameter]:
        """What only the critic has."""
        return self.critic.own if self.critic else []

    @property
    def critic_learning_rate(self) -> float:
        """What suits the critic's kind; see Critic."""
        return self.critic.learning_rate if self.critic else 0.0

    def parameters(self) -> list[nn.Parameter]:
        return [*self.named_parameters().values(), *self.critic_parameters()]

    def evaluate(self, inputs: Sequences, *, entropy: bool = False) -> Evaluation:
        """Log-probs, entropy if asked for, and values if there is a critic: each [S, R]."""
        if torch.is_grad_enabled():
            if entropy:  # which no pass made ahead has: let go of their memory first
                self.made_ahead.clear()
            elif (made := self._taken(inputs)) is not None:
                return made
        return self._evaluated(inputs, entropy)

    @torch.enable_grad()
    def evaluate_ahead(self, inputs: Sequences) -> Evaluation:
        """As `evaluate`, which takes this very pass, graph and all, when next asked for these sequences."""
        made = self._evaluated(inputs, entropy=False)
        self.made_ahead.append((inputs, made))
        return made

    def _taken(self, inputs: Sequences) -> Evaluation | None:
        """That of these sequences, once; where there is none, what waits is let go of."""
        for place, (known, made) in enumerate(self.made_ahead):
            if all(torch.equal(getattr(known, f.name), getattr(inputs, f.name)) for f in fields(Sequences)):
                del self.made_ahead[place]
                return made
        self.made_ahead.clear()
        return None

    def _evaluated(self, inputs: Sequences, entropy: bool) -> Evaluation:
        actor, spread = self.actor, ABSENT
        with actor.autocasting():
            hidden = actor.trunk.hidden(inputs)
            if entropy:
                logprobs, spread = actor.logprobs_and_entropy_at(hidden, inputs, self.temperature)
            else:
                logprobs = actor.logprobs_at(hidden, inputs, self.temperature)
            if self.critic is None:
                return Evaluation(logprobs, spread)
            states = self.critic.values(inputs, hidden)
        mask = inputs.mask
        return Evaluation(logprobs, spread, states[:, :-1] * mask, states[:, 1:] * mask)

    def distributions(self, inputs: Sequences) -> Tensor:
        """The whole distribution of every response token as log-probs: [M, V]."""
        return self.actor.logits(inputs, self.temperature)

    def distributions_with(self, parameters: dict[str, Tensor], inputs: Sequences) -> Tensor:
        """`distributions` as if the parameters of these names had these values."""
        named = {f"model.{name}": value for name, value in parameters.items()}
        # of torch's attention kernels this one can be differentiated forwards
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(_Distributions(self), named, (inputs,))

    def save(self, folder: Path) -> None:
        """Writes the policy; its critic into the folder `critic` within."""
        if self.critic is not None:  # first: saving the policy may merge the adapters away
            self.critic.save(folder / "critic")
        self.actor.save(folder)


class _Distributions(nn.Module):
    """The policy's distributions as a module's output, which is what torch calls with other parameters."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.model = policy.actor.model
        self.distributions = policy.distributions

    def forward(self, inputs: Sequences) -> Tensor:
        return self.distributions(inputs)
