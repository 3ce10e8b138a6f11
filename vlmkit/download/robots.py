"""What a server says about the use of its pictures: the header X-Robots-Tag, as img2dataset reads it."""

from vlmkit.urls import Headers

# The defaults of img2dataset's --disallowed_header_directives (Beaumont, 2021).
REFUSED = {"noai", "noimageai", "noindex", "noimageindex"}


def refused(headers: Headers) -> str | None:
    """Why a picture with these headers is not to be used; None if it may be.

    A directive may be for one user agent, `googlebot: noindex`: it counts if that is vlmkit.
    """
    for entry in headers.get("X-Robots-Tag", "").lower().split(","):
        agent, colon, rest = entry.partition(":")
        directive = rest if colon else agent
        if directive.strip() in REFUSED and (not colon or agent.strip() in ("*", "vlmkit")):
            return f"its server asks not to use it (X-Robots-Tag: {directive.strip()})"
    return None
