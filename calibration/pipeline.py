"""One command's work: prompts and a model in, an edit spec with its evidence out.

Everything that can be wrong with the prompts is found before the model is loaded. Finished stages are kept beside the
output and reused after an interruption; the spec is written last and whole.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from calibration.analyses.registry import analyse, chosen
from calibration.analyses.subject import Subject
from calibration.evidence.verdict import Output
from calibration.options import CalibrationOptions
from calibration.prompts.material import Answers, Encoder, Sources, pair_up, prepare_material
from calibration.prompts.request_sets import load_jailbreaks, load_requests, require_disjoint
from calibration.report.page_report import AnswerPair, write_report
from calibration.runs.identity import identity
from calibration.runs.launch import in_step
from calibration.runs.processes import Shared, is_first
from calibration.runs.progress import shown_progress
from calibration.runs.shelf import Shelf
from calibration.runs.store import Store, alone_in, compute_anew
from calibration.search.bounds import Budget
from calibration.search.findings import Findings, Settings, find
from calibration.search.selection import SelectionSettings
from guard.loading import load_model
from guard.spec.edit_spec import Analyses, EditSpec, Evidence, Provenance
from guard.spec.fingerprint import fingerprint

PACKAGES = ("neuron-guard", "torch", "transformers", "optuna", "scikit-learn")


def calibrate(options: CalibrationOptions) -> EditSpec:
    """Calibrate as `options` say, write the spec (and the report), and return the spec."""
    wanted = chosen(options.analyses)
    sources, digests = read_sources(options)
    work = _work_folder(options.output)
    with alone_in(work, private=True) if is_first() else nullcontext(), shown_progress() as bars:
        with bars("model", None):
            model, tokenizer = load_model(
                options.model, device=options.device, dtype=options.dtype, device_map=options.device_map
            )
        checkpoint = Store(work, _key(options, digests, identity(model, tokenizer))) if is_first() else None
        keep = in_step(checkpoint.stage if checkpoint else compute_anew)

        def kept(name: str, compute: Callable[[], Answers]) -> Answers:
            def answered() -> Answers:
                with bars(f"the model's own answers, {name}", None):
                    return compute()

            return keep(f"answers-{name}", Answers, Shared(answered))

        encoder = Encoder(model, tokenizer, options.template, options.batch_size, options.max_new_tokens)
        material = prepare_material(sources, encoder, kept)
        settings = settings_of(options)
        shelf = _shelf(options.max_memory, work / "activations")
        findings = find(model, tokenizer, material, settings, keep=keep, progress=bars, shelf=shelf)
        subject = Subject(model, tokenizer, encoder, sources, material, findings, settings)
        analyses = analyse(subject, wanted, keep=keep, progress=bars)
        with bars("spec", None):
            spec = build_spec(subject, analyses, options, digests)
            if checkpoint is None:
                return spec
            spec.save(options.output)
            if options.report is not None:
                pairs = answer_pairs(sources, findings)
                write_report(options.report, spec, pairs, model_name=options.model, show_text=options.show_text)
        checkpoint.discard()
    return spec


def read_sources(options: CalibrationOptions) -> tuple[Sources, dict[str, str]]:
    """Read and check every prompt file, pair up and split; and the digest of each file's requests by role."""
    harmful, benign = load_requests(options.harmful), load_requests(options.benign)
    require_disjoint(harmful, benign)
    jailbreaks = load_jailbreaks(options.jailbreak) if options.jailbreak else None
    digests = {"harmful": harmful.digest, "benign": benign.digest}
    if jailbreaks is not None:
        digests["jailbreak"] = jailbreaks.digest
    sources = pair_up(
        harmful.requests, benign.requests, jailbreaks, seed=options.seed, max_requests=options.max_requests
    )
    return sources, digests


def settings_of(options: CalibrationOptions) -> Settings:
    """The search's settings among the options."""
    return Settings(
        trigger=options.trigger,
        budget=Budget(kl=options.budget_kl, refusal=options.budget_refusal),
        selection=SelectionSettings(max_neurons=options.max_neurons),
        seed=options.seed,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
    )


def build_spec(subject: Subject, analyses: Analyses, options: CalibrationOptions, digests: dict[str, str]) -> EditSpec:
    """The spec that the findings make, bound to the model by the fingerprint of its guarded layers."""
    findings = subject.findings
    gate, mediation, examined = findings.gate, findings.mediation, findings.examined
    edits = subject.edits
    return EditSpec(
        schema_version=1,
        model=fingerprint(subject.model, [edit.layer for edit in edits], subject.tokenizer),
        layers=edits,
        trigger=gate.trigger if edits else None,
        provenance=Provenance(
            versions=_versions(),
            seed=options.seed,
            data=digests,
            arguments={name: str(value) for name, value in options.model_dump().items() if value is not None},
        ),
        evidence=Evidence(
            contrasts=(subject.sources.contrast,),
            outcome_harmful=mediation.outcome_harmful,
            outcome_reference=mediation.outcome_reference,
            total_effect=mediation.total_effect,
            mediators=mediation.mediators,
            neurons=findings.neurons.neurons,
            set_sizes=findings.neurons.set_sizes,
            trials=gate.searched.trials if gate.searched else (),
            held_out=examined.held_out,
            verdict=examined.verdict,
            analyses=analyses if analyses.numbers else None,
        ),
    )


def answer_pairs(sources: Sources, findings: Findings) -> list[AnswerPair]:
    """The first held-out answers, off and on, as the report shows them."""

    def pair(kind: Literal["harmful", "benign"], prompt: str, both: tuple[Output, Output]) -> AnswerPair:
        off, on = both
        return AnswerPair(
            kind=kind, prompt=prompt, off=off.text, on=on.text, off_class=off.behaviour, on_class=on.behaviour
        )

    examined = findings.examined
    harmful = zip(sources.pairs.held_out, examined.harmful_samples, strict=False)
    benign = zip(sources.benign.held_out, examined.benign_samples, strict=False)
    return [pair("harmful", request.harmful.prompt, both) for request, both in harmful] + [
        pair("benign", request.prompt, both) for request, both in benign
    ]


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def _key(options: CalibrationOptions, digests: dict[str, str], of_model: Mapping[str, str]) -> dict[str, str]:
    indecisive = {"output", "report", "show_text", "harmful", "benign", "jailbreak", "analyses", "max_memory"}
    decisive = options.model_dump(exclude=indecisive)
    return {**{name: str(value) for name, value in decisive.items()}, **digests, **_versions(), **of_model}


def _shelf(limit: float | None, folder: Path) -> Shelf:
    """Where activations are kept: `limit` GiB of them in memory. What an interrupted run left in files is removed."""
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)
    return Shelf() if limit is None else Shelf(int(limit * 2**30), folder)


def _work_folder(output: Path) -> Path:
    return output.with_name(output.name + ".work")
