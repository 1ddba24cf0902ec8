"""docs/truth.md: the figures with what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.truth.cases import BOUND, Result
from trimtab.truth.gradients import BATCHES, LARGEST_Z, LEAST_CHANCE, ROWS_EACH, Agreement, Equality
from trimtab.truth.llama import ANSWERS, EndToEnd, OnlineLlama
from trimtab.truth.llama import BOUND as LLAMA_BOUND
from trimtab.truth.measured import Measured, table
from trimtab.truth.reinforcement import DRAWN_BOUND, DRAWN_ROWS, OnlineResult
from trimtab.truth.trust import Step

PAGE = """\
# Is it right? Numbers from outside

`make truth` writes this page. It asks two questions: do the methods end where theory says that they end,
and do they compute what TRL, the field's library, computes?

## The small world

Two prompts, three letters and an end token, responses of at most three tokens: 40 responses to each
prompt, all enumerated. The reference policy is drawn at random (every token has at least probability 1/8),
the rewards are normal. All feedback that this world can give is one batch: every pair of responses with its
probability under the reference and Bradley-Terry, every response with a thumb up of probability
sigmoid(reward), and so on. The policy is a table with a free distribution for every prefix. What is trained
is the method as users run it, on batches as users have them; nothing is sampled unless it says so, so what
remains is the method's own error.

The optima come from another route: distributions over the 40 responses, in numpy, with formulas written
anew from the papers (`src/trimtab/truth/optima.py`).

## Recorded feedback

{recorded}

Distance: total variation to the optimum, for the worse of the two prompts; for reward models the largest
error of a centred score. It must be at most {bound}. The last column is the total variation to the
KL-regularised optimum ref · exp(r / β) at the same β: how far what a method optimises is from what DPO
optimises, with the same data.

### What each method optimises

- **dpo** reaches ref · exp(r / β), the optimum of expected reward minus β KL, when preferences are
  Bradley-Terry in r (Rafailov et al. 2023, eq. 4).
