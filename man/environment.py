"""The environment variables that the commands read: those of options, from the command table, and the others."""

from typing import Any, NamedTuple

from vlmkit.cli.defaults import VARIABLE


class Variable(NamedTuple):
    """An environment variable, or several of a kind; `commands` are those that read it, all where there are none."""

    name: str
    what: str
    commands: tuple[str, ...] = ()


CHAT = ("caption", "ask")
OTHERS = [
    Variable(
        "OPENAI_API_KEY", "The key that an endpoint of -m openai:NAME gets, unless --api-key-env names another.", CHAT
    ),
    Variable("OPENAI_BASE_URL", "Where that endpoint is, unless --base-url says it.", CHAT),
    Variable(VARIABLE, "The file of settings, in place of config.toml; /dev/null for none."),
    Variable("XDG_CONFIG_HOME", "config.toml stands in its folder vlmkit (default ~/.config)."),
    Variable(
        "XDG_DATA_HOME", "Indexes and data sets given by name stand in its folder vlmkit (default ~/.local/share)."
    ),
    Variable("XDG_CACHE_HOME", "Model identities are remembered in its folder vlmkit (default ~/.cache)."),
    Variable(
        "XDG_STATE_HOME",
        "The lines typed in ask --chat are kept in its folder vlmkit (default ~/.local/state).",
        ("ask",),
    ),
    Variable("HF_HUB_OFFLINE", "1: nothing is asked of the Hugging Face Hub, only what was downloaded is used."),
    Variable(
        "HF_HOME, HF_ENDPOINT, HF_TOKEN",
        "Where the Hub's models are kept, another place of the Hub, and the key to it.",
    ),
    Variable(
        "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY", "Proxies; for pictures at URLs only with --allow-private."
    ),
    Variable("QDRANT_API_KEY", "The key that a Qdrant server of qdrant:URL/COLLECTION gets.", ("index", "search")),
    Variable("NO_COLOR", "No colours in tables."),
    Variable(
        "SHELL, ZDOTDIR, BASH_COMPLETION_USER_DIR", "Which shell, and where, --install-completion is for.", ("vlmkit",)
    ),
    Variable(
        "TERM, COLORTERM, TERM_PROGRAM, LC_TERMINAL, KITTY_WINDOW_ID, TMUX, STY",
        "Set by terminals; they tell which pictures --preview can show.",
        ("search",),
    ),
    Variable(
        "RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE",
        "Set by torchrun, for training in several processes.",
        ("train",),
    ),
    Variable(
        "DO_NOT_TRACK, GRADIO_ANALYTICS_ENABLED, HF_HUB_DISABLE_TELEMETRY, ORT_DISABLE_TELEMETRY, "
        "RAY_USAGE_STATS_ENABLED, WANDB_ERROR_REPORTING",
        "Reports of libraries; set so that there are none, unless they are set already.",
    ),
]


def variables(commands: dict[str, Any]) -> list[Variable]:
    """All of them, those of the options of `commands` first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, command in commands.items():
        for param in command.params:
            if param.envvar:
                found.setdefault(param.envvar, []).append((min(param.opts, key=len), name))
    own = [
        Variable(
            variable,
            f"Default of {uses[0][0]} for {_listed([name for _, name in uses], len(commands))}.",
            tuple(name for _, name in uses),
        )
        for variable, uses in found.items()
    ]
    return [*own, *OTHERS]


def _listed(names: list[str], total: int) -> str:
    *first, last = names
    return "every command" if len(names) == total else f"{', '.join(first)} and {last}" if first else last


def table(rows: list[Variable]) -> str:
    """The variables as a table of Markdown."""
    lines = [f"| `{row.name.replace(', ', '`, `')}` | {row.what} |" for row in rows]
    return "\n".join(["| variable | what it is for |", "|---|---|", *lines]) + "\n"
