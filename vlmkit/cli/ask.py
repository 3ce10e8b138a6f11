"""The command ask."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from vlmkit.cli.defaults import is_default
from vlmkit.cli.generate import ANSWER_TOKENS, PAGE_TOKENS, ChatOptions, Delivery, Resume, check_files, tell_caution
from vlmkit.cli.options import Records, Run, option, valid_utf8
from vlmkit.cli.screen import for_person
from vlmkit.cli.shards import ShardOptions, each_shard
from vlmkit.errors import Exit, VlmkitError, check_installed
from vlmkit.io.executor import Lazy
from vlmkit.io.records import Failed
from vlmkit.io.shards import expand_shards
from vlmkit.io.terminal import Failures, Output, printable, warn

if TYPE_CHECKING:
    from vlmkit.generate.pipeline import GenerateOptions
    from vlmkit.generate.questions import ChatSample, Conversation
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
Text = str | None
FRAMES = 8  # of a film that is asked about
ANSWERS = "Answers"
Chat = Annotated[
    bool, option("--chat", "Hold a conversation about the pictures; /help says what it knows.", group=ANSWERS)
]
SCHEMA_HELP = "Answer in JSON of this JSON Schema, or of fields: 'name, age int'."
CONSTITUTION_HELP = "Judge and revise answers by the principles in a TOML file; default: those of vlmkit."
QUESTIONS_HELP = "Ask each line of FILE, or `question` of its JSON lines; the pictures are opened once."
OCR_HELP = "Read what is written in the pictures, with rapidocr unless -m names a model; with --boxes also where."
PAIRS_HELP = "With --constitution: write better and worse answers, for train prefer."


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How a question is answered."""

    title: ClassVar[str] = ANSWERS
    system: Annotated[
        str, option("--system TEXT", "Instructions to the model, before the question.", callback=valid_utf8)
    ] = ""
    stream: Annotated[
        bool | None, option("--stream/--no-stream", "Show a single answer as it comes; so it is on a terminal.")
    ] = None
    schema: Annotated[Text, option("--schema FILE|JSON", SCHEMA_HELP)] = None
    ocr: Annotated[
        bool,
        option(
            "--ocr", "Read what is written in the pictures, with rapidocr unless a model is named; --boxes: and where."
        ),
    ] = False
    raw: Annotated[bool, option("--raw", "Continue the text as it stands, without a chat template.")] = False
    boxes: Annotated[bool, option("--boxes", "Find what the question names, or everything: records with `boxes`.")] = (
        False
    )
    drawing: Annotated[Text, option("--draw FILE", "Save the picture with the boxes drawn in it.", needs=["boxes"])] = (
        None
    )
    attention: Annotated[
        Text, option("--attention FILE", "Save a picture of where each word of the answer looked.")
    ] = None
    constitution: Annotated[Text, option("--constitution FILE", CONSTITUTION_HELP)] = None
    pairs: Annotated[Text, option("--pairs FILE", PAIRS_HELP, needs=["constitution"])] = None
    questions: Annotated[Text, option("--questions FILE", QUESTIONS_HELP)] = None
    each: Annotated[bool, option("--each", "Of a document or film one answer a page or frame, not one about all.")] = (
        False
    )
    always: Annotated[
        bool, option("--always", "On a terminal: a single answer even if the model, such as mini, is not sure.")
    ] = False

    @property
    def task(self) -> str:
        if self.ocr:
            return "ocr-boxes" if self.boxes else "ocr"
        return "boxes" if self.boxes else "raw" if self.raw else "answer"

    def generate_options(self, stats: bool) -> "GenerateOptions":
        from vlmkit.generate.constitution import read_constitution
        from vlmkit.generate.pipeline import GenerateOptions
        from vlmkit.generate.schema import read_schema

        return GenerateOptions(
            self.system,
            self.task,
            schema=None if self.schema is None else read_schema(self.schema),
            constitution=None if self.constitution is None else read_constitution(self.constitution),
            stats=stats,
            on_attention=partial(_save_attention, self.attention) if self.attention else None,
        )