- **ipo** reaches ref · exp(E[p(y > y')] / β), y' drawn as the pairs are: here from the reference. Exactly,
  since the derivative of E[(h(y) - h(y') - 1/(2β))²] is zero where the log-ratio h is E[p(y > y')] / β + c.
  The exponent is a win-rate, between 0 and 1, so that no policy gets infinitely far from the reference. With
  `per_token` h is the log-ratio divided by the length, and c becomes a price on length: the optimum is
  ref · exp(length · (E[p(y > y')] / β + c)), normalised by c.
- **dpo_kl** pulls back towards the reference once more, so that it stops short of DPO's optimum. Its KL is
  taken token by token along prefixes of the recorded responses, as if the reference had written them.
- **kto** does not end at ref · exp(r / β). Its loss is a constant minus Σ ref(y) s(y) sigmoid(β (h(y) - z0))
  with s = w_D P(up) - w_U P(down): responses with s ≤ 0 lose *all* probability, without a leash, and the
  mean log-ratio of mismatched pairs falls with them until z0 is clamped at 0. For β = 1 the rest is
  ref · max(0, √(s / m) - 1), m set by normalising. A lower `undesirable_weight` spares more responses.
  The table is reached slowly because a probability on its way to zero has a gradient on its way to zero.
- **orpo** has no reference to stay near: likelihood of the chosen responses, per token, plus the odds ratio.
  Its optimum has no closed form; the table compares with the minimum found by scipy.
- **score_weighted** reaches ref · max(0, 1 + a (s - b)): linear in the score, where DPO is exponential.
- **sft** reaches the distribution of the demonstrations; **reward_model** and **reward_ranking** recover the
  rewards up to a constant for each prompt, from pairs and from rankings of four.

## Reinforcement learning

Every method asks for E[r] - β KL(π || ref) at β = 0.5, and r - β log(π / ref) is its reward; the optimum is
ref · exp(r / β), the same as DPO's.

### On all responses

The training loop itself, but each refresh collects every response (for RLOO and GRPO every pair of
responses to a prompt), and each loss counts by the policy's own probability of it, computed anew at each
refresh. Critics are tables, learned beside the policy by the method's own loss. PPO and PPO with KL make 4
updates a refresh.

{enumerated}

Distance: total variation, at most {bound}.

### On drawn responses

The training loop as users run it: 100 refreshes of {rows:,} answers that the policy draws, learning rates
falling to zero.

{drawn}

Distance: total variation, at most {drawn_bound}. What is left is chance and, for methods with one update a
refresh, too few steps.

- Near the optimum r - β log(π / ref) is the same for all responses to a prompt, so that advantages vanish
  and with them the noise. `reinforce baseline=none` has nothing to subtract and keeps its noise.
- Whitening (`ppo` as it is by default) and GRPO's division by the deviation (`grpo kl=reward`) blow up what
  is left of the advantages there, but do not move the optimum: with a learning rate that falls to zero they
  end no further off. All other rows go without, so that they measure the policy gradient alone.
- **trpo** takes steps of a size that does not fall: the bound on the KL is set to 0.001, since a policy
  that moves by 0.01 nats a token at every refresh ends about 0.05 off.
- **grpo** in its usual form pays the KL as a loss of each token, which leaves out what a token does to the
  KL of later ones, so that it is the optimum of nothing: it comes to rest where π(a | s) = ref(a | s) exp(f
  E[r | s, a] / β), normalised, E[r | s, a] being the expected score alone under π itself. f = 1 - 1 / G,
  since a response is part of the mean of its group of G: advantages are that much smaller than they would
  be against others, and the KL is not. With `aggregation=grpo` long responses count less in both terms,
  each by 1 / length. With `kl=reward` neither matters and all three end at the optimum. (With `scale=True`
  the price of KL depends on how much the answers differ; where that rests has no formula here.)

### Gradients

The mean of the gradients of {batches} batches of {each} drawn answers, by a policy away from the reference,
against the derivative of what is to be maximised, taken by enumeration. Values are exact, so that `lam`
must not matter. Off by: the length of the difference as a share of the gradient's. z: of all components,
the one that is off by the most standard errors, below {largest_z:g}. Chance: that drawing alone brings such
a difference (Hotelling's T² over all components together), above {least_chance:g}.

{gradients}

{equalities}

PPO's gradient before its first update is that of A2C; TRPO's product of Fisher matrix and vector,
differentiated forwards and then backwards through a Llama, is the KL's second derivative.

### TRPO's step

The first step from the reference, with every response as often as its probability says (all are multiples
of 1/512). KL(old || new), the mean over tokens: as the method reports it, and over all prefixes in numpy;
they must agree to rounding, and keep to the bound. Gain: what the surrogate rises by; the best is what a
step of that KL can gain to first order.

{steps}

Damping, 0.1 unless it is given, shortens the step: it counts as curvature that this small Fisher matrix
lacks.

## End to end

The same world by the way that users go: a Llama of {parameters:,} parameters is its own reference, writes
{pairs:,} pairs of different responses, the rewards judge them, and the training loop runs DPO (β = 1) on
them for 200 steps of 512. Total variation to its optimum, enumerated: {before:.3f} before training,
**{after:.3f}** after it (bound {llama_bound}). What is left is the chance in the pairs and the few steps.

The same Llama by reinforcement learning (β = 1, {answers} answers a refresh): it answers the prompts as
text, a function gives the texts their rewards, PPO's critic is a head on the Llama itself.

{llamas}

## The same batch through TRL 1.16

`tests/peer` runs the same tiny Llama and the same tokens through TRL's own trainers: losses agree to 1e-5
and gradients to 1e-4 in fp32, for SFT, reward models (with margin and with the centring term), DPO, IPO,
KTO and ORPO's odds ratio. For GRPO and RLOO TRL is given the answers and their scores and makes the rest
itself, masks, log-probs, rewards, advantages and its own training step; at weights that have moved since
the answers were written advantages and losses agree to 1e-5 and gradients to 1e-4: GRPO with `aggregation`
grpo, dr_grpo and dapo, `clip`, `clip_high`, `scale`, temperature and the KL as a loss; RLOO with its ratio
of whole answers, the KL in the score, and `clip_scores`. Where definitions differ, the tests show the
difference:

- **DPO with `label_smoothing`**: trimtab mixes both labels (Mitchell 2023); TRL's loss type `sigmoid`
  ignores the option. TRL has the same formula in `aot`, with which the test compares.
- **IPO**: trimtab sums log-ratios over the response, as the paper does; TRL averages over tokens and equals
  `per_token: true`.
- **KTO, mismatched pairs**: in trimtab a response never meets its own prompt, and data with more than half
  on one prompt are refused. TRL rotates responses by one within the batch: where two answers to one prompt
  stand together, one meets its own prompt.
- **KTO, reference point**: trimtab measures it once for an optimiser step; TRL once for each micro-batch.
  With TRL's own mismatched rows the losses are equal, also where the point is below zero and counts as
  zero.
- **ORPO, likelihood**: trimtab takes the response's mean over tokens, then the mean over pairs (the paper's
  eq. 6); TRL takes prompt and response, and one mean over all tokens of the batch.
- **ORPO, prompt**: TRL puts BOS in front even if the tokenizer does not; trimtab follows the tokenizer.
- **GRPO, KL**: trimtab multiplies k3 by the ratio, as TRL does by default. Without it (the GRPO paper's eq.
  4) the value on fresh answers is the same, the gradient that of another divergence.
- **GRPO, KL in the score** (`kl: reward`): TRL has it for RLOO only; given scores with the price in them,
  its GRPO is the same.
- **GRPO, dapo**: trimtab divides by the tokens of the optimiser step, TRL by the step's equal share of the
  tokens of the whole generation. The two are the same where all answers serve for one step. TRL's `bnpo` on
  one micro-batch equals our `dapo`.
- **RLOO, whitening**: TRL whitens advantages, with the price of the KL in them; trimtab whitens scores,
  before the price, so that beta keeps its meaning.
- **Equal scores**: trimtab's advantages are exactly zero. TRL's GRPO divides rounding errors by a deviation
  as small: over 0.1 for six scores of 1000.1.
- **Cut-off answers**: TRL's `mask_truncated_completions` takes them out of the loss, but they still count
  in the baseline and in the mean over answers. In trimtab they count, by `cut_off`.
- **Answers without a score** (None): TRL leaves them out and goes on; trimtab stops.
- **Reduction**: trimtab takes one mean over everything in an optimiser step, and so do TRL's SFT, GRPO and
  RLOO; TRL's other trainers take the mean of the micro-batches' means.

Packed, padded to either side, alone, in whatever micro-batches: log-probs, losses and gradients are the same
to 1e-5 (`tests/policies/test_packing.py`, `tests/methods/test_invariance.py`, and
`tests/methods/test_online_invariance.py`).
"""


@dataclass(frozen=True)
class Findings:
    """Everything that is measured for the page."""

    recorded: Sequence[Result]
    enumerated: Sequence[OnlineResult]
    drawn: Sequence[OnlineResult]
    gradients: Sequence[Agreement]
    equalities: Sequence[Equality]
    steps: Sequence[Step]
    llama: EndToEnd
    llamas: Sequence[OnlineLlama]

    def missed(self) -> list[str]:
        """The titles of those that are further off than they may be."""
        rows: list[Measured] = [*self.recorded, *self.enumerated, *self.drawn, *self.gradients]
        rows += [*self.equalities, *self.steps, self.llama, *self.llamas]
        return [row.cells[0] for row in rows if row.missed]


def page(found: Findings) -> str:
    """The page in Markdown. The same numbers give the same text."""
    ends = ["method", "optimum known from", "distance", "to ref · exp(r / β)"]
    return PAGE.format(
        recorded=table(ends, found.recorded),
        enumerated=table(ends, found.enumerated),
        drawn=table(ends, found.drawn),
        gradients=table(["method", "off by", "largest z", "chance"], found.gradients),
        equalities=table(["", "largest difference", "bound"], found.equalities),
        steps=table(["step", "bound", "KL enumerated", "KL reported", "gain", "best"], found.steps),
        llamas=table(["method", "refreshes", "before", "after"], found.llamas),
        bound=BOUND,
        drawn_bound=DRAWN_BOUND,
        rows=DRAWN_ROWS,
        batches=BATCHES,
        each=ROWS_EACH,
        largest_z=LARGEST_Z,
        least_chance=LEAST_CHANCE,
        answers=ANSWERS,
        parameters=found.llama.parameters,
        pairs=found.llama.pairs,
        before=found.llama.before,
        after=found.llama.after,
        llama_bound=LLAMA_BOUND,
    )
