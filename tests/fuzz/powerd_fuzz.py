"""`make fuzz`: at least a million messages for the helper, guided by coverage; then what was found, over a real socket.

The messages that reached new code are kept and said again, and mutated, to a helper that runs as in production.
Writes benchmarks/results/powerd_fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from _common import Bar, finish, say
from fuzz_socket import over_the_socket

HERE = Path(__file__).parent
MESSAGES = 1_000_000
SEEDS = (
    b'{"op": "take", "gpu": "{0}"}\n{"op": "set", "gpu": "{0}", "limit_w": 450}\n{"op": "renew", "id": 1}',
    b'{"op": "take", "gpu": "{0}"}\n{"op": "set", "gpu": "{0}", "limit_w": 1e9}\n{"op": "release", "gpu": "{0}"}',
    b'{"op": "take", "gpu": "{1}"}\n{"op": "set", "gpu": "{1}", "limit_w": 450}',
    b'{"op": "take", "gpu": "{2}"}\n{"op": "set", "gpu": "{2}", "limit_w": 250.5}\n{"op": "ask", "gpu": "{2}"}',
    b'{"op": "ask", "gpu": "GPU-0", "id": 9007199254740993}\n[]\n\n"\\ud800"\n{"op": "renew", "op": "renew"}',
)
WORDS = (
    "op",
    "take",
    "set",
    "renew",
    "release",
    "ask",
    "gpu",
    "limit_w",
    "id",
    "{0}",
    "{1}",
    "{2}",
    "GPU-",
    "NaN",
    "null",
)


def main() -> int:
    """Fuzz, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--socket-messages", type=int, default=MESSAGES // 50)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="energy-fuzz-") as name:
        folder = Path(name)
        say(f"{wanted.messages} messages, guided by coverage")
        findings, figures, edges, corpus = guided(folder, wanted.messages)
        say(f"{wanted.socket_messages} messages over a real socket, from a corpus of {len(corpus)}")
        socket_figures = over_the_socket(corpus, wanted.socket_messages)
    answers = figures.get("answers", {})
    assert isinstance(answers, dict)
    formed = sum(count for what, count in answers.items() if what != "malformed")
    said, faults = socket_figures["messages"], socket_figures["faults"]
    bars = [
        Bar("messages", float(str(figures.get("messages", 0))), at_least=wanted.messages, show=".0f"),
        Bar("messages that were well formed", formed, at_least=1000, show=".0f"),
        Bar("promises broken", float(findings), at_most=0, show=".0f"),
        Bar("messages over the socket", said, at_least=wanted.socket_messages, show=".0f"),
        Bar("promises broken over the socket", faults, at_most=0, show=".0f"),
    ]
    about = {"tool": f"atheris {_version()}", "coverage": edges, "corpus": len(corpus)}
    figures = {"guided": {**figures, **about}, "socket": socket_figures}
    return finish("powerd_fuzz", gpus=["SIMULATED H200"], figures=figures, bars=bars, raw={})


def guided(folder: Path, messages: int) -> tuple[int, dict[str, object], int, list[bytes]]:
    """Return findings, counts, how many edges of code were reached, and the inputs that reached new ones."""
    corpus, out, words = folder / "corpus", folder / "out.json", folder / "words"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / f"seed{number}").write_bytes(seed)
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    libfuzzer = ["-seed=1", "-max_len=1500", "-len_control=0", "-timeout=20", f"-dict={words}", str(corpus)]
    command = [sys.executable, str(HERE / "powerd_messages.py"), str(messages), str(out), *libfuzzer]
    with (folder / "log").open("w+b") as log:
        code = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        log.seek(0)
        said = log.read().decode(errors="replace")
    edges = [int(found) for found in re.findall(r"cov: (\d+)", said)]
    if code != 0 or not out.exists():  # libFuzzer ends at the first thing that it finds
        say(said[-5000:])
    figures: dict[str, object] = json.loads(out.read_text()) if out.exists() else {}
    inputs = [path.read_bytes() for path in sorted(corpus.iterdir())]
    return int(code != 0 or not out.exists()), figures, max(edges, default=0), inputs


def _version() -> str:
    try:
        return version("atheris")
    except PackageNotFoundError:
        return "of unknown version"


if __name__ == "__main__":
    sys.exit(main())
