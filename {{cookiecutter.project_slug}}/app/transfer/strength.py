"""Whether somebody could guess a key, as far as can be told."""

import re
from itertools import pairwise, product
from math import log2
from typing import Final

from app.auth.key import digest

BITS: Final = 64  # a key has at least as many
# What people and examples write in the place of a key.
_LAST: Final = "key secret token password here please me now"
_EXAMPLES: Final = f"""
    changeme changeit change replace insecure fake dummy default example sample placeholder testing
    test demo local admin root master super private public production access your hello world
    letmein qwerty none null undefined string coneofsilence apikey api passphrase passwd my sk {_LAST}
"""
_WORD = re.compile("|".join(_EXAMPLES.split()), re.IGNORECASE)
_ALPHABETS: Final = (("[0-9]*", 10), ("[0-9a-f]*", 16), ("[0-9a-z]*", 36), ("[0-9A-Za-z]*", 62))


def is_weak(key: str) -> bool:
    """Words of examples, and four or more characters in a row, count for little."""
    rest = _WORD.sub("", key)
    steps = [ord(after) - ord(before) for before, after in pairwise(rest)]
    rows = zip(steps, steps[1:], steps[2:], strict=False)
    guessed = sum(three in ((1, 1, 1), (0, 0, 0), (-1, -1, -1)) for three in rows)
    size = min((size for form, size in _ALPHABETS if re.fullmatch(form, rest)), default=94)
    return (len(rest) - guessed) * log2(size) < BITS or len({*rest}) < 7


def defaults() -> frozenset[bytes]:
    """The digests of what stands in examples: `changeme`, `my-secret-key`, `sk-1234`."""
    numbers = ["1234567890"[:length] for length in range(1, 11)]
    examples, last = _EXAMPLES.split(), _LAST.split()
    spelled = {
        f"{a}{by}{b}" for a, b in product(["", *examples], repeat=2) for by in ("", "-", "_")
    }
    spelled |= {f"{a}{by}{b}{by}{c}" for a, b, c, by in product(examples, examples, last, "-_")}
    spelled |= {f"{a}{n}" for a, n in product(["", "sk-", "key-", *examples], numbers)}
    cases = (str, str.upper, str.title)
    return frozenset(digest(case(each).encode()) for case in cases for each in spelled)
