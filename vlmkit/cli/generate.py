"""Shared by caption and ask: the options of a chat model, and how its answers are written."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from vlmkit.cli.options import FILES, MODEL, ChatModelName, Records, Run, Seed, option, valid_utf8
from vlmkit.cli.screen import Name, Rows, for_person, heading, name_width, paragraphs, write
from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import (
    Failures,
    Output,
    printable,
    progress,
    stderr_is_terminal,
    tell_dimly,
    warn,
)

if TYPE_CHECKING:
    from vlmkit.generate.questions import ChatSample, Conversation
    from vlmkit.io.inputs import Reading
    from vlmkit.io.records import Failed, Record
    from vlmkit.models.types import ChatModel, EndpointOptions, Sampling

ANSWER_TOKENS = 256
PAGE_TOKENS = 1024  # a page of text, or many boxes


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
        needs=["temperature"],
        min=0,
        max=1,
        callback=_number,
    ),
]
Resume = Annotated[
    str | None,
    option("--resume FILE", "Append records to FILE, and leave out those that it holds.", group=FILES),
]
BaseUrl = Annotated[
    str | None,
    option(
        "--base-url URL",
        "Where the endpoint of -m openai:NAME is; without it $OPENAI_BASE_URL, else OpenAI's own.",
        callback=valid_utf8,
    ),
]
EndpointSettings = Annotated[
    list[str] | None,
    option(
        "--option KEY=VALUE",
        "A parameter of an endpoint's requests, such as detail=high; VALUE may be JSON; may be repeated.",
        callback=valid_utf8,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    option("--api-key-env NAME", "Environment variable that holds an endpoint's key; without it OPENAI_API_KEY."),
]
Rpm = Annotated[
    int | None, option("--rpm N", "Send an endpoint at most N requests a minute; it may ask for fewer.", min=1)
]
Stats = Annotated[bool, option("--stats", "Records with `ms` and `tokens`, too.", group=FILES)]


class AnswerForm(StrEnum):
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TEXT = "text"
    XML = "xml"


FORM_HELP = "json: one list of records; csv, xml, text: answers, by the fields of --schema. -o X.csv, X.xml imply it."
Form = Annotated[AnswerForm | None, option("--format", FORM_HELP, show_default=False, group=FILES)]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The chat model, its decoding and its endpoint."""

    title: ClassVar[str] = MODEL
    model: ChatModelName = "mini"
    max_tokens: MaxTokens = None
    temperature: Temperature = 0.0
    top_p: TopP = None
    base_url: BaseUrl = None
    option: EndpointSettings = None
    api_key_env: ApiKeyEnv = None
    rpm: Rpm = None
    seed: Seed = None
    stats: Stats = False
    form: Form = None

    def written_as(self, records: Records, resume: str | None = None) -> str | None:
        """The form of what is written, None for records and plain answers. Raises VlmkitError for flags against it."""
        by_name = {".csv": "csv", ".xml": "xml"}.get(os.path.splitext(records.output or "")[1].lower())
        form = self.form.value if self.form else by_name
        other = {"--json": records.json, "--resume": resume}
        if form not in (None, "jsonl") and (flag := next((flag for flag, value in other.items() if value), None)):
            raise VlmkitError(f"{flag} cannot be combined with the format {form}", "leave out one of them")
        return form

    @property
    def endpoint(self) -> "EndpointOptions":
        from vlmkit.models.types import EndpointOptions

        return EndpointOptions.of(self.base_url, self.option or [], self.rpm or 0, self.api_key_env)

    def load(self, run: Run, task: str = "answer") -> "ChatModel":
        """The model. Raises VlmkitError where it cannot do the `task`."""
        from vlmkit.models.resolve import OCR

        model = run.load_chat_model(self.model, self.endpoint)
        if task not in model.tasks:
            lacks = {
                "answer": "reads what is written, with ask --ocr, and does nothing else",
                "ocr": "cannot read text in pictures",
                "ocr-boxes": "does not say where in the picture the text is",
                "boxes": "cannot find boxes",
                "attention": "has no attention maps",
                "raw": "continues no text as it stands",
            }
            what = f"{model.identity} {lacks[task]}"
            other = OCR if task in ("ocr", "ocr-boxes") else "Qwen/Qwen2.5-VL-3B-Instruct"
            raise VlmkitError(what, f"name a model that does, such as {other}")
        return model

    def sampling(self, max_tokens: int = ANSWER_TOKENS) -> "Sampling":
        """`max_tokens` unless the user gave another number."""
        from vlmkit.models.types import Sampling

        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(self.max_tokens or max_tokens, self.temperature, top_p, self.seed or 0)


