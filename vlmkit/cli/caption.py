"""The command caption, and what it shares with ask; cli.py enters both in the command table."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

from vlmkit.cli.options import (
    AllowPrivate,
    ChatModelName,
    Errors,
    Images,
    Inputs,
    Json,
    Nul,
    OutputFile,
    Run,
    option,
    valid_utf8,
)
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, printable, progress, warn

if TYPE_CHECKING:
    from vlmkit.generate.questions import ChatSample, Conversation
    from vlmkit.io.records import Failed, Record
    from vlmkit.models.types import ChatModel, Sampling

ANSWER_TOKENS = 256
PAGE_TOKENS = 1024  # a page of text, or many boxes


class Length(StrEnum):
    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


def _number(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise VlmkitError("--temperature and --top-p must be finite", "give a number such as 0.7")
    return value


MaxTokens = Annotated[int | None, option("--max-tokens N", "End after N tokens, words or pieces of words.", min=1)]
Temperature = Annotated[
    float,
    option("--temperature T", "Choose words at random, the more the higher; 0: never.", min=0, callback=_number),
]
TopP = Annotated[
    float | None,
    option(
        "--top-p P",
        "With --temperature: only among the likeliest words, up to this probability together.",
        min=0,
        max=1,
        callback=_number,
    ),
]
Resume = Annotated[
    str | None,
    option("--resume FILE", "Append records to FILE, and leave out those that it holds."),
]
BaseUrl = Annotated[
    str | None,
    option(
        "--base-url URL",
        "Where the endpoint of -m openai:NAME is; without it $OPENAI_BASE_URL, else OpenAI's own.",
        callback=valid_utf8,
    ),
]
Options = Annotated[
    list[str] | None,
    option(
        "--option KEY=VALUE",
        "What an endpoint is told besides, such as detail=high; VALUE may be JSON; may be repeated.",
        callback=valid_utf8,
    ),
]


Prompt = Annotated[str, option("--prompt TEXT", "How each caption begins.", callback=valid_utf8)]
LengthOption = Annotated[Length, option("--length", "How much to say.", show_choices=True)]
Sidecar = Annotated[bool, option("--sidecar", "Also write photo.txt beside each picture that has none yet.")]
Force = Annotated[bool, option("--force", "With --sidecar: write over files that are there.")]
Boxes = Annotated[bool, option("--boxes", "Find every object, too: records with `boxes`.")]


def caption(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: ChatModelName = "mini",
    prompt: Prompt = "",
    length: LengthOption = Length.NORMAL,
    sidecar: Sidecar = False,
    force: Force = False,
    boxes: Boxes = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    base_url: BaseUrl = None,
    option: Options = None,
    images: Images = None,
    nul: Nul = False,
    allow_private: AllowPrivate = False,
    resume: Resume = None,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Say what is on pictures.

    One sentence fit for alt text, printed bare for one picture; for several, folders, shards and records, each record
    with its `caption` and `caption_model`. A picture may also come as bytes on standard input.
    """
    from vlmkit.generate.pipeline import caption as captioned
    from vlmkit.generate.pipeline import caption_sampling
    from vlmkit.generate.questions import to_caption
    from vlmkit.generate.sidecar import without_sidecar, write_sidecars
    from vlmkit.io.inputs import Reading, count_inputs

    named = inputs or []
    if force and not sidecar:
        raise VlmkitError("--force requires --sidecar", "add it, or leave out --force")
    check_files(named, output, errors, resume)
    sampling = sampling_of(run, temperature, top_p)
    reading = Reading(nul=nul, images=images, piped_picture=True)
    conversation = to_caption(named, reading)

    loaded = run.load_chat_model(model, base_url, option)
    how = caption_sampling(loaded, length.value, sampling, max_tokens)
    if boxes:
        check_able(loaded, "boxes")

    def results(items: "Iterable[ChatSample | Failed]", _: Output) -> "Iterator[Record | Failed]":
        found = captioned(
            without_sidecar(items) if sidecar and not force else items,
            loaded,
            how,
            length=length.value,
            start=prompt,
            boxes=sampling_of(run, temperature, top_p, PAGE_TOKENS) if boxes else None,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )
        return write_sidecars(found, force=force) if sidecar else found

    count = partial(count_inputs, named, reading)
    bare = conversation.single and not (json or boxes or resume)
    single_input = conversation.single or not (resume or sidecar)
    return deliver(
        run, conversation, results, "caption", count, output, errors, resume, bare=bare, single_input=single_input
    )


def check_files(inputs: list[str], output: str | None, errors: str | None, resume: str | None) -> None:
    from vlmkit.generate.resume import check_resume
    from vlmkit.io.inputs import check_outputs

    check_outputs(inputs, output, errors)
    if resume is not None:
        check_resume(resume, inputs, output, errors)


def check_able(model: "ChatModel", task: str) -> None:
    if task not in model.tasks:
        what = {"ocr": "reads no text in pictures", "boxes": "finds no boxes", "attention": "gives no attentions"}[task]
        raise VlmkitError(f"{model.identity} {what}", "name a model that does, such as Qwen/Qwen2.5-VL-3B-Instruct")


def sampling_of(run: Run, temperature: float, top_p: float | None, max_tokens: int | None = None) -> "Sampling":
    from vlmkit.models.types import Sampling

    if top_p is not None and not temperature:
        raise VlmkitError("--top-p chooses at random, which temperature 0 never does", "add --temperature 0.7")
    return Sampling(max_tokens or ANSWER_TOKENS, temperature, 1.0 if top_p is None else top_p, run.seed or 0)


def deliver(
    run: Run,
    conversation: "Conversation",
    results: "Callable[[Iterable[ChatSample | Failed], Output], Iterator[Record | Failed]]",
    field: str,
    count: Callable[[], int | None],
    output: str | None,
    errors: str | None,
    resume: str | None,
    *,
    bare: bool,
    single_input: bool,
) -> Exit:
    """Write what the model says: records, or `bare` the `field` alone. A failed `single_input` is fatal."""
    from vlmkit.generate.resume import AppendOutput

    with ExitStack() as files:
        failures = files.enter_context(Failures(errors, single_input=single_input))
        out = files.enter_context(Output(output) if resume is None else AppendOutput(resume))
        items = out.missing(conversation.items) if isinstance(out, AppendOutput) else conversation.items
        made = results(items, out)
        shown = failures.filter_failures(
            progress(made, quiet=run.quiet or conversation.single, unit="records", count=count)
        )
        if bare:
            for record in shown:
                out.write(printable(f"{record[field]}\n"))
                if record.get("valid") is False:
                    warn("the answer does not match the schema")
        else:
            out.write_records(shown)
        return failures.exit_code()
