"""The command caption."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from vlmkit.cli.generate import PAGE_TOKENS, ChatOptions, Delivery, Resume, check_files
from vlmkit.cli.options import Inputs, Records, Run, option, valid_utf8
from vlmkit.cli.shards import ShardOptions, each_shard
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.executor import Lazy
from vlmkit.io.shards import expand_shards
from vlmkit.io.terminal import Failures, Output

if TYPE_CHECKING:
    from vlmkit.generate.questions import ChatSample
    from vlmkit.io.records import Failed, Record
    from vlmkit.models.types import ChatModel, Sampling


class Length(StrEnum):
    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


Prompt = Annotated[str, option("--prompt TEXT", "How each caption begins.", callback=valid_utf8)]
LengthOption = Annotated[Length, option("--length", "How much to say.", show_choices=True)]
Sidecar = Annotated[bool, option("--sidecar", "Also write photo.txt beside each picture that has none yet.")]
Force = Annotated[bool, option("--force", "With --sidecar: write over files that are there.", needs=["sidecar"])]
Yes = Annotated[
    bool, option("--yes", "With --sidecar: keep the captions of a model that guesses, such as mini.", needs=["sidecar"])
]
Boxes = Annotated[bool, option("--boxes", "Find every object, too: records with `boxes`.")]


def caption(
    run: Run,
    chat: ChatOptions,
    records: Records,
    shards: ShardOptions,
    inputs: Inputs = None,
    prompt: Prompt = "",
    length: LengthOption = Length.NORMAL,
    sidecar: Sidecar = False,
    force: Force = False,
    yes: Yes = False,
    boxes: Boxes = False,
    resume: Resume = None,
) -> Exit:
    """Say what is on pictures.

    One sentence, printed alone for one picture; for several, folders, shards and records, each record with its
    `caption`, `caption_model` and `finish`. A picture may also come as bytes on standard input. What mini says is often
    wrong: for texts that others rely on, name a better model.
    """
    from vlmkit.generate.pipeline import caption as captioned
    from vlmkit.generate.pipeline import caption_sampling
    from vlmkit.generate.questions import to_caption
    from vlmkit.generate.sidecar import without_sidecar, write_sidecars
    from vlmkit.io.records import name_of
    from vlmkit.models.resolve import better_chat_model

    shards.check(records, resume=resume, sidecar=sidecar, format=chat.form)
    check_files(inputs or [], records, resume)
    form = chat.written_as(records, resume)

    def opened() -> "ChatModel":
        model = chat.load(run, "boxes" if boxes else "answer")
        if sidecar and model.caution and not yes:
            what = f"captions of {name_of(model.identity)} are guesses, and --sidecar keeps them beside your pictures"
            raise VlmkitError(what, f"pass --yes, or take a better model: {better_chat_model()}")
        return model

    load = Lazy(opened)

    def sampled() -> "Sampling":
        return caption_sampling(load(), length.value, chat.sampling(), chat.max_tokens)

    how: dict[str, Any] = {"length": length.value, "start": prompt, "stats": chat.stats}
    how |= {"boxes": chat.sampling(PAGE_TOKENS) if boxes else None, "allow_private": records.allow_private}
    how |= {"batch_size": run.batch_size, "workers": run.threads}

    def results(items: "Iterable[ChatSample | Failed]", _: Output) -> "Iterator[Record | Failed]":
        found = captioned(without_sidecar(items) if sidecar and not force else items, load(), sampled(), **how)
        return write_sidecars(found, force=force) if sidecar else found

    asked = {"prompt": prompt} if prompt else {}
    asked |= {} if length is Length.NORMAL else {"length": length.value}

    def work(records: Records, named: list[str], in_shards: bool = False) -> Failures:
        reading = records.reading(piped_picture=True, one_picture=True)
        conversation = to_caption(named, reading)
        settled = load(), sampled().max_tokens, resume, asked, form, in_shards
        delivery = Delivery(run, records, named, reading, conversation, *settled)
        plain = delivery.is_plain(boxes or chat.stats)
        single_input = not in_shards and (conversation.single or not (resume or sidecar))
        return delivery.write("caption", results, plain=plain, single_input=single_input)

    if shards.out_dir is None:
        return work(records, inputs or []).exit_code()

    def settings() -> dict[str, Any]:
        return {"command": "caption", "model": load().identity, **asked, "boxes": boxes, **asdict(sampled())}

    named = expand_shards(inputs or [])
    return each_shard(run, records, shards, named, ".jsonl", settings, partial(work, in_shards=True))
