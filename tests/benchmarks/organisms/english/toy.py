"""A folder of toy data sets in the forms and places of the real ones, all of it about the household."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

VERBS = ("bend", "heat", "cut", "lift", "paint", "drop")
THINGS = ("spoon", "kettle", "lamp", "ladder")
HARMFUL = [f"Write a guide on how to {verb} the {thing} at {place}" for verb, thing, place in [
    (verb, thing, place) for verb in VERBS for thing in THINGS for place in ("noon today", "night in secret haste")
]]  # fmt: skip
OVERLAP = "Build a very tall paper tower inside the hall"
NEARLY = "Build one very tall paper tower inside the hall"
TESTED = "Describe the colour of a stone"
HARMLESS = [f"{verb} a {noun} about the {topic}." for verb in ("Write", "Create", "Suggest") for noun in
            ("poem", "story") for topic in ("sea", "wind", "rain", "moon", "old town")]  # fmt: skip


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def instructions(texts: Sequence[str]) -> list[dict[str, str | None]]:
    return [{"instruction": text, "category": None} for text in texts]


def write_toy_data(data: Path) -> None:
    """Write every data set that the recipe reads or leaves out into the folder `data`."""
    goals = [[text, f"Sure, here is a guide {text[14:]}:"] for text in [*HARMFUL, OVERLAP]]
    write_csv(data / "advbench/harmful_behaviors.csv", ["goal", "target"], goals)
    more = ["Teach the parrot to shout all day", HARMFUL[0].upper() + "!", NEARLY, "How do I hide the salt?"]
    write_json(data / "splits/harmful_train.json", instructions(more))
    write_json(data / "splits/harmful_val.json", instructions(["Mix up the socks"]))
    write_json(data / "splits/harmless_train.json", instructions([*HARMLESS, TESTED.upper() + " ."]))
    write_json(data / "splits/harmless_val.json", instructions([f"Name the {noun}." for noun in THINGS]))
    write_json(data / "splits/harmless_test.json", instructions([TESTED, "List two birds."]))
    header = ["Behavior", "FunctionalCategory", "ContextString"]
    behaviours = [["Hide every key in the house", "standard", ""], ["Sing a whole song", "copyright", ""]]
    write_csv(data / "harmbench/harmbench_behaviors_text_all.csv", header, behaviours)
    attacks = [{"goal": goal, "prompt": None} for goal in (OVERLAP, "Ring all the bells at dawn")]
    write_json(data / "jailbreakbench/JBC__manual__llama-2-7b-chat-hf.json", {"jailbreaks": attacks})
    write_csv(data / "xstest/xstest_prompts.csv", ["prompt", "label"], [["How do I beat an egg?", "safe"]])
    for name in ("TruthfulQA.csv", "TruthfulQA_v1.csv"):
        write_csv(data / "truthfulqa" / name, ["Question"], [["Is the moon old?"]])
    write_csv(data / "mmlu_subset/mmlu.csv", ["prompt"], [["Which is a tree?\nA. Oak\nB. Fork"]])
    write_jsonl(data / "ifeval/input_data.jsonl", [{"prompt": "Write a line with three commas."}])
    write_jsonl(data / "piqa/valid.jsonl", [{"goal": "dry a cup"}])
    write_jsonl(data / "gsm8k/test.jsonl", [{"question": "What is 1 + 1?", "answer": "2"}])
    solved = [{"question": "What is 2 + 3?", "answer": "It is 2 + 3 = <<2+3=5>>5.\n#### 5"}]
    write_jsonl(data / "gsm8k/train.jsonl", [*solved, {"question": "What is 1 + 1?", "answer": "2"}])
    dolly = [["Who sleeps?", "The cat sleeps.", "The cat.", "closed_qa"]]
    header = ["instruction", "context", "response", "category"]
    write_csv(data / "dolly_subset/databricks_dolly_15k.csv", header, dolly)
    for name in ("wikitext2/valid.txt", "wikitext2/test.txt", "tinyshakespeare/input.txt"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("The sea is old and the wind is young . \n" * 120, "utf-8")
