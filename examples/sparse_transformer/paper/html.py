"""The page as one file that opens anywhere: pictures and sound inside, nothing loaded from elsewhere, no scripts."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import markdown

KINDS = {".png": "image/png", ".wav": "audio/wav"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin-top: 2em }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; font-variant-numeric: tabular-nums }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; font-size: 13px }
img { max-width: 100% } audio { width: 100% }
"""


def page(text: str, folder: Path) -> str:
    """Markdown whose links lead to files in the folder -> HTML that holds them."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'<img alt="([^"]*)" src="([^"]*)" />', lambda found: _image(folder, *found.groups()), body)
    body = re.sub(r'<a href="([^"]*\.wav)">([^<]*)</a>', lambda found: _sound(folder, *found.groups()), body)
    title = re.search("<h1>(.*?)</h1>", body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title[1] if title else folder.name}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _image(folder: Path, words: str, name: str) -> str:
    return f'<img alt="{words}" src="{_inside(folder / name)}">'


def _sound(folder: Path, name: str, words: str) -> str:
    return f'{words}: <audio controls src="{_inside(folder / name)}"></audio>'


def _inside(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{KINDS[path.suffix]};base64,{content}"
