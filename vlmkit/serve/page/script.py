"""Shell scripts and lists of the copies that a person chose. Nothing here runs them."""

import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmkit.errors import VlmkitError

HEAD = r"""#!/bin/sh
# {count} copies that vlmkit found and you chose. Read it, then run it: sh FILE
# A file goes only while the picture that is kept in its place is there.
set -u
"""
TRASH = r"""if command -v trash-put > /dev/null; then put_away() { trash-put -- "$1"; }
elif command -v gio > /dev/null; then put_away() { gio trash -- "$1"; }
else echo 'nothing here knows a trash: install trash-cli' >&2; exit 1
fi
"""
MOVE = r"""folder=${1:-"$HOME/vlmkit-copies"}  # or another one: sh FILE FOLDER
number=0
mkdir -p -- "$folder" || exit 1
put_away() {
  while number=$((number + 1)); [ -e "$folder/$number-${1##*/}" ]; do :; done
  mv -- "$1" "$folder/$number-${1##*/}"
}
"""
FUNCTION = r"""failed=0
replaced_by() {  # KEPT FILE...
  kept=$1; shift
  for file do
    if [ -f "$kept" ] && [ -f "$file" ] && ! [ "$kept" -ef "$file" ]; then put_away "$file" || failed=1
    else printf 'left alone: %s\n' "$file" >&2; failed=1
    fi
  done
}

"""
ENDS = "\nexit $failed\n"
WAYS = {"trash": TRASH, "move": MOVE}


class Choice(NamedTuple):
    """Files that may go, since `kept` is the same picture."""

    kept: str
    files: Sequence[str]


def shell_script(choices: Iterable[Choice], way: str) -> str:
    """A script for POSIX shells; `way` is trash or move."""
    choices = [choice for choice in choices if choice.files]
    head = HEAD.format(count=sum(len(choice.files) for choice in choices))
    lines = [f"replaced_by {shlex.quote(choice.kept)} {shlex.join(choice.files)}\n" for choice in choices]
    return "".join([head, WAYS[way], FUNCTION, *lines, ENDS])


def path_list(choices: Iterable[Choice]) -> str:
    """The files, one a line. Raises VlmkitError for a name with a line break."""
    files = [file for choice in choices for file in choice.files]
    if any("\n" in file for file in files):
        raise VlmkitError("a name has a line break, which a list cannot hold", "take the script")
    return "".join(f"{file}\n" for file in files)
