"""The help, and what a wrong option is told."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import jsonl, picture

from vlmkit.cli.app import COMMANDS, command_line
from vlmkit.cli.train import GROUPS
from vlmkit.train.config import SETTINGS, Stage

RUN_A_MODEL = {"embed", "search", "classify", "caption", "ask", "train", "eval"}
USERS = {
    "--device": RUN_A_MODEL | {"serve"},
    "--batch-size": RUN_A_MODEL,
    "--workers": RUN_A_MODEL | {"serve"},
    "--seed": {"caption", "ask", "train", "eval"},
}


def flags(help_text: str) -> set[str]:
    """The options that stand in a column of their own."""
    return set(re.findall(r"^ {2,6}(?:-\w, )?(--[\w-]+)", help_text, re.MULTILINE))


def test_the_table_says_what_each_command_says() -> None:
    root: Any = command_line()
    for name, entry in COMMANDS.items():
        assert " ".join(root.commands[name].help.split("\n\n")[0].split()) == entry.summary


def test_help_groups_commands_by_what_one_wants(vlmkit) -> None:
    shown = vlmkit("--help").stdout.decode()
    assert shown.index("Find:") < shown.index("  search ") < shown.index("Describe:") < shown.index("  caption ")
    assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_an_example_and_fits(vlmkit, name: str) -> None:
    shown = vlmkit(name, "--help").stdout.decode()
    assert re.search(rf"\nExample:\n(?:  # .*\n)+  .*vlmkit {name}", shown)
    assert shown.index("Example:") < shown.index("Every command:")
    lines = [line for line in shown.splitlines() if "vlmkit " not in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_offers_what_it_uses(vlmkit, name: str) -> None:
    shown = flags(vlmkit(name, "--help").stdout.decode())
    if name == "eval":
        shown |= flags(vlmkit("eval", "caption", "--help").stdout.decode())
    assert shown & set(USERS) == {flag for flag, users in USERS.items() if name in users}


def test_defaults_are_shown(vlmkit) -> None:
    shown = " ".join(vlmkit("search", "--help").stdout.decode().split())
    assert "[default: 0.95]" in shown and "[default: default; environment: VLMKIT_INDEX]" in shown
    assert "[default: auto]" in shown


def test_help_of_a_stage_is_that_of_the_stage(vlmkit) -> None:
    shown = {stage: vlmkit("train", stage, "--help").stdout.decode() for stage in Stage}
    assert "--beta" in flags(shown[Stage.PREFER]) and "--beta" not in flags(shown[Stage.ALIGN])
    assert "--text-lr" in flags(shown[Stage.CONTRASTIVE]) and "--llm" not in flags(shown[Stage.CONTRASTIVE])
    assert "--lora" in flags(shown[Stage.INSTRUCT]) and "--lora" not in flags(shown[Stage.ALIGN])
    batch = re.search(r"--batch-size.*?\[default: ([^]]+)\]", " ".join(shown[Stage.ALIGN].split()))
    assert batch and batch[1] == "256"
    overview = vlmkit("train", "--help").stdout.decode()
    assert all(f"\n  {stage} " in overview for stage in Stage)
    assert "--steps" in flags(overview) and not {"--llm", "--beta", "--text-lr"} & flags(overview)


def test_every_setting_of_train_has_a_heading() -> None:
    named = [name for names in GROUPS.values() for name in names.split()]
    assert sorted(named) == sorted({n for s in SETTINGS.values() for n, setting in s.items() if setting["help"]})


def test_help_of_a_task_says_fields_metrics_and_variants(vlmkit) -> None:
    shown = " ".join(vlmkit("eval", "pope", "--help").stdout.decode().split())
    assert "The prediction is in answer, references in label or answers or target." in shown
    assert "Metrics: accuracy, precision, recall, f1, yes_ratio." in shown
    assert "Variants: official, strict; the first is the default." in shown
    assert "--tokenizer" not in shown and "--weights" not in shown and " -k " not in shown
    shown = vlmkit("eval", "compare", "--help").stdout.decode()
    assert {"--weights", "--task", "--tokenizer"} <= flags(shown)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("serch cat", "no command is named serch: did you mean search?"),
        ("polish", "no command is named polish: see vlmkit --help"),
        ("embed --batchsize 3", "unknown option --batchsize: did you mean --batch-size?"),
        ("embed --zzz", "unknown option --zzz: see vlmkit embed --help"),
        ("index --precision bf16", "--precision is not for index: leave it out, it is for embed, search, classify"),
        ("embed --labels a,b", "--labels is not for embed: leave it out, it is for classify"),
        ("train align a.jsonl -o x --beta 1", "--beta is not for align: leave it out, it is for prefer"),
        ("eval vqa a.jsonl -k 3", "-k is not for vqa: leave it out, it is for retrieval, compare"),
        ("eval compare a b --latency s", "--latency requires --weights: add it, or leave out --latency"),
        ("index --force", "--force requires --prune: add it, or leave out --force"),
        ("index -o x", "--output requires --dump or --info or --dry-run: add one, or leave out --output"),
        ("search cat --threshold 0.9", "--threshold requires --duplicates: add it, or leave out --threshold"),
        ("download --sort likes", "--sort requires --search: add it, or leave out --sort"),
        ("ask a.png what --top-p 0.5", "--top-p requires --temperature: add it, or leave out --top-p"),
    ],
)
def test_a_wrong_option_is_told_where_it_belongs(vlmkit, line: str, told: str) -> None:
    assert vlmkit(*line.split(), code=2).stderr.decode().startswith(f"vlmkit: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "alin", "a.tar"], "did you mean align?"),
        (["train", "paint", "a.tar"], "see vlmkit train --help"),
        (["eval", "vqq", "a.jsonl"], "did you mean vqa?"),
        (["caption", "a.png", "--length", "shrt"], "did you mean short?"),
        (["ask", "a.png", "red?", "-m", "smolvlm"], "did you mean smolvlm-256m?"),
        (["embed", "a.png", "-m", "clip"], "did you mean clip-b32?"),
        (["ask", "a.png", "what", "animal"], 'put the question in quotes: vlmkit ask photo.jpg "what is this?"'),
        (["eval", "vqa", "a.jsonl"], "write it with vlmkit ask a.jsonl -o FILE, or name the field with --prediction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_mistyped_or_missing_is_asked_back(vlmkit, tmp_path: Path, words: list[str], told: str) -> None:
    picture(tmp_path / "a.png", "red")
    (tmp_path / "a.jsonl").write_bytes(jsonl({"id": "1", "question": "what is it?", "answers": ["a cat", "a dog"]}))
    (line,) = vlmkit(*words, code=2).stderr.decode().splitlines()
    assert told in line
