"""Print `docs/errors.md`, the table of bad inputs and what is said about them, from the rows that the tests try.

Command:
    python scripts/table_errors.py > docs/errors.md
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.malformed_inputs import all_rows

HEAD = """# What is said about bad input

Every row is tried by `tests/test_malformed.py`: the error is one sentence, a command line ends with status 2 and that sentence on
stderr, and no file is changed. `...` stands for anything, TMP for a folder. `scripts/table_errors.py` writes this page.
"""


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for group, rows in groupby(all_rows(), key=lambda row: row.group):
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n\n| what | what is said |\n| --- | --- |\n")
        for row in rows:
            cells = (row.what, row.message.rstrip("\n").removeprefix("error: "))
            parts.append(
                "| " + " | ".join(f"`` {' '.join(cell.split()).replace('|', chr(92) + '|')} ``" for cell in cells) + " |\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
