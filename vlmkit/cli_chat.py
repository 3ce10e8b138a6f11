"""The commands caption and ask; cli.py enters them in the command table."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.errors import Exit, VlmkitError
from vlmkit.options import AllowPrivate, ChatModel, Errors, Images, Inputs, Json, Nul, OutputFile, Run, valid_utf8
from vlmkit.streams import Failures, Output, progress

if TYPE_CHECKING:
    from vlmkit.models.chat import Sampling, Talker
    from vlmkit.questions import Asked, Conversation
    from vlmkit.records import Failed, Record

ANSWER_TOKENS = 256


class Length(StrEnum):
    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


def _number(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise VlmkitError(f"{value} is no number to choose words by", "give a number such as 0.7")
    return value


MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, metavar="N", help="End after N tokens, words or pieces of words.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        min=0,
        metavar="T",
        callback=_number,
        help="Choose words at random, the more the higher; 0: never.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0,
        max=1,
        metavar="P",
        callback=_number,
        help="With --temperature: only among the likeliest words, up to this probability together.",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="FILE", help="Append records to FILE, and leave out those that it holds."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        callback=valid_utf8,
        help="Where the endpoint of -m openai:NAME is; without it $OPENAI_BASE_URL, else OpenAI's own.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        callback=valid_utf8,
        help="What an endpoint is told besides, such as detail=high; VALUE may be JSON; may be repeated.",
    ),
]


def caption(
    run: Run,
    inputs: Inputs = None,
    output: OutputFile = None,
    model: ChatModel = "mini",
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", callback=valid_utf8, help="How each caption begins.")
    ] = "",
    length: Annotated[Length, typer.Option("--length", show_choices=True, help="How much to say.")] = Length.NORMAL,
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
    from vlmkit.generate import caption as captioned
    from vlmkit.generate import caption_sampling
    from vlmkit.inputs import Reading, count_inputs
    from vlmkit.questions import to_caption

    named = inputs or []
    _check(named, output, errors, resume)
    sampling = _sampling(run, temperature, top_p)
    reading = Reading(nul=nul, images=images, piped_picture=True)
    conversation = to_caption(named, reading)

    def results(items: "Iterable[Asked | Failed]", talker: "Talker") -> "Iterator[Record | Failed]":
        how = caption_sampling(talker.model, length.value, sampling, max_tokens)
        return captioned(
            items,
            talker,
            how,
            length=length.value,
            start=prompt,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )

    count = partial(count_inputs, named, reading)
    talker = run.load_talker(model, base_url, option)
    return _deliver(run, conversation, talker, results, "caption", count, output, errors, resume, json)


def ask(
    run: Run,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE_OR_QUESTION",
            help=(
                "Pictures, then the question about all of them. Also folders, .tar shards and records, with one "
                "question each; - for standard input. Without any picture the question is one of text."
            ),
            show_default=False,
        ),
    ] = None,
    output: OutputFile = None,
    model: ChatModel = "mini",
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", callback=valid_utf8, help="What the model is told beforehand.")
    ] = "",
    max_tokens: MaxTokens = ANSWER_TOKENS,
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
    """Ask a question about pictures.

    The last argument is the question, unless it is something to read. Pictures named before it belong to one question,
    whose answer is printed bare; a folder, a shard and records have one each, and come as records with `answer` and
    `answer_model`. Records may bring a `question` of their own and several `images`; a question that is named replaces
    theirs. A picture may also come as bytes on standard input.
    """
    from vlmkit.generate import ask as answered
    from vlmkit.inputs import Reading, count_inputs
    from vlmkit.questions import split, to_ask

    named, question = split(arguments or [])
    valid_utf8(question)
    _check(named, output, errors, resume)
    sampling = _sampling(run, temperature, top_p, max_tokens)
    reading = Reading(nul=nul, images=images, piped_picture=True)
    conversation = to_ask(named, question, reading)

    def results(items: "Iterable[Asked | Failed]", talker: "Talker") -> "Iterator[Record | Failed]":
        return answered(
            items,
            talker,
            sampling,
            system=system,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )

    count = partial(count_inputs, named, reading)
    talker = run.load_talker(model, base_url, option)
    return _deliver(run, conversation, talker, results, "answer", count, output, errors, resume, json)


def _check(inputs: list[str], output: str | None, errors: str | None, resume: str | None) -> None:
    from vlmkit.inputs import check_outputs
    from vlmkit.resume import check_resume

    check_outputs(inputs, output, errors)
    if resume is not None:
        check_resume(resume, inputs, output, errors)


def _sampling(run: Run, temperature: float, top_p: float | None, max_tokens: int | None = None) -> "Sampling":
    from vlmkit.models.chat import Sampling

    if top_p is not None and not temperature:
        raise VlmkitError("--top-p chooses at random, which temperature 0 never does", "add --temperature 0.7")
    return Sampling(max_tokens or ANSWER_TOKENS, temperature, 1.0 if top_p is None else top_p, run.seed or 0)


def _deliver(
    run: Run,
    conversation: "Conversation",
    talker: "Talker",
    results: "Callable[[Iterable[Asked | Failed], Talker], Iterator[Record | Failed]]",
    field: str,
    count: Callable[[], int | None],
    output: str | None,
    errors: str | None,
    resume: str | None,
    json: bool,
) -> Exit:
    """Write what the model says: `field` alone for a single answer, else records."""
    from vlmkit.resume import Resumed

    with ExitStack() as files:
        failures = files.enter_context(Failures(errors))
        out = files.enter_context(Output(output) if resume is None else Resumed(resume))
        items = out.missing(conversation.items) if isinstance(out, Resumed) else conversation.items
        made = results(items, talker)
        shown = failures.sift(progress(made, quiet=run.quiet or conversation.single, unit="records", count=count))
        if conversation.single and not json and resume is None:
            for record in shown:
                out.write(f"{record[field]}\n".encode())
        else:
            out.write_records(shown)
        return failures.verdict()