def ask(
    ctx: typer.Context,
    run: Run,
    chat_model: ChatOptions,
    answer: AnswerOptions,
    records: Records,
    shards: ShardOptions,
    arguments: Arguments = None,
    chat: Chat = False,
    resume: Resume = None,
) -> Exit:
    """Ask a question about pictures.

    The last argument is the question, unless it is something to read: a file or folder that is there, a URL, -, or what
    ends like the name of a picture, a film, a document or records, or in /, and then has to be there. Pictures named
    before it belong to one question, whose answer is printed alone; a folder, a shard and records have one each, and
    come as records with `answer` and `answer_model`. A PDF document or a film is one question over all of its pages
    or frames, up to what the model takes; --each asks about each. Records may bring a `question` of their own and
    several `images`; a question that is named replaces theirs. In a question <image> is the place of a picture. A
    picture may also come as bytes on standard input. An answer has at most 256 tokens, with --ocr and --boxes
    1,024, unless --max-tokens says otherwise.
    """
    from vlmkit.generate.question_list import read_questions
    from vlmkit.generate.questions import DEFAULT_QUESTIONS, split, to_ask
    from vlmkit.io.records import dumps
    from vlmkit.models.resolve import OCR

    named, question = split(arguments or [])
    valid_utf8(question)
    if answer.questions and question is not None:
        raise VlmkitError("--questions excludes a question on the command line", f"add {question!r} to its file")
    further: list[str] = []
    if answer.questions:
        question, *further = read_questions(answer.questions)
    shards.check(
        records,
        resume=resume,
        chat=chat,
        format=chat_model.form,
        draw=answer.drawing,
        attention=answer.attention,
        pairs=answer.pairs,
    )
    check_files(named, records, resume)
    form = chat_model.written_as(records, resume)
    _check(chat, answer, records, resume, chat_model.stats)
    sampling = chat_model.sampling(ANSWER_TOKENS if answer.task in ("answer", "raw") else PAGE_TOKENS)
    options = answer.generate_options(chat_model.stats)
    if answer.ocr and is_default(ctx, "model"):
        chat_model = replace(chat_model, model=OCR)
        options = replace(options, known_text=not answer.boxes)
    if chat:
        model = chat_model.load(run)
        return _chat(run, model, named, question, sampling, answer, records.allow_private)
    asked = {"system": answer.system} if answer.system else {}
    paired = Output(answer.pairs) if answer.pairs else None
    if paired:
        options = replace(options, on_pair=lambda record: paired.write(dumps(record)))
    load = Lazy(chat_model.load, run, "attention" if answer.attention else answer.task)
    how = {"batch_size": run.batch_size, "workers": run.threads, "allow_private": records.allow_private}

    each = answer.each or answer.boxes

    def work(records: Records, named: list[str], in_shards: bool = False) -> Failures:
        reading = records.reading(piped_picture=True)
        if not each:
            reading = replace(reading, choice=reading.choice.for_question(FRAMES))
        conversation = to_ask(named, question, reading, DEFAULT_QUESTIONS.get(answer.task), each=each, further=further)
        model = _fitting(load, conversation, answer, question)
        settled = model, sampling.max_tokens, resume, asked, form, in_shards
        delivery = Delivery(run, records, named, reading, conversation, *settled)
        plain = delivery.is_plain(answer.boxes or chat_model.stats)
        hides = plain and delivery.on_terminal and not (answer.always or answer.schema)
        unsure_below = model.unsure_below if hides else 0.0
        streams = (delivery.on_terminal if answer.stream is None else answer.stream) and plain
        streams = streams and not (answer.schema or answer.constitution or answer.attention or unsure_below)

        def results(items: "Iterable[ChatSample | Failed]", out: Output) -> "Iterator[Record | Failed]":
            found = _answers(items, model, sampling, options, how, out if streams else None, answer.drawing)
            return tell_blank(found) if answer.ocr and not run.quiet else found

        single_input = not in_shards and (conversation.single or resume is None)
        shown = partial(delivery.write, plain=plain, single_input=single_input, schema=options.schema)
        return shown("answer", results, unsure_below=unsure_below)

    with paired or nullcontext():
        if shards.out_dir is None:
            return work(records, named).exit_code()

        def settings() -> dict[str, Any]:
            made = {"command": "ask", "model": load().identity, "question": question, "task": answer.task, **asked}
            return made | {"schema": options.schema, "constitution": answer.constitution, **asdict(sampling)}

        several = expand_shards(named)
        return each_shard(run, records, shards, several, ".jsonl", settings, partial(work, in_shards=True))


