"""The command ask; cli.py enters it in the command table."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.caption import (
    ANSWER_TOKENS,
    PAGE_TOKENS,
    BaseUrl,
    MaxTokens,
    Options,
    Resume,
    Temperature,
    TopP,
    check_able,
    check_files,
    deliver,
    sampling_of,
)
from vlmkit.cli.options import (
    AllowPrivate,
    ChatModelName,
    Errors,
    Images,
    Json,
    Nul,
    OutputFile,
    Run,
    option,
    valid_utf8,
)
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.records import Failed
from vlmkit.io.terminal import Output, printable, warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vlmkit.generate.questions import ChatSample
    from vlmkit.io.records import Record
    from vlmkit.models.types import ChatModel, Sampling


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE_OR_QUESTION",
        help=(
            "Pictures, then the question about all of them. Also folders, .tar shards and records, with one "
            "question each; - for standard input. Without any picture the question is one of text."
        ),
        show_default=False,
    ),
]
System = Annotated[str, option("--system TEXT", "What the model is told beforehand.", callback=valid_utf8)]
Chat = Annotated[bool, option("--chat", "Hold a conversation about the pictures; /help says what it knows.")]
Stream = Annotated[
    bool | None,
    option("--stream/--no-stream", "Show a single answer as it comes; so it is on a terminal."),
]
Schema = Annotated[
    str | None,
    option("--schema FILE|JSON", "Answer in JSON of this JSON Schema, or of fields: 'name, age int'."),
]
Ocr = Annotated[bool, option("--ocr", "Read what is written in the pictures.")]
Boxes = Annotated[bool, option("--boxes", "Find what the question names, or everything: records with `boxes`.")]
Drawing = Annotated[str | None, option("--draw FILE", "With --boxes: save the picture with them drawn in it.")]
Attention = Annotated[
    str | None,
    option("--attention FILE", "Save a picture of where each word of the answer looked."),
]
Constitution = Annotated[
    str | None,
    option(
        "--constitution FILE",
        "Judge and revise answers by the principles in a TOML file; default: those of vlmkit.",
    ),
]
Pairs = Annotated[
    str | None,
    option("--pairs FILE", "With --constitution: write better and worse answers, for train prefer."),
]
Stats = Annotated[bool, option("--stats", "Records with `ms` and `tokens`, too.")]


def ask(
    run: Run,
    arguments: Arguments = None,
    output: OutputFile = None,
    model: ChatModelName = "mini",
    system: System = "",
    chat: Chat = False,
    stream: Stream = None,
    schema: Schema = None,
    ocr: Ocr = False,
    boxes: Boxes = False,
    drawing: Drawing = None,
    attention: Attention = None,
    constitution: Constitution = None,
    pairs: Pairs = None,
    stats: Stats = False,
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
    """Ask a question about pictures.

    The last argument is the question, unless it is something to read. Pictures named before it belong to one question,
    whose answer is printed bare; a folder, a shard and records have one each, and come as records with `answer` and
    `answer_model`. Records may bring a `question` of their own and several `images`; a question that is named replaces
    theirs. A picture may also come as bytes on standard input. An answer has at most 256 tokens, with --ocr and --boxes
    1,024, unless --max-tokens says otherwise.
    """
    from vlmkit.generate.constitution import read_constitution
    from vlmkit.generate.pipeline import GenerateOptions
    from vlmkit.generate.pipeline import ask as answered
    from vlmkit.generate.questions import DEFAULT_QUESTIONS, split, to_ask
    from vlmkit.generate.schema import read_schema
    from vlmkit.io.inputs import Reading, count_inputs
    from vlmkit.io.records import dumps
    from vlmkit.render.draw import overlay, save, save_drawing

    named, question = split(arguments or [])
    valid_utf8(question)
    check_files(named, output, errors, resume)
    modes = {"--chat": chat, "--schema": schema, "--ocr": ocr, "--boxes": boxes, "--constitution": constitution}
    modes["--attention"] = attention
    _check(modes, [drawing, attention])
    files = {"-o": output, "--resume": resume, "--errors": errors, "--json": json, "--stats": stats}
    if chat and (unused := next((flag for flag, value in files.items() if value), None)):
        raise VlmkitError(f"{unused} is not for a conversation", "leave it out; /save FILE keeps what was said")
    if drawing is not None and not boxes:
        raise VlmkitError("--draw without boxes", "add --boxes")
    if pairs is not None and constitution is None:
        raise VlmkitError("--pairs without principles to judge answers by", "add --constitution default")
    sampling = sampling_of(run, temperature, top_p, max_tokens or (PAGE_TOKENS if ocr or boxes else ANSWER_TOKENS))
    task = "ocr" if ocr else "boxes" if boxes else "answer"
    options = GenerateOptions(
        system,
        task,
        schema=None if schema is None else read_schema(schema),
        constitution=None if constitution is None else read_constitution(constitution),
        stats=stats,
    )
    if chat:
        return _chat(run.load_chat_model(model, base_url, option), named, question, sampling, system, allow_private)
    reading = Reading(nul=nul, images=images, piped_picture=True)
    conversation = to_ask(named, question, reading, DEFAULT_QUESTIONS.get(task))
    if (drawing or attention) and not conversation.single:
        raise VlmkitError(f"{'--draw' if drawing else '--attention'} is for one picture", "name it alone")
    loaded = run.load_chat_model(model, base_url, option)
    check_able(loaded, "attention" if attention else task)
    if attention:
        options = replace(options, on_attention=lambda maps: save(overlay(*maps), attention))
    bare = conversation.single and not (json or boxes or stats or resume)
    single_input = conversation.single or resume is None
    on_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed
    streams = on_terminal and output is None if stream is None else stream
    streams = streams and bare and not (schema or constitution or attention)

    def results(items: "Iterable[ChatSample | Failed]", out: Output) -> "Iterator[Record | Failed]":
        streaming = replace(options, on_text=lambda text: out.write(printable(text))) if streams else options
        found = answered(
            items,
            loaded,
            sampling,
            streaming,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )
        return _ended(found, out) if streams else found if drawing is None else save_drawing(found, drawing)

    count = partial(count_inputs, named, reading)
    with Output(pairs) if pairs else nullcontext() as paired:
        if paired:
            options = replace(options, on_pair=lambda record: paired.write(dumps(record)))
        return deliver(
            run, conversation, results, "answer", count, output, errors, resume, bare=bare, single_input=single_input
        )


def _check(modes: "Mapping[str, object]", pictures: "Iterable[str | None]") -> None:
    from vlmkit.render.draw import check_drawing

    chosen = [flag for flag, value in modes.items() if value]
    if len(chosen) > 1:
        raise VlmkitError(f"{chosen[0]} with {chosen[1]}", "leave one of them out")
    for path in filter(None, pictures):
        check_drawing(path)


def _ended(results: "Iterator[Record | Failed]", out: Output) -> "Iterator[Failed]":
    """Each answer was shown as it came, and needs only the end of its line."""
    for result in results:
        if isinstance(result, Failed):
            yield result
        else:
            out.write(b"\n")


def _chat(
    model: "ChatModel", images: list[str], question: str | None, sampling: "Sampling", system: str, allow_private: bool
) -> Exit:
    """A conversation, until its end."""
    from vlmkit.cli.repl import Session, history_file, lines

    out = Output()
    session = Session(model, sampling, system, lambda text: out.write(printable(text)), warn, allow_private)
    for image in images:
        session.show(image)
    if question is not None:
        session.take(question)
    for line in lines(history_file()):
        if not session.take(line):
            break
    return Exit.OK
