"""Everything that the doctor looks at, in order, and its verdict."""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from trimtab.data import is_built_in
from trimtab.doctor.data import data_findings
from trimtab.doctor.findings import Finding
from trimtab.doctor.lengths import limits_of
from trimtab.doctor.material import Material, gather, listening, read_all
from trimtab.doctor.tokens import token_findings
from trimtab.errors import UserError
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.records import Record
from trimtab.hub import only_local
from trimtab.jobs import DataConfig
from trimtab.methods import Method
from trimtab.online_jobs import CriticConfig
from trimtab.policies.folders import Source, look, reading
from trimtab.policies.load import ModelConfig, load_tokenizer, resolve_model
from trimtab.rollouts.collect import CollectConfig
from trimtab.train import OptimiserConfig, RunConfig

Group = Literal["data", "tokens", "numerics", "fit"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Examination:
    """What is looked at.

    Attributes:
        method: the one that is to learn; without it the feedback and the model are looked at by themselves.
        run: a RunConfig, or for online methods an OnlineConfig.
        collect, critic: of methods that learn online.
        held_out: the file that the model will be judged on.
        groups: which checks.
    """

    model: ModelConfig
    data: DataConfig
    views: ViewOptions
    run: OptimiserConfig
    method: Method[Any] | None = None
    collect: CollectConfig | None = None
    critic: CriticConfig | None = None
    held_out: str | None = None
    groups: tuple[Group, ...] = GROUPS


def examine(what: Examination, tell: Callable[[Group], None] = lambda group: None) -> list[Finding]:
    """The findings of all groups of checks that are asked for.

    tell: is called with each group before its checks begin.
    Raises UserError if the data or the model's folder cannot be read at all.
    """
    model = replace(what.model, model=resolve_model(what.model.model))
    source = _source(what, model) if set(what.groups) - {"data"} else None
    material = gather(
        what.data.data,
        what.method,
        what.views,
        split=what.data.split,
        skip_bad_rows=what.data.bad_rows == "skip",
    )
    looks: dict[Group, Callable[[], list[Finding]]] = {
        "data": lambda: _data(what, material),
        "tokens": lambda: _tokens(what, source, material),
        "numerics": lambda: _numerics(what, model, material),
        "fit": lambda: _fit(what, model, material),
    }
    found = []
    for group in (group for group in GROUPS if group in what.groups):
        tell(group)
        found += _looked(group, looks[group], material)
    return found


def _looked(group: Group, look: Callable[[], list[Finding]], material: Material) -> list[Finding]:
    """A group's findings; one that says why if it cannot begin."""
    if group != "data" and not material.records:
        return [Finding(group, group, "skipped", "there is no feedback to look at")]
    if group in ("numerics", "fit") and material.refusal:
        return [Finding(group, group, "skipped", "the method cannot take this feedback")]
    with listening():  # what training would warn of, the checks tell
        try:
            return look()
        except UserError as error:
            return [Finding(group, group, "error", str(error), "training stops here too")]


def _data(what: Examination, material: Material) -> list[Finding]:
    held_out = None if what.held_out is None else _held_out(what.held_out)
    return data_findings(material, held_out)


def _held_out(name: str) -> list[Record]:
    return read_all(name, "held_out" if is_built_in(name) else "train").records


def _source(what: Examination, model: ModelConfig) -> Source:
    """Where the parts of the model are."""
    is_reward_model = what.method is not None and what.method.trains == "reward model"
    return look(
        model.model,
        "AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM",
        allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
    )


def _tokens(what: Examination, source: Source | None, material: Material) -> list[Finding]:
    assert source is not None, "the model is looked for first"
    tokenizer = load_tokenizer(source.tokenizer, what.model.trust_remote_code)
    new_tokens = what.collect.max_new_tokens if what.collect else 0
    configuration = _configuration(source.base, what.model.trust_remote_code)
    limits = limits_of(configuration, what.run.max_length, new_tokens)
    return token_findings(material, tokenizer, limits, _generation_configuration(source.base, configuration))


def _numerics(what: Examination, model: ModelConfig, material: Material) -> list[Finding]:
    from trimtab.doctor.numerics import numeric_findings

    shared = {f.name: getattr(what.run, f.name) for f in fields(OptimiserConfig)}
    run = what.run if isinstance(what.run, RunConfig) else RunConfig(**shared)
    temperature = what.collect.temperature if what.collect else 1.0
    return numeric_findings(what.method, model, material.all, run, views=what.views, temperature=temperature)


def _fit(what: Examination, model: ModelConfig, material: Material) -> list[Finding]:
    from trimtab.doctor.fit import fit_findings

    gc.collect()  # the model that the numerics loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fit_findings(
        what.method,
        model,
        material.all,
        what.run,
        views=what.views,
        collect=what.collect,
        critic=what.critic,
    )


def _configuration(name: str, trust_remote_code: bool) -> Any:
    """The model's configuration, with the defaults of its architecture."""
    from transformers import AutoConfig

    with reading("configuration", name):
        return AutoConfig.from_pretrained(
            name, local_files_only=only_local(name), trust_remote_code=trust_remote_code
        )


def _generation_configuration(name: str, configuration: Any) -> Any:
    """What the model says of its sampling, in a file of its own or else in its configuration."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(name, local_files_only=only_local(name))
    except OSError:
        return GenerationConfig.from_model_config(configuration)


def verdict(findings: Sequence[Finding]) -> str:
    """One line: how many errors and warnings, and which checks gave them."""
    counts = Counter(finding.level for finding in findings)
    bad = [
        f"{counts[level]} {level}{'s' * (counts[level] != 1)}: "
        + ", ".join(finding.check for finding in findings if finding.level == level)
        for level in ("error", "warning")
        if counts[level]
    ]
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    fine = f"{counts['ok']} check{' is' if counts['ok'] == 1 else 's are'} ok{skipped}"
    return "; ".join([*bad, fine])
