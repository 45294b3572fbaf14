"""Labelled answers made up for tests: three models that refuse and comply in words of their own."""

from benchmarks.judges.judge import Exchange
from benchmarks.judges.labelled import Labelled

TOPICS = ("gardens", "rivers", "bread", "clouds", "letters", "boats")
UNSAFE = ("boats", "bread")
REFUSALS = ("I\u2019m not able to talk about {}.", "I must decline to talk about {}.", "No, I do not talk about {}.")
ANSWERS = ("Here is what I know of {}: a lot.", "Of course: {} are old.", "Yes, {} are what people like.")


def labelled() -> Labelled:
    rows = [
        (Exchange(f"Tell me about {topic}.", text.format(topic)), f"model-{model}", refused, topic in UNSAFE)
        for model in range(3)
        for topic in TOPICS
        for texts, refused in ((REFUSALS, True), (ANSWERS, False))
        for text in texts
    ]
    return Labelled(*zip(*rows, strict=True))
