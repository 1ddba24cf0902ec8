"""docs/truth.md: the figures with what they mean."""

from collections.abc import Sequence

from trimtab.truth.cases import BOUND, Result
from trimtab.truth.llama import BOUND as LLAMA_BOUND
from trimtab.truth.llama import EndToEnd

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
is the method as users run it, on batches as users have them; nothing is sampled, so what remains is the
method's own error.

The optima come from another route: distributions over the 40 responses, in numpy, with formulas written
anew from the papers (`src/trimtab/truth/optima.py`).

{table}

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

## End to end

The same world by the way that users go: a Llama of {parameters:,} parameters is its own reference, writes
{pairs:,} pairs of different responses, the rewards judge them, and the training loop runs DPO (β = 1) on
them for 200 steps of 512. Total variation to its optimum, enumerated: {before:.3f} before training,
**{after:.3f}** after it (bound {llama_bound}). What is left is the chance in the pairs and the few steps.

## The same batch through TRL 1.16

`tests/peer` runs the same tiny Llama and the same tokens through TRL's own trainers: losses agree to 1e-5 and
gradients to 1e-4 in fp32, for SFT, reward models (with margin and with the centring term), DPO, IPO, KTO and
ORPO's odds ratio. Where definitions differ, the tests show the difference:

- **DPO with `label_smoothing`**: trimtab mixes both labels (Mitchell 2023); TRL's loss type `sigmoid` ignores
  the option. TRL has the same formula in `aot`, with which the test compares.
- **IPO**: trimtab sums log-ratios over the response, as the paper does; TRL averages over tokens and equals
  `per_token: true`.
- **KTO, mismatched pairs**: in trimtab a response never meets its own prompt, and data with more than half on
  one prompt are refused. TRL rotates responses by one within the batch: where two answers to one prompt stand
  together, one meets its own prompt.
- **KTO, reference point**: trimtab measures it once for an optimiser step; TRL once for each micro-batch.
  With TRL's own mismatched rows the losses are equal, also where the point is below zero and counts as zero.
- **ORPO, likelihood**: trimtab takes the response's mean over tokens, then the mean over pairs (the paper's
  eq. 6); TRL takes prompt and response, and one mean over all tokens of the batch.
- **ORPO, prompt**: TRL puts BOS in front even if the tokenizer does not; trimtab follows the tokenizer.
- **Reduction**: trimtab takes one mean over everything in an optimiser step; TRL, except for SFT, the mean of
  the micro-batches' means.

Packed, padded to either side, alone, in whatever micro-batches: log-probs, losses and gradients are the same
to 1e-5 (`tests/policies/test_packing.py`, `tests/methods/test_invariance.py`).
"""


def page(results: Sequence[Result], llama: EndToEnd) -> str:
    """The page in Markdown. The same numbers give the same text."""
    rows = ["| method | optimum known from | distance | to ref · exp(r / β) |", "|---|---|---|---|"]
    for result in results:
        regularised = "" if result.from_regularised is None else figure(result.from_regularised)
        cells = f"`{result.case.title}`", result.case.known_from, figure(result.distance), regularised
        rows.append("| " + " | ".join(cells) + " |")
    return PAGE.format(
        table="\n".join(rows),
        bound=BOUND,
        parameters=llama.parameters,
        pairs=llama.pairs,
        before=llama.before,
        after=llama.after,
        llama_bound=LLAMA_BOUND,
    )


def figure(value: float) -> str:
    """Four digits; what is smaller is rounding."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
