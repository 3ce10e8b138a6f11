"""--show-completion and --install-completion: the files in completions/, which man/generate.py makes."""

import os
from enum import StrEnum
from pathlib import Path

import typer

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Output

LOADERS = (  # of bash-completion, which finds files of users by itself
    "/usr/share/bash-completion/bash_completion",
    "/etc/bash_completion",
    "/usr/local/share/bash-completion/bash_completion",
    "/opt/homebrew/etc/profile.d/bash_completion.sh",
)


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


FILES = {Shell.BASH: "vlmkit.bash", Shell.ZSH: "_vlmkit", Shell.FISH: "vlmkit.fish"}


def current_shell() -> str:
    """The name of the user's shell. Raises VlmkitError for one without completions."""
    name = Path(os.environ.get("SHELL", "")).name
    if name not in list(Shell):
        what = f"$SHELL is {name}, which has no completions" if name else "$SHELL names no shell"
        raise VlmkitError(what, f"name one: --install-completion {'|'.join(Shell)}")
    return name


def _completion(shell: Shell) -> bytes:
    return (Path(__file__).with_name("completions") / FILES[shell]).read_bytes()


def show(shell: Shell | None) -> None:
    """Print the completion for the shell."""
    if shell:
        Output().write(_completion(shell))
        raise typer.Exit


def install(shell: Shell | None) -> None:
    """Write the completion where the shell looks for those of this user, and say what is left to do."""
    from vlmkit.io.files import atomic_write

    if not shell:
        return
    file = _place(shell)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as out:
        out.write(_completion(shell))
    Output().write(
        f"Completions for {shell} are in {file}\n{_next_step(shell, file)}\n".encode(errors="surrogateescape")
    )
    raise typer.Exit


def _home(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / usual)


def _place(shell: Shell) -> Path:
    if shell is Shell.FISH:
        return _home("XDG_CONFIG_HOME", ".config") / "fish/completions/vlmkit.fish"
    data = _home("XDG_DATA_HOME", ".local/share")
    if shell is Shell.ZSH:
        return data / "zsh/site-functions/_vlmkit"
    return Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion") / "completions/vlmkit"


def _next_step(shell: Shell, file: Path) -> str:
    if shell is Shell.FISH:
        return "Fish loads them by itself."
    if shell is Shell.BASH:
        if any(map(os.path.exists, LOADERS)):
            return f"New shells load them by themselves; in this one: . '{file}'"
        return f"The package bash-completion is not installed: without it, add this line to ~/.bashrc:\n  . '{file}'"
    settings = _home("ZDOTDIR", "") / ".zshrc"
    if settings.is_file() and str(file.parent) in settings.read_text(errors="replace"):
        return f"New shells load them, as {settings} names the folder."
    lines = f"  fpath=('{file.parent}' $fpath)\n  autoload -Uz compinit && compinit"
    return f"Put these lines into {settings}, then open a new shell:\n{lines}"
