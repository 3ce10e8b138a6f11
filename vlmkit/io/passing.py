"""The samples of a shard that comes once from beginning to end, as one by URL does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import IO, cast

from vlmkit.io.samples import Sample, Shard, Unread, is_divided_name, is_hidden, stem_of
from vlmkit.io.sources import MAX_BYTES, Bytes, Memory, PictureError, Source, StreamReader, is_picture_name, reader_of
from vlmkit.io.tar import MAX_DEPTH, Passing, Unreadable


@dataclass(frozen=True, slots=True)
class Passed(Memory):
    """What stood at `offset` of a file, in memory for now, and the `part` of the file that is read from then on."""

    offset: int = 0
    part: Bytes | None = None


@dataclass(frozen=True, slots=True)
class PassingSamples:
    """How such shards are read; the fields are the parameters of `read_samples`."""

    skips: Callable[[str], bool] = is_hidden
    on_other: Callable[[str], object] = lambda name: None
    has_fields: bool = True
    on_shard: Callable[[str, bool], None] | None = None

    def of_url(self, url: str, reader: StreamReader, allow_private: bool) -> Iterator[Sample | Unread]:
        """The samples of the shard at `url`, as they come; its query, which may be a key, is not in their names.

        With `on_shard` the sources are parts of the file, which a server must be able to send.
        """
        from vlmkit.io.remote import NO_PARTS
        from vlmkit.io.stream import open_remote

        name = url if self.on_shard else url.partition("?")[0]
        came = False
        try:
            with open_remote(url, allow_private=allow_private, named=self.on_shard is not None) as file:
                came = file.came
                if self.on_shard and not file.version:
                    raise PictureError(NO_PARTS)
                for found in self.read(name, reader, cast(IO[bytes], file), 0, file.size):
                    if self.on_shard and isinstance(found, Sample):
                        found = found._replace(source=_part(found.source, url, file.version))
                    yield found._replace(path=url) if found.path == name else found
                    came = file.came
        except PictureError as error:
            yield Unread(url, str(error))
        finally:
            if self.on_shard:
                self.on_shard(url, came)

    def read(
        self, path: str, reader: StreamReader, stream: IO[bytes], offset: int, size: int, depth: int = 1
    ) -> Iterator[Sample | Unread]:
        """As `read_samples`, of `size` bytes of `stream` from `offset` on.

        The members of one sample stand together, as webdataset has it: one sample is held in memory. Where they do not,
        what follows is not read, and the Unread says so.
        """
        shard = Shard(path, is_silent=not self.has_fields)
        ended: set[str] = set()
        damage = ""

        def members() -> Iterator[tuple[str, Bytes]]:
            nonlocal damage
            try:
                yield from (member for member in reader.passing(stream, offset, size) if not self.skips(member[0]))
            except PictureError as error:  # behind a sample that is whole
                damage = str(error)

        try:
            for stem, group in groupby(members(), key=lambda member: stem_of(member[0])):
                if stem is None:
                    for name, source in group:
                        yield from self._other(path, name, source, depth)
                    continue
                if stem in ended:
                    remedy = "copy it here, or sort its members by name"
                    raise PictureError(f"the members of {stem} do not stand together: {remedy}")
                ended.add(stem)
                sample = replace(shard, members={}, samples={})  # the counts of warnings stay those of the shard
                for name, source in group:
                    if is_divided_name(name):  # too large to be held in memory
                        self.on_other(name)
                    else:
                        sample.add(name, _held(source))
                for name in sample.members:
                    if is_picture_name(name):
                        yield sample.sample(name)
        except PictureError as error:
            damage = str(error)
        shard.sum_up()
        if damage:
            yield Unread(path, damage, "restore the file; its other members were read" if ended else "")

    def _other(self, path: str, name: str, source: Bytes, depth: int) -> Iterator[Sample | Unread]:
        """What a member holds that is neither a picture nor a side-car."""
        inner = reader_of(name)
        if inner is None or not inner.holds_files:
            self.on_other(name)
        elif not isinstance(source, Passing) or not isinstance(place := source.place, Source) or depth >= MAX_DEPTH:
            yield Unread(f"{path}/{name}", "a container inside that is a link, sparse, or nested too deep")
        elif not hasattr(inner, "passing"):
            yield Unread(f"{path}/{name}", "such containers inside are not read by URL", "copy the shard here")
        else:
            within = cast(StreamReader, inner)
            yield from self.read(f"{path}/{name}", within, source.stream, place.offset, place.size, depth + 1)


def _held(source: Bytes) -> Bytes:
    """A member in memory, unless it cannot be read. Raises PictureError where the shard ends in it."""
    if source.size > MAX_BYTES:
        return Unreadable(f"{source.size} bytes are more than a picture has (the limit is 1 GiB)")
    if isinstance(source, Passing) and isinstance(source.place, Source):
        return Passed(source.read(), source.mtime, source.place.offset)
    return source if isinstance(source, Unreadable) else Memory(source.read(), source.mtime)


def _part(source: Bytes, url: str, version: str) -> Bytes:
    """`source` as a part of the file at `url`, if it can be read."""
    from vlmkit.io.remote import RemotePart

    if isinstance(source, Passed):
        part = RemotePart(url, source.offset, source.size, source.mtime or 0.0, version)
        return replace(source, part=part)
    return source if isinstance(source, Unreadable) else Unreadable("stored without its zeros")