def check_files(inputs: list[str], records: Records, resume: str | None) -> None:
    """Raise VlmkitError where an output file is an input too, or --resume is combined with another output."""
    from vlmkit.generate.resume import check_resume

    records.check(inputs)
    if resume is not None:
        check_resume(resume, inputs, records.output, records.errors)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How what a model says of the inputs `named` is written: as it comes, to the output or to the file of --resume."""

    run: Run
    records: Records
    named: list[str]
    reading: "Reading"
    conversation: "Conversation"
    model: "ChatModel"
    max_tokens: int
    resume: str | None
    asked: "Record"  # by which options, beside the question: what was done under others is not done
    form: str | None = None  # see ChatOptions.written_as
    in_shards: bool = False  # one of many, told elsewhere

    def is_plain(self, as_records: bool) -> bool:
        """Whether the text is written alone: of a single input, unless a setting asks for records."""
        return self.conversation.single and not (as_records or self.form or self.records.as_records or self.resume)

    @property
    def on_terminal(self) -> bool:
        """Whether a person reads the output as it comes."""
        return for_person(self.records.output) and self.resume is None

    def write(
        self,
        field: str,
        results: "Callable[[Iterable[ChatSample | Failed], Output], Iterator[Record | Failed]]",
        *,
        plain: bool,
        single_input: bool,
        unsure_below: float = 0.0,
        schema: "dict[str, Any] | None" = None,
    ) -> Failures:
        """Write the results as records, or with `plain` their `field` alone, unless it was shown and left out.

        On a terminal a record is a row of a table, unless --json asks for it. Those that were cut off at `max_tokens`,
        those that do not match their schema, and those about no picture are counted on standard error. A failed
        `single_input` is fatal. What is less sure than `unsure_below` is not shown `plain`.
        """
        from vlmkit.generate.answer_forms import in_form
        from vlmkit.generate.replies import or_not_sure
        from vlmkit.generate.resume import AppendOutput
        from vlmkit.io.inputs import count_inputs

        run, records, single = self.run, self.records, self.conversation.single
        count = partial(count_inputs, self.named, self.reading)
        with ExitStack() as files:
            summary = run.summary(self.reading.left_out, brief=single or self.in_shards, skipped="done before")
            failures = files.enter_context(
                Failures(records.errors, single_input=single_input, ignore=records.ignore, summary=summary)
            )
            appended = self.resume and AppendOutput(self.resume, self.max_tokens, self.asked)
            out = files.enter_context(appended or Output(records.output))
            items = summary.reading(self.conversation.items) if summary else self.conversation.items
            items = out.missing(items) if isinstance(out, AppendOutput) else items
            defects = Defects(self.max_tokens)
            if self.model.needs_picture and not single:
                items = defects.without_picture(items)
            made = progress(results(items, out), quiet=run.quiet or single, unit="records", count=count)
            hidden = 0
            shown = defects.counted(failures.filter_failures(made))
            if plain:
                for record in shown:
                    if field in record:
                        text = or_not_sure(record[field], record.get("confidence"), unsure_below)
                        hidden += text != record[field]
                        out.write(printable(f"{text}\n"))
            elif self.form not in (None, "jsonl"):
                for piece in in_form(shown, str(self.form), field, schema):
                    out.write(piece)
            elif records.for_person and self.resume is None and self.form is None:
                _show(shown, field, out, self.model.unsure_below if field == "answer" else 0.0)
            else:
                out.write_records(shown)
            defects.tell()
            if summary:
                summary.counts.update(self.model.usage())
            failures.exit_code()
            if self.on_terminal:
                tell_caution(self.model, run, "; --always prints the guess" if hidden else "")
        return failures


def tell_caution(model: "ChatModel", run: Run, more: str = "") -> None:
    """What a person at a terminal should know of answers of the `model`, and `more`."""
    if model.caution and stderr_is_terminal() and not run.quiet:
        tell_dimly(model.caution + more)


def _show(records: "Iterable[Record]", field: str, out: Output, unsure_below: float) -> None:
    """A row each, as they come: the picture, and beside it the text. A question stands above those that answer it."""
    from vlmkit.generate.replies import NOT_SURE, is_cut

    rows = Rows(out, (name_width(), 0))
    asked = None
    for record in records:
        if field == "answer" and record.get("question") != asked:
            asked = record.get("question")
            write(out, *([] if rows.is_empty else [""]), heading(str(asked or "")))
        remarks = {"cut off": is_cut(record), "does not match the schema": record.get("valid") is False}
        remarks |= {NOT_SURE: record.get("confidence", 1) < unsure_below}
        remarks |= {
            f"{record[name]} {unit}": True for name, unit in (("ms", "ms"), ("tokens", "tokens")) if name in record
        }
        boxes = [f"{box['label']}: {', '.join(f'{n:.0f}' for n in box['box'])}" for box in record.get("boxes") or []]
        text = "\n".join([str(record.get(field) or ""), *boxes]).strip("\n")
        rows.add(Name.of(record), paragraphs(text, *(what for what, is_so in remarks.items() if is_so)))


class Defects:
    """Counts what is written although it is not all that was asked for."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._seen, self._cut, self._invalid, self._blind = max_tokens, 0, 0, 0, 0

    def without_picture(self, items: "Iterable[ChatSample | Failed]") -> "Iterator[ChatSample | Failed]":
        """`items`, those counted that have no picture although the model needs one."""
        for item in items:
            self._blind += not getattr(item, "pictures", True)
            yield item

    def counted(self, results: "Iterable[Record]") -> "Iterator[Record]":
        from vlmkit.generate.replies import is_cut

        for record in results:
            self._seen += 1
            self._cut += is_cut(record)
            self._invalid += record.get("valid") is False
            yield record

    def tell(self) -> None:
        """One line each on standard error."""
        if self._cut:
            one = "was" if self._cut == 1 else "were"
            limit = f"raise --max-tokens, which is {self._max_tokens}"
            warn(f"{self._named(self._cut)} {one} cut off by the limit of tokens: {limit}")
        if self._invalid:
            one = "does" if self._invalid == 1 else "do"
            warn(f"{self._named(self._invalid)} {one} not match the schema: simplify it, or name a better model")

        if self._blind:
            one = "was" if self._blind == 1 else "were"
            warn(f"{self._named(self._blind)} {one} guessed from words alone: name a picture in each record")

    def _named(self, count: int) -> str:
        return "the answer" if self._seen == 1 else f"{count} of {self._seen} answers"
