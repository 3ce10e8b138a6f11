"""Walks folders: the files of a folder that are INPUT, in the order of their paths, and counts of those left out."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vlmkit.io.kinds import KIND_BY_SUFFIX
from vlmkit.io.sources import FILMS, is_picture_name, missing_extra, reader_of
from vlmkit.io.tar import COMPRESSED_SUFFIXES

# What file servers, systems and tools make for themselves, in lower case: thumbnails, what was thrown away, snapshots.
MACHINE_FOLDERS = {"@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "#snapshot", "@recently-snapshot"}
MACHINE_FOLDERS |= {"lost+found", "system volume information", "__macosx", "node_modules"}
# Suffixes that people take for pictures, by the name of their kind; one without is called by its suffix.
KINDS = {
    "video": FILMS,
    "": "psd psb xcf kra ora clip ai eps ps pdf djvu zip rar 7z cbz cbr "
    "tga ico icns dds exr hdr jxr wdp emf wmf pcx sgi xbm xpm fits fit dcm nii",
}
KIND_OF = {suffix: kind or suffix for kind, suffixes in KINDS.items() for suffix in suffixes.split()}
KIND_OF |= {suffix: kind.name for suffix, kind in KIND_BY_SUFFIX.items()}
KIND_OF |= {suffix[1:]: "compressed tar" for suffix in COMPRESSED_SUFFIXES}


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """How folders are walked: whether links to folders are followed, and what is skipped.

    `exclude` are globs for names, or those that begin with a slash for paths below the folder that was named. With
    `default_excludes` hidden ones are skipped, and folders that only machines mean.
    """

    follow: bool = False
    exclude: tuple[str, ...] = ()
    default_excludes: bool = True

    def skips(self, path: str) -> bool:
        """Whether the last part of `path`, relative to the folder that was named, is skipped."""
        name = path[path.rfind("/") + 1 :]
        if self.default_excludes and (name.startswith(".") or name.lower() in MACHINE_FOLDERS):
            return True
        return any(fnmatchcase(f"/{path}" if glob[0] == "/" else name, glob) for glob in self.exclude)

    def skips_within(self, path: str) -> bool:
        """Whether a part of `path` is skipped, so that a walk does not come to its end."""
        parts = path.split("/")
        return any(self.skips("/".join(parts[: end + 1])) for end in range(len(parts)))


def normalized_glob(glob: str) -> str:
    """A glob of the user's as WalkOptions takes it: `x/`, `./x/y` and `**/x` are `x`, `/x/y` and `x`."""
    glob = glob.rstrip("/").removeprefix("./")
    while glob.startswith("**/"):
        glob = glob[3:]
    return f"/{glob.lstrip('/')}" if "/" in glob else glob


