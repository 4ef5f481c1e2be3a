"""Coverage-guided fuzzing of safetensors headers, or of shard indexes, with atheris.

    pip install atheris
    PYTHONPATH=python:tests python tests/fuzz/fuzz_headers.py -runs=10000000
    PYTHONPATH=python:tests python tests/fuzz/fuzz_headers.py --indexes -runs=10000000

What has to hold of each input is in parser_properties.py; a failure leaves the input in ./crash-….
It starts from the corpus beside this file, and keeps what reaches further in build/fuzz or in the
folder given. -merge=1 and two folders add to the first what the second has beyond it: that is how
the corpus is made. All options are libFuzzer's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from fuzz.parser_mutations import mutated_header, mutated_index

PARSERS = ("headers", "strictjson", "checkpoints", "plainfiles", "lookalikes")

with atheris.instrument_imports(include=[f"relex_ext.{name}" for name in PARSERS]):
    from fuzz.parser_properties import File, check_header, check_index

LIMITS = ["-timeout=5", "-rss_limit_mb=1024", "-max_len=8192"]


def main() -> None:
    target = "indexes" if "--indexes" in sys.argv else "headers"
    file = File()
    mutated = mutated_header if target == "headers" else mutated_index

    def check(data: bytes) -> None:
        if target == "headers":
            check_header(data, file)
        else:
            check_index(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 5 == 0:  # bytes anyhow, as libFuzzer knows to change them
            return bytes(atheris.Mutate(data, most))
        return mutated(data, seed)[:most]

    corpus = Path(__file__).parent / "corpus" / target
    options = [option for option in sys.argv[1:] if option.startswith("-")]
    folders = [folder for folder in sys.argv[1:] if not folder.startswith("-")]
    found = Path("build", "fuzz", target)
    if not folders:
        found.mkdir(parents=True, exist_ok=True)
    places = [*(folders or [str(found)]), str(corpus)]
    again = f"{sys.executable} {sys.argv[0]}"  # -merge starts it again, through a shell
    atheris.Setup([again, *LIMITS, *options, *places], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
