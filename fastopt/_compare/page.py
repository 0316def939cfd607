"""A whole run in one HTML file that needs nothing else: text, tables, findings, and the pictures themselves."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from .race import Finding
from .report import Picture, Section, Table, numbers
from .results import whole_file

__all__ = ["write"]

SVG_UP_TO = 200_000  # bytes; of a larger drawing the PNG is shown
Named = Sequence[tuple[str, Section]]
TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".gif": "image/gif"}

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid #ccc; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1.05rem; }
a { color: #0b57a4; }
nav ol { padding-left: 1.5rem; }
p.warning { padding: .5rem .8rem; border: 2px solid #a33a00; font-weight: 600; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .9rem; color: #444; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom-color: #888; }
.number { text-align: right; }
ul.findings { list-style: none; padding: 0; }
ul.findings li { margin: .6rem 0; padding: .1rem 0 .1rem .8rem; border-left: .3rem solid; }
ul.findings li.yes { border-color: #1b6e3c; }
ul.findings li.no { border-left-style: double; border-color: #a33a00; }
ul.findings li.open { border-left-style: dotted; border-color: #555; }
ul.summary li { margin: .25rem 0; }
.verdict { font-weight: 600; }
.yes .verdict { color: #1b6e3c; }
.no .verdict { color: #a33a00; }
.open .verdict { color: #555; }
.measured, .source, figcaption, .files { font-size: .9rem; color: #444; }
.measured { display: block; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption .title { display: none; }  /* the picture has it, in letters that narrow screens make too small */
@media (max-width: 45rem) {
  body { padding: .6rem; } figure { margin: 1rem 0; } figcaption .title { display: inline; }
}
@media print {
  body { max-width: none; font-size: 10pt; } nav { display: none; } a { color: inherit; }
  .table { overflow: visible; } h2 { break-after: avoid; } ul.findings li { break-inside: avoid; }
}
"""


def write(
    sections: Sequence[Section], path: Path, *, title: str, facts: Sequence[tuple[str, str]], warning: str = ""
) -> Path:
    """Write one HTML file that shows everything and loads nothing.

    Parameters
    ----------
    sections : sequence of Section
        What was run.
    path : pathlib.Path
        The file. Links to the pictures' files are relative to its folder.
    title : str
        Of the page.
    facts : sequence of (str, str)
        Names and values that one needs to know to repeat the run: versions, seed.
    warning : str, optional
        Stands at the top: what is missing.

    Returns
    -------
    pathlib.Path
        The file.
    """
    named = list(zip(_anchors(sections), sections, strict=True))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />',
        '<meta name="viewport" content="width=device-width, initial-scale=1" />',
        '<meta name="referrer" content="no-referrer" />',
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{_text(title)}</h1>",
        f'<p class="warning">{_text(warning)}</p>' if warning else "",
        _facts(facts),
        "</header>",
        _contents(named),
        "<main>",
        _summary(named),
        *(_section(anchor, section, path.parent) for anchor, section in named),
        "</main>\n</body>\n</html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


def _text(text: str) -> str:
    """Return text as HTML, without the control characters and lone surrogates that it has no way to hold."""
    return escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text))


def _anchors(sections: Sequence[Section]) -> list[str]:
    """Return names for links: letters, digits and hyphens, each only once."""
    names = (re.sub(r"[^a-z0-9]+", "-", section.name.lower()).strip("-") for section in sections)
    return [f"part-{number}-{name}".rstrip("-") for number, name in enumerate(names, 1)]


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    items = "\n".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<dl class="facts">\n{items}\n</dl>' if items else ""


def _contents(named: Named) -> str:
    links = "\n".join(f'<li><a href="#{anchor}">{_text(section.title)}</a></li>' for anchor, section in named)
    return f'<nav aria-label="Contents">\n<ol>\n{links}\n</ol>\n</nav>' if links else ""