class LeftOut:
    """Counts what walks left out: files that look like pictures but cannot be read, links that are not followed, and
    what was excluded but for hidden files."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.links = 0
        self.live = 0  # films of Live Photos, which are not missed
        self.excluded = 0

    def note(self, name: str) -> None:
        """Count the file called `name`, if people may take it for a picture."""
        if looks_like_input(name):
            self.suffixes[_suffix(name)] += 1

    def __str__(self) -> str:
        """By kind, as in `3 psd, 2 RAW (cr2, nef), 1 link to a folder`; empty if there is nothing to be told."""
        kinds: Counter[str] = Counter()
        for suffix, count in self.suffixes.items():
            kinds[KIND_OF[suffix]] += count
        parts = []
        for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0].lower())):
            suffixes = ", ".join(sorted(suffix for suffix in self.suffixes if KIND_OF[suffix] == kind))
            parts.append(f"{count} {kind}" + (f" ({suffixes})" if suffixes != kind.lower() else ""))
        if self.links:
            parts.append("1 link to a folder" if self.links == 1 else f"{self.links} links to folders")
        return ", ".join(parts)

    @property
    def remedy(self) -> str:
        """What to do about it."""
        packages = {suffix: _package(suffix) for suffix in self.suffixes}
        names = sorted(set(filter(None, packages.values())))
        parts = [shlex.join(["pip", "install", *names])] if names else []
        if not all(packages.values()):
            parts.append(f"convert or unpack {'the others' if parts else 'them'}, or leave them out with --exclude")
        return "; ".join([*parts, *(["follow links with --follow"] if self.links else [])])


def _package(suffix: str) -> str:
    """What pip installs files with this suffix by; empty for what is not read at all."""
    if (kind := KIND_BY_SUFFIX.get(suffix)) is not None:
        return kind.install
    return f"vlmkit[{extra}]" if (extra := missing_extra(f"x.{suffix}")) else ""


def _suffix(name: str) -> str:
    lower = name.lower()
    tar = next(filter(lower.endswith, COMPRESSED_SUFFIXES), None)
    return (tar or os.path.splitext(lower)[1])[1:]


def looks_like_input(name: str) -> bool:
    """Whether people may take a file of this name for a picture, but it cannot be read."""
    return _suffix(name) in KIND_OF


def is_input_name(name: str) -> bool:
    """Whether a walk opens a file of this name: a picture, or what holds some."""
    return is_picture_name(name) or reader_of(name) is not None


class Walk:
    """Paths of the files below the folder `root` that are INPUT, in order; an OSError stands for a folder that cannot
    be listed.

    Each file comes once: a link to one that the walk meets by its own name is passed over, and so are further names.
    Memory is for the names of one folder a level, for files with several names, and with `follow` for the folders.
    """

    def __init__(self, root: str, options: WalkOptions, left_out: LeftOut) -> None:
        self._root, self._options, self._left_out = root, options, left_out
        self._below = len(os.path.join(root, ""))  # characters before the relative part of a path
        self._real = os.path.join(os.path.realpath(root), "")
        self._files: set[tuple[int, int]] = set()
        self._folders: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[str | OSError]:
        pending = [("", iter([self._root + "/"]))]  # a stack: folders may be nested deeper than functions
        while pending:
            folder, names = pending[-1]
            name = next(names, None)
            if name is None:
                pending.pop()
                continue
            path = os.path.join(folder, name)
            if name.endswith("/"):
                try:
                    pending.append((path[:-1], iter(self._names(path[:-1]))))
                except OSError as error:
                    yield error
            elif is_input_name(name):
                if self._is_new(path):
                    yield path
            elif looks_like_input(name) and self._is_new(path):
                self._left_out.note(name)

    def _names(self, folder: str) -> list[str]:
        """The names in `folder` that are not skipped, sorted. Raises OSError.

        Those of folders end in a slash: so a folder sorts where its files stand among all sorted paths.
        """
        if self._options.follow and not _add(self._folders, os.stat(folder)):
            return []
        below = os.path.join(folder, "")[self._below :]
        with os.scandir(folder) as entries:
            return sorted(filter(None, (self._name(entry, below) for entry in entries)))

    def _name(self, entry: os.DirEntry[str], below: str) -> str | None:
        """The name of an entry of the folder `below` the root; None if it is skipped."""
        if self._options.skips(below + entry.name):
            self._left_out.excluded += not entry.name.startswith(".")
            return None
        try:
            if not entry.is_dir():
                return entry.name
            if entry.is_symlink():
                if self._meets(os.path.realpath(entry.path)):
                    return None
                if not self._options.follow:
                    self._left_out.links += 1
                    return None
        except OSError:  # a link in a circle
            return entry.name
        return entry.name + "/"

    def _is_new(self, path: str) -> bool:
        """False for a further name of a file of this walk."""
        try:
            is_link = os.path.islink(path)
            found = os.stat(path)
            if is_link:
                real = os.path.realpath(path)
                if (is_input_name(real) or looks_like_input(real)) and self._meets(real):
                    return False
        except OSError:
            return True  # what opens it says what is wrong
        if is_link or found.st_nlink > 1:
            return _add(self._files, found)
        return _key(found) not in self._files

    def _meets(self, real: str) -> bool:
        """Whether the walk comes, or came, to the resolved path `real` without this link. Raises OSError."""
        folder, name = os.path.split(real)
        if real + "/" == self._real:
            return True
        if real.startswith(self._real) and not self._options.skips_within(real[len(self._real) :]):
            return True
        return bool(self._folders) and not self._options.skips(name) and _key(os.stat(folder)) in self._folders


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _add(known: set[tuple[int, int]], found: os.stat_result) -> bool:
    """Add a file to those `known`; False if it was there. Where a file system has no numbers, each is new."""
    if found.st_ino and _key(found) in known:
        return False
    known.add(_key(found))
    return True
