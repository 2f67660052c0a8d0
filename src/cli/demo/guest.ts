// What the demo puts into its sandbox: a small repository with a test suite, and a program that has both in memory and
// waits to be told which part of the suite to run. Every copy of the sandbox has that program, as warm as it is.

/** How many parts the suite has, and how many tests each. */
export const PARTS = 8;
export const TESTS_PER_PART = 10;

export const PRIMES = `"""Primes, and even numbers as the sum of two of them."""


def sieve(limit):
    is_prime = bytearray([1]) * (limit + 1)
    is_prime[0] = is_prime[1] = 0
    for n in range(2, int(limit**0.5) + 1):
        if is_prime[n]:
            is_prime[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    return [n for n in range(limit + 1) if is_prime[n]], is_prime


def pair(even, primes, is_prime):
    return next(((p, even - p) for p in primes if is_prime[even - p]), None)
`;

/** How much a test checks is as much as this machine does in a part of a second: so the demo is as long everywhere. */
export const SUITE = `"""Goldbach's conjecture, tested in parts. Warm: the table of primes is in memory before anybody asks."""

import os
import time
import unittest

from primes import pair, sieve

PARTS, TESTS, SECONDS_PER_PART = ${PARTS}, ${TESTS_PER_PART}, 0.5
LIMIT = 400_000
primes, is_prime = sieve(LIMIT)

began, evens = time.monotonic(), 0
while time.monotonic() - began < 0.2:
    pair(100_000 + 2 * (evens % 100_000), primes, is_prime)
    evens += 1
per_test = max(10, min(int(evens * SECONDS_PER_PART / 0.2 / TESTS), (LIMIT // 2 - 2) // (PARTS * TESTS)))


class Goldbach(unittest.TestCase):
    def __init__(self, number):
        super().__init__()
        self.first = 4 + 2 * number * per_test

    def runTest(self):
        for even in range(self.first, self.first + 2 * per_test, 2):
            found = pair(even, primes, is_prime)
            self.assertIsNotNone(found, even)
            self.assertEqual(sum(found), even)


for name in ("ask", "answer"):
    os.mkfifo(name)
print(f"warm: {len(primes)} primes, {PARTS * TESTS} tests of {per_test} numbers", flush=True)
while True:
    with open("ask") as ask:
        part = int(ask.read())
    with open("answer", "w") as answer:
        for number in range(part * TESTS, (part + 1) * TESTS):
            print("ok" if Goldbach(number).run().wasSuccessful() else "FAILED", flush=True, file=answer)
`;

const file = (name: string, content: string): string => `cat > ${name} <<'END'\n${content}END\n`;

/** Makes the repository, starts the program, and ends with one line once it is warm. */
export const PREPARE = `set -eu
mkdir -p /root/demo
cd /root/demo
${file('primes.py', PRIMES)}${file('suite.py', SUITE)}printf 'ask\\nanswer\\nlog\\n' > .gitignore
git init -q
git add .
git -c user.name=demo -c user.email=demo@localhost commit -qm 'Primes, and a test suite'
: > log
setsid python3 suite.py > log 2>&1 < /dev/null &
until [ -s log ]; do sleep 0.05; done
grep -q '^warm: ' log || { sleep 0.2; cat log >&2; exit 1; }
echo "commit $(git rev-parse --short HEAD), $(head -n 1 log)"
`;

/** In a copy: asks the program for its part. A line for each test. */
export const RUN_PART = 'cd /root/demo && echo $((HUTCH_FORK_INDEX - 1)) > ask && exec cat answer';