def _summary(named: Named) -> str:
    """Return the findings of all sections in up to three lists: those that hold, do not, and cannot be told."""
    found = [(anchor, section, finding) for anchor, section in named for finding in section.findings]
    if not found:
        return ""
    lists = []
    for holds, head in ((True, "hold"), (False, "do not hold here"), (None, "cannot be told")):
        items = [
            f'<li class="{_class(finding)}">{_mark(finding)} {_text(finding.claim)} '
            f'<span class="source">(<a href="#{anchor}">{_text(section.title)}</a>)</span></li>'
            for anchor, section, finding in found
            if finding.holds is holds
        ]
        if items:
            lists += [f"<h3>{len(items)} {head}</h3>", '<ul class="findings summary">', *items, "</ul>"]
    return "\n".join(['<section aria-labelledby="findings">', '<h2 id="findings">Findings</h2>', *lists, "</section>"])


def _class(finding: Finding) -> str:
    return {True: "yes", False: "no", None: "open"}[finding.holds]


def _mark(finding: Finding, words: str = "") -> str:
    mark = {True: "\u2713", False: "\u2717", None: "?"}[finding.holds]
    return f'<span class="verdict">{mark}{words}</span>'


def _verdict(finding: Finding) -> str:
    return _mark(finding, {True: " holds:", False: " does not hold here:", None: " cannot tell:"}[finding.holds])


def _section(anchor: str, section: Section, folder: Path) -> str:
    parts = [
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{_text(section.title)}</h2>',
        f"<p>{_text(section.story)}</p>" if section.story else "",
        _findings(section.findings),
        *(_picture(picture, folder) for picture in section.pictures),
        _table(section.table, f"{section.title}: figures"),
        _files(section.files, folder),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _findings(findings: Sequence[Finding]) -> str:
    items = "\n".join(
        f'<li class="{_class(f)}">{_verdict(f)} {_text(f.claim)} <span class="source">({_text(f.source)})</span>\n'
        f'<span class="measured">{_text(f.measured)}</span></li>'
        for f in findings
    )
    return f'<ul class="findings">\n{items}\n</ul>' if items else ""


def _table(table: Table, label: str) -> str:
    if not table.rows:
        return ""
    classes = [' class="number"' if right else "" for right in numbers(table)]
    heads = "".join(f'<th scope="col"{c}>{_text(head)}</th>' for c, head in zip(classes, table.heads, strict=True))
    lines = "\n".join(
        "<tr>" + "".join(f"<td{c}>{_text(cell)}</td>" for c, cell in zip(classes, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    # A region that scrolls has to be reachable with the keyboard, and to have a name.
    region = f'<div class="table" role="region" tabindex="0" aria-label="{_text(label)}">'
    return f"{region}\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>"


def _picture(picture: Picture, folder: Path) -> str:
    shown = _shown(picture)
    data = f"data:{TYPES[shown.suffix]};base64,{b64encode(shown.read_bytes()).decode()}"
    links = " ".join(_link(file, folder, file.suffix[1:].upper()) for file in picture.files)
    caption = f'<figcaption><span class="title">{_text(picture.title)}</span> {links}</figcaption>'
    return f'<figure>\n<img src="{data}" alt="{_text(picture.alt)}" />\n{caption}\n</figure>'


def _shown(picture: Picture) -> Path:
    """Return the file that the page holds: the SVG, which is sharp at any size, unless a PNG is much smaller."""
    files = {file.suffix: file for file in picture.files}
    svg = files.get(".svg")
    if svg is not None and (svg.stat().st_size <= SVG_UP_TO or len(files) == 1):
        return svg
    return files.get(".png") or picture.files[0]


def _files(files: Sequence[Path], folder: Path) -> str:
    links = " ".join(_link(file, folder, file.name) for file in files)
    return f'<p class="files">Files: {links}</p>' if links else ""


def _link(file: Path, folder: Path, label: str) -> str:
    relative = quote(Path(os.path.relpath(file, folder)).as_posix())
    return f'<a href="{_text(relative)}">{_text(label)}</a>'
