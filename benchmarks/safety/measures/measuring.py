"""The later stages of a run: quality, scores on tasks, the strength curve. Each is kept condition by condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from benchmarks.safety.conditions.catalogue import Condition
from benchmarks.safety.conditions.kept import digest_of_lesson
from benchmarks.safety.curve import document as curve
from benchmarks.safety.curve.points import Floats, Point
from benchmarks.safety.measures import quality
from benchmarks.safety.measures.outcomes import ALL, Outcomes, counted
from benchmarks.safety.measures.quality import AnswerQuality, OwnAnswers, Quality
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import Kind, drawn
from benchmarks.safety.stages import ENDS, SERVED, Loaded, plain_respondent
from benchmarks.safety.subject import Subject
from benchmarks.tasks import scores
from benchmarks.tasks.answering import Answering, ScoredEndpoint, ScoredModel
from benchmarks.tasks.catalogue import TASKS
from benchmarks.tasks.scores import Scoring, TaskScore
from calibration.judging.behaviour import Behaviour
from calibration.runs.store import Store
from calibration.search.findings import Advance, StageBars

QUICK_WINDOWS, FULL_WINDOWS = 16, 128
QUICK_ROWS = 100
NOT_ASKED = "Scores on tasks: not asked for (--no-tasks)."
NO_ENGLISH = "Scores on tasks and perplexity on WikiText-2: the organism speaks no English."


@dataclass(frozen=True)
class Figures:
    """What is measured after the answers, of what, and where it is kept."""

    options: Options
    subject: Subject
    loaded: Loaded
    checkpoint: Store
    bars: StageBars

    def text_quality(self) -> tuple[Quality, ...]:
        """Quality on plain text under each condition that plain text can show; none without a text."""
        text = self.options.data / quality.WIKITEXT if self.options.data else None
        if text is None or not text.exists():
            return ()
        quick = self.options.suite == "quick"
        ids = quality.windows(self.loaded.tokenizer, text, QUICK_WINDOWS if quick else FULL_WINDOWS)
        if len(ids) < quality.FEWEST:
            return ()
        found = []
        for one in self.loaded.conditions:
            if one.system is None and one.rewrite is None:
                measure = partial(
                    quality.measure,
                    self.loaded.model,
                    ids,
                    one.name,
                    one.installed,
                    seed=self.options.seed,
                    acts=one.acts,
                )
                with self.bars(f"plain text: {one.name}", None):
                    found.append(self.checkpoint.stage(_kept("text", one), Quality, measure))
        return tuple(found)

    def answer_quality(self) -> tuple[AnswerQuality, ...]:
        """Quality of the answers to harmless requests under every condition and strength; none where none is asked."""
        if len(self._harmless) < quality.FEWEST:
            return ()
        found = []
        for one in self.loaded.asked:
            with self.bars(f"quality of answers: {one.name}", None):
                found.append(self.checkpoint.stage(_kept("answers", one), AnswerQuality, partial(self._answers, one)))
        return tuple(found)

    def curve(self, outcomes: Outcomes, answered: Sequence[AnswerQuality], judge: str) -> tuple[Point, ...]:
        """Refusal against what it costs at every strength, baselines beside it; none without both kinds of requests."""
        whole, strengths = {of.name: of for of in counted(self.subject.prompts)}, self.loaded.strengths
        if not strengths or not set(ALL.values()) <= set(whole):
            return ()

        def shares(condition: str, kind: Kind, behaviour: Behaviour) -> Floats:
            return outcomes.shares(condition, whole[ALL[kind]], judge, behaviour)

        swept = {one.name for one in strengths}
        compared = (*strengths, *(one for one in self.loaded.conditions if one.name not in swept))
        kl = {one.condition: one.kl for one in answered if one.kl is not None}
        return curve.points(compared, shares, kl, seed=self.options.seed)

    @cached_property
    def _harmless(self) -> tuple[str, ...]:
        harmless = [given for given in self.subject.prompts if given.kind == "harmless"]
        each_once = {one.prompt: one for given in harmless for one in given.requests}
        chosen = drawn(tuple(each_once.values()), suite=self.options.suite, seed=self.options.seed)
        return tuple(one.prompt for one in chosen)

    @cached_property
    def _own(self) -> OwnAnswers:
        """What the model says with nothing on it: asked for once, and only if a condition is not measured yet."""
        respondent = plain_respondent(self.options, self.loaded)
        return quality.own_answers(respondent, self._harmless, batch_size=self.options.batch_size)

    def _answers(self, condition: Condition) -> AnswerQuality:
        options = self.options
        return quality.measure_answers(self._own, condition, batch_size=options.batch_size, seed=options.seed)


def scored(
    options: Options, subject: Subject, loaded: Loaded | None, bars: StageBars
) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
    """Scores on the field's tasks, and in sentences why some have none; a quick suite scores no guard and the guard."""
    if not options.tasks or not subject.english:
        return (), (NOT_ASKED if subject.english else NO_ENGLISH,)
    scoring = Scoring(
        folder=options.output,
        data=options.data,
        limit=QUICK_ROWS if options.suite == "quick" else None,
        seed=options.seed,
        of={
            "model": subject.model,
            **(loaded.identity if loaded else {"endpoint": options.endpoint}),
            "spec": subject.spec.digest if subject.spec else None,
            "dtype": options.dtype,
            "calibrated": digest_of_lesson(subject.calibrated) if subject.calibrated else None,
        },
    )
    found: list[TaskScore] = []
    sentences: list[str] = []
    for answering in _answering(options, subject, loaded):
        with bars(f"tasks: {answering.name}", len(TASKS)) as advance:
            found += scores.score(answering, scoring, on_task=partial(_advanced, advance))
        sentences += scores.left_out(answering, scoring)
    return tuple(found), tuple(dict.fromkeys(sentences))


def _advanced(advance: Advance, _: str) -> None:
    advance(1)


def _answering(options: Options, subject: Subject, loaded: Loaded | None) -> list[Answering]:
    if loaded is None:
        return [ScoredEndpoint(options.endpoint or "", subject.model, options.key, name=SERVED)]
    chosen = [one for one in loaded.conditions if options.suite == "full" or one.name in ENDS]
    return [ScoredModel(loaded.model, loaded.tokenizer, one, template=options.template) for one in chosen]


def _kept(stage: str, condition: Condition) -> str:
    """The name under which a stage's result for a condition is kept."""
    return f"{stage}-{''.join(letter if letter.isalnum() else '-' for letter in condition.name)}"
