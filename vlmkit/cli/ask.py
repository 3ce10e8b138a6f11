"""The command ask."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.generate import ANSWER_TOKENS, PAGE_TOKENS, ChatOptions, Resume, check_files, deliver
from vlmkit.cli.options import Records, Run, option, valid_utf8
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.records import Failed
from vlmkit.io.terminal import Output, printable, warn

if TYPE_CHECKING:
    from vlmkit.generate.pipeline import GenerateOptions
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
    chat_options: ChatOptions,
    records: Records,
    arguments: Arguments = None,
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
    resume: Resume = None,
) -> Exit:
    """Ask a question about pictures.

    The last argument is the question, unless it is something to read. Pictures named before it belong to one question,
    whose answer is printed bare; a folder, a shard and records have one each, and come as records with `answer` and
    `answer_model`. Records may bring a `question` of their own and several `images`; a question that is named replaces
    theirs. A picture may also come as bytes on standard input. An answer has at most 256 tokens, with --ocr and --boxes
    1,024, unless --max-tokens says otherwise.
    """
    from vlmkit.generate.questions import DEFAULT_QUESTIONS, split, to_ask
    from vlmkit.io.inputs import Reading, count_inputs
    from vlmkit.io.records import dumps

    named, question = split(arguments or [])
    valid_utf8(question)
    check_files(named, records, resume)
    modes: dict[str, Any] = {
        "--chat": chat,
        "--schema": schema,
        "--ocr": ocr,
        "--boxes": boxes,
        "--constitution": constitution,
    }
    _check(modes | {"--attention": attention, "--draw": drawing, "--pairs": pairs}, records, resume, stats)
    task = "ocr" if ocr else "boxes" if boxes else "answer"
    sampling = chat_options.sampling(run, ANSWER_TOKENS if task == "answer" else PAGE_TOKENS)
    options = _options(system, task, schema, constitution, stats)
    if chat:
        model = run.load_chat_model(chat_options.model, chat_options.base_url, chat_options.option)
        return _chat(model, named, question, sampling, system, records.allow_private)
    reading = Reading(nul=records.nul, images=records.images, piped_picture=True)
    conversation = to_ask(named, question, reading, DEFAULT_QUESTIONS.get(task))
    if (drawing or attention) and not conversation.single:
        raise VlmkitError(f"{'--draw' if drawing else '--attention'} is for one picture", "name it alone")
    model = chat_options.load(run, "attention" if attention else task)
    bare = conversation.single and not (records.json or boxes or stats or resume)
    on_terminal = bool(sys.stdout and sys.stdout.isatty()) and records.output is None
    streams = (on_terminal if stream is None else stream) and bare and not (schema or constitution or attention)

    def results(items: "Iterable[ChatSample | Failed]", out: Output) -> "Iterator[Record | Failed]":
        how = {"batch_size": run.batch_size, "workers": run.threads, "allow_private": records.allow_private}
        return _answers(items, model, sampling, options, how, out if streams else None, drawing)

    with Output(pairs) if pairs else nullcontext() as paired:
        if paired:
            options = replace(options, on_pair=lambda record: paired.write(dumps(record)))
        if attention:
            options = replace(options, on_attention=partial(_save_attention, attention))
        single_input = conversation.single or resume is None
        count = partial(count_inputs, named, reading)
        return deliver(
            run, records, conversation, results, "answer", count, resume, bare=bare, single_input=single_input
        )


def _check(flags: dict[str, Any], records: Records, resume: str | None, stats: bool) -> None:
    """Raise VlmkitError for flags that do not go together, and for a drawing that cannot be saved."""
    from vlmkit.render.draw import check_drawing

    drawing, pairs = flags.pop("--draw"), flags.pop("--pairs")
    chosen = [flag for flag, value in flags.items() if value]
    if len(chosen) > 1:
        raise VlmkitError(f"{chosen[0]} with {chosen[1]}", "leave one of them out")
    for path in filter(None, (drawing, flags["--attention"])):
        check_drawing(str(path))
    files = {"-o": records.output, "--resume": resume, "--errors": records.errors, "--json": records.json}
    unused = next((flag for flag, value in (files | {"--stats": stats}).items() if value), None)
    if flags["--chat"] and unused:
        raise VlmkitError(f"{unused} is not for a conversation", "leave it out; /save FILE keeps what was said")
    if drawing is not None and not flags["--boxes"]:
        raise VlmkitError("--draw without boxes", "add --boxes")
    if pairs is not None and flags["--constitution"] is None:
        raise VlmkitError("--pairs without principles to judge answers by", "add --constitution default")


def _options(system: str, task: str, schema: str | None, constitution: str | None, stats: bool) -> "GenerateOptions":
    from vlmkit.generate.constitution import read_constitution
    from vlmkit.generate.pipeline import GenerateOptions
    from vlmkit.generate.schema import read_schema

    principles = None if constitution is None else read_constitution(constitution)
    form = None if schema is None else read_schema(schema)
    return GenerateOptions(system, task, schema=form, constitution=principles, stats=stats)


def _answers(
    items: "Iterable[ChatSample | Failed]",
    model: "ChatModel",
    sampling: "Sampling",
    options: "GenerateOptions",
    how: dict[str, Any],
    shown: Output | None,
    drawing: str | None,
) -> "Iterator[Record | Failed]":
    """The answers; each piece goes to `shown` as it comes, the boxes into the picture `drawing`."""
    from vlmkit.generate.pipeline import ask as answered
    from vlmkit.render.draw import save_drawing

    if shown is not None:
        streaming = replace(options, on_text=lambda text: shown.write(printable(text)))
        return _ended(answered(items, model, sampling, streaming, **how), shown)
    found = answered(items, model, sampling, options, **how)
    return found if drawing is None else save_drawing(found, drawing)


def _save_attention(file: str, maps: Any) -> None:
    from vlmkit.render.draw import overlay, save

    save(overlay(*maps), file)


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
