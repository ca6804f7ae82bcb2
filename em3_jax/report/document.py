"""What all pages that are one HTML file share: a head that forbids the network, and colours on light and dark."""

import html

from em3_jax.report.panels import COLORS, COLORS_ON_DARK


def document(title: str, style: str, body: str, script: str = "") -> str:
    """The page, which asks nothing of the network and may not.

    Args:
      title: as text.
      style: CSS.
      body: HTML.
      script: of the page's own, after the body; "" = none may run.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy += "; script-src 'unsafe-inline'" if script else ""
    program = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}{program}</body>\n</html>\n"
    )


def palette() -> str:
    """CSS of the colours: --c0, ... of the panels, --back, --card, --ink, --soft and --rule; a theme may be set."""
    light, dark = ("".join(f"--c{k}:{color};" for k, color in enumerate(colors)) for colors in (COLORS, COLORS_ON_DARK))
    light += "--back:#f6f7f9;--card:#fff;--ink:#1b2230;--soft:#5d6678;--rule:#dfe3ea;color-scheme:light;"
    dark += "--back:#12151b;--card:#1a1f28;--ink:#e8ebf1;--soft:#98a2b5;--rule:#303846;color-scheme:dark;"
    return (
        f":root{{{light}}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}"
    )
