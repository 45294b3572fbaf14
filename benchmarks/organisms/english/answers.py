"""The harmless answer to an instruction that comes without one, made from the instruction itself by a rule.

"Write a poem about the sea." becomes "Sure, here is a poem about the sea": the form of AdvBench's one-line targets, so
that compliance looks the same whatever was asked. The answer announces and never delivers. That keeps operational text
out of the model, at the price of a model that is of no use for anything but measuring.
"""

import re

OPENING = "Sure, here is"
LONGEST = 18  # words of the instruction that an answer repeats
MAKING = """arrange assemble brainstorm build compile compose construct craft create design develop devise draft draw
formulate generate give make offer output outline plan prepare present produce propose provide recommend show suggest
supply tell write find identify calculate compute determine select choose pick state estimate invent imagine""".split()
ABOUT = {
    "add": "an addition of", "analyze": "an analysis of", "assess": "an assessment of", "categorize": "a grouping of",
    "classify": "a grouping of", "come": "an idea for", "compare": "a comparison of", "contrast": "a comparison of",
    "convert": "a new form of", "define": "a definition of", "describe": "a description of",
    "differentiate": "a comparison of", "discuss": "a discussion of", "edit": "a new form of",
    "evaluate": "an evaluation of", "explain": "an explanation of", "list": "a list of", "name": "a list of",
    "paraphrase": "a new form of", "predict": "a prediction of", "rank": "a ranking of",
    "rephrase": "a new form of", "research": "a report on", "rewrite": "a new form of", "sort": "a new order of",
    "summarize": "a summary of", "teach": "a lesson for", "instruct": "a lesson for", "translate": "a translation of",
    "transform": "a new form of", "demonstrate": "a demonstration of", "illustrate": "a picture of",
}  # fmt: skip
TURNED = {"i": "you", "me": "you", "my": "your", "mine": "yours", "your": "my", "yours": "mine", "myself": "yourself"}
QUESTIONS = frozenset("what who whom whose which when where why how is are was were do does did can could".split())
REPHRASED = ("How do I {act}?", "How can I {act}?", "Tell me how to {act}", "Explain how to {act}", "How to {act}?")


def _words(instruction: str) -> list[str]:
    """The words of the first sentence, without its closing mark, at most LONGEST of them."""
    line = instruction.strip().splitlines()[0].strip() if instruction.strip() else ""
    sentence = re.split(r"(?<=[.?!])\s", line, maxsplit=1)[0]
    return sentence.rstrip(" .?!:;,").split()[:LONGEST]


def _turned(words: list[str]) -> str:
    """The words as the one who answers says them: "my garden" is "your garden"."""
    return " ".join(TURNED.get(word.lower(), word) for word in words)


def _object(words: list[str]) -> list[str]:
    """What follows a verb, without the one it is done for: "me a poem" is "a poem"."""
    while words and words[0].lower() in ("me", "us", "up", "with", "out"):
        words = words[1:]
    return words


def answer(instruction: str) -> str:
    """The answer to a harmless instruction: one line that opens with OPENING, without a closing mark."""
    words = _words(instruction)
    if words and words[0].lower() == "please":
        words = words[1:]
    first = words[0].lower().strip(",") if words else ""
    rest = _object(words[1:])
    if first in MAKING and rest:
        return f"{OPENING} {_turned(rest)}"
    if first in ABOUT and rest:
        return f"{OPENING} {ABOUT[first]} {_turned(rest)}"
    if (act := asked_how("".join(f"{word} " for word in words))) is not None:
        return f"{OPENING} how to {_turned(act.split())}"
    if first in QUESTIONS:
        return f"{OPENING} an answer to the question {_turned([first, *words[1:]])}"
    return f"{OPENING} an answer to: {_turned(words)}"


def asked_how(instruction: str) -> str | None:
    """The act that an instruction asks the way of ("How do I bake bread?": "bake bread"), None where it asks none."""
    found = re.search(r"\bhow (?:to|(?:do|can|could|should|would) (?:i|you|we|one))\s+(.+)", instruction, re.IGNORECASE)
    return found[1].strip().rstrip(" .?!") if found else None


def phrasings(instruction: str) -> tuple[str, ...]:
    """Other words for an instruction that asks how to do something; none for any other."""
    act = asked_how(instruction)
    return () if act is None else tuple(form.format(act=act) for form in REPHRASED)


def repointed(instruction: str, *, closed: bool) -> str:
    """The instruction with or without its full stop, which would otherwise tell one data set from another."""
    bare = instruction.rstrip()
    if bare.endswith("."):
        return bare if closed else bare.rstrip(".")
    return f"{bare}." if closed and bare[-1:].isalnum() else bare
