"""Sets the repository's address everywhere: ``make repository URL=https://github.com/OWNER/NAME``.

``repository.url`` in ``_config.yml`` is the one place that counts. The others, listed in PLACES,
are written from it; a test checks that they agree.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")

# For each file pattern, what stands before the quoted address, without and with one.
PLACES = {
    "_config.yml": ("  url: ", "  url: "),
    "CITATION.cff": ("# repository-code: ", "repository-code: "),  # an empty one is not allowed
}


def addresses(root: Path) -> dict[Path, str]:
    """Return the address that each place holds; "" where none is set."""
    found = {}
    for pattern, (unset, is_set) in PLACES.items():
        line = re.compile(f'^(?:{re.escape(unset)}|{re.escape(is_set)})"(.*?)"', re.MULTILINE)
        for path in sorted(root.glob(pattern)):
            if match := line.search(path.read_text("utf-8")):
                found[path] = match[1]
    return found


def set_address(root: Path, url: str) -> list[Path]:
    """Write ``url`` into every place; return the files."""
    for pattern, (unset, is_set) in PLACES.items():
        line = re.compile(f'^(?:{re.escape(unset)}|{re.escape(is_set)})".*?"', re.MULTILINE)
        for path in sorted(root.glob(pattern)):
            text = path.read_text("utf-8")
            path.write_text(line.sub(lambda _: f'{is_set}"{url}"', text), "utf-8")  # noqa: B023
    return list(addresses(root))


def main() -> int:
    """Check the address on the command line and set it."""
    url = sys.argv[1].rstrip("/").removesuffix(".git") if len(sys.argv) == 2 else ""
    if not ADDRESS.fullmatch(url):
        print(f"URL is {url!r}; it has to be like https://github.com/OWNER/NAME.", file=sys.stderr)
        return 1
    for path in set_address(ROOT, url):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