def _fitting(
    load: "Callable[[], ChatModel]", conversation: "Conversation", answer: AnswerOptions, question: str | None
) -> "ChatModel":
    """The model. Raises VlmkitError where the conversation does not suit it, or what is to be saved."""
    from vlmkit.io.records import name_of
    from vlmkit.models.resolve import better_chat_model

    if (answer.drawing or answer.attention) and not conversation.single:
        flag = "--draw" if answer.drawing else "--attention"
        raise VlmkitError(f"{flag} requires a single picture", "name only that one")
    model = load()
    if conversation.text_only and model.needs_picture:
        what = f"{name_of(model.identity)} answers questions about pictures, and this one has none"
        raise VlmkitError(what, f"name a picture, or ask a model that needs none: {better_chat_model()}")
    if question is not None and not conversation.text_only and "answer" not in model.tasks:
        what = f"{name_of(model.identity)} reads what is written and answers no questions"
        raise VlmkitError(what, "leave the question out, or name a model that answers with -m")
    return model


def _check(chat: bool, answer: AnswerOptions, records: Records, resume: str | None, stats: bool) -> None:
    """Raise VlmkitError for flags that exclude each other, and for a drawing that cannot be saved."""
    from vlmkit.render.draw import check_drawing

    modes = {"--chat": chat, "--questions": chat and answer.questions, "--schema": answer.schema}
    modes |= {"--ocr": answer.ocr, "--boxes": answer.boxes}
    modes |= {"--raw": answer.raw}
    modes |= {"--constitution": answer.constitution, "--attention": answer.attention}
    chosen = [flag for flag, value in modes.items() if value and not (flag == "--boxes" and answer.ocr)]
    if len(chosen) > 1:
        raise VlmkitError(f"{chosen[0]} excludes {chosen[1]}", "leave one of them out")
    for path in filter(None, (answer.drawing, answer.attention)):
        check_drawing(path)
    if answer.attention:
        check_installed("--attention", "vlmkit[attention]", "matplotlib")
    files = {"-o": records.output, "--resume": resume, "--errors": records.errors, "--json": records.json}
    unused = next((flag for flag, value in (files | {"--stats": stats}).items() if value), None)
    if chat and unused:
        raise VlmkitError(f"{unused} cannot be combined with --chat", "leave it out; /save FILE saves the conversation")


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


def _ended(results: "Iterator[Record | Failed]", out: Output) -> "Iterator[Record | Failed]":
    """Each answer was shown as it came, and needs only the end of its line."""
    for result in results:
        if not isinstance(result, Failed):
            out.write(b"\n")
            result.pop("answer")
        yield result


def _chat(
    run: Run,
    model: "ChatModel",
    images: list[str],
    question: str | None,
    sampling: "Sampling",
    answer: AnswerOptions,
    allow_private: bool,
) -> Exit:
    """A conversation, until its end."""
    from vlmkit.cli.repl import Session, history_file, lines

    out = Output()
    session = Session(model, sampling, answer.system, lambda text: out.write(printable(text)), warn, allow_private)
    if for_person(None):
        session.unsure_below = 0.0 if answer.always else model.unsure_below
        tell_caution(model, run)
    for image in images:
        session.show(image)
    if question is not None:
        session.take(question)
    for line in lines(history_file()):
        if not session.take(line):
            break
    return Exit.OK


def tell_blank(results: "Iterable[Record | Failed]") -> "Iterator[Record | Failed]":
    """`results`, and at the end how many have no text, which is an answer, too."""
    count = blank = 0
    for result in results:
        count += not isinstance(result, Failed)
        blank += not isinstance(result, Failed) and not result.get("ocr")
        yield result
    if blank:
        warn(
            "nothing is written in the picture" if count == 1 else f"nothing is written in {blank} of {count} pictures"
        )
