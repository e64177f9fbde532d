"""Print what python/docs/scheduling.md shows, with this folder and its owner in it.

  make schedule             all of it
  make schedule ARGS=cron   one: cron, service, timer, launchd or logrotate
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from xml.sax.saxutils import escape

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "python" / "docs" / "scheduling.md"

# Where it goes, after which words the page shows it, and how a path is written in it.
KINDS = {
    "cron": ("crontab -e", lambda path: shlex.quote(path).replace("%", "\\%")),
    "service": ("/etc/systemd/system/athlete-sync.service", lambda path: path.replace("%", "%%")),
    "timer": ("/etc/systemd/system/athlete-sync.timer", str),
    "launchd": ("~/Library/LaunchAgents/athlete-sync.plist", escape),
    "logrotate": ("/etc/logrotate.d/athlete-sync", lambda path: path.replace("\\", "\\\\").replace('"', '\\"')),
}


def entry(kind: str) -> str:
    place, written = KINDS[kind]
    text = PAGE.read_text(encoding="utf-8")
    block = re.search(r"`%s`[^`]*```\w+\n(.*?)^```$" % re.escape(place), text, re.DOTALL | re.MULTILINE).group(1)
    for name, value in (("/path/to/UAIS", written(str(PROJECT))), ("your_user", PROJECT.owner()),
                        ("your_group", PROJECT.group())):
        block = block.replace(name, value)
    return block


def main() -> int:
    asked = sys.argv[1:]
    if not set(asked) <= set(KINDS):
        print(__doc__, file=sys.stderr)
        return 1
    print("\n".join(entry(kind) if asked else "---- %s: %s\n\n%s" % (kind, KINDS[kind][0], entry(kind))
                    for kind in asked or KINDS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
