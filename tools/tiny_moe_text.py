"""The text of tiny-moe: its split into parts, and n-gram models of it (used by train_tiny_moe.py)."""

import hashlib
import os
import re

SEED = 20
HELDOUT_BYTES = 64 * 1024
VALID_BYTES = 64 * 1024
CALIBRATION_BYTES = 16 * 1024


def prepare(args):
    """Split the text by whole chapters into train, validation and held-out."""
    chapters, order = {}, []
    with open(args.text, encoding="ascii") as f:
        for line in f:
            match = re.fullmatch(r"(\w+:?\d*):\d+ (.*)\n", line)
            ref, verse = match.group(1), match.group(2)
            if ref not in chapters:
                chapters[ref] = []
                order.append(ref)
            chapters[ref].append(verse.strip())
    text = {ref: "\n".join(chapters[ref]) + "\n\n" for ref in order}

    # A hash orders the chapters, so the split is the same under any Python.
    shuffled = sorted(order, key=lambda ref: hashlib.sha256(f"{SEED}:{ref}".encode()).digest())

    def take(size):
        """Whole chapters until there are size bytes; the last one is cut."""
        refs, total = [], 0
        while total < size:
            refs.append(shuffled.pop(0))
            total += len(text[refs[-1]])
        return "".join(text[ref] for ref in refs)[:size]

    heldout, valid = take(HELDOUT_BYTES), take(VALID_BYTES)
    train = "".join(text[ref] for ref in order if ref in set(shuffled))
    calibration = take(CALIBRATION_BYTES)  # stays in the training text

    # Three prompts: starts of verses of the held-out text, cut at a word.
    verses = [v for v in heldout.split("\n") if len(v) > 80]
    prompts = []
    for k, size in enumerate((32, 48, 64)):
        verse = verses[(2 * k + 1) * len(verses) // 6]
        prompts.append(verse[:size + 1].rsplit(" ", 1)[0].rstrip(",;:. "))

    os.makedirs(args.data, exist_ok=True)
    os.makedirs(args.model, exist_ok=True)
    for folder, name, content in (
        (args.data, "train.txt", train),
        (args.data, "valid.txt", valid),
        (args.data, "heldout.txt", heldout),
        (args.data, "calibration.txt", calibration),
        (args.data, "prompts.txt", "\n".join(prompts) + "\n"),
        (args.model, "heldout.txt", heldout),
        (args.model, "calibration.txt", calibration),
        (args.model, "prompts.txt", "\n".join(prompts) + "\n"),
    ):
        with open(os.path.join(folder, name), "w", encoding="ascii", newline="\n") as f:
            f.write(content)
        print(f"{folder}/{name}: {len(content)} bytes, sha256 "
            f"{hashlib.sha256(content.encode()).hexdigest()[:16]}")


# ------------------------------------------------------------------ n-grams


def ngram_bits(train, test, order):
    """Bits per byte, on test[1:], of a byte model of interpolated Kneser-Ney.

    One absolute discount per order, D = n1 / (n1 + 2 n2); the highest order
    uses counts, the lower ones the number of distinct bytes seen before.
    """
    import numpy as np

    def grams(data, n):
        """The n-grams that end at data[i], for i >= n - 1, as integers."""
        key = np.zeros(len(data) - n + 1, dtype=np.uint64)
        for j in range(n):
            key = (key << np.uint64(8)) | data[j:len(data) - n + 1 + j]
        return key

    def look_up(keys, values, query):
        at = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
        return np.where(keys[at] == query, values[at], 0)

    data = np.frombuffer(train, dtype=np.uint8).astype(np.uint64)
    held = np.frombuffer(test, dtype=np.uint8).astype(np.uint64)
    short = np.uint64(8)
    prob = np.full(len(held), 1.0 / 256)
    seen = {n: np.unique(grams(data, n), return_counts=True) for n in range(1, order + 1)}
    for n in range(1, order + 1):
        keys, count = seen[n]
        if n < order:  # distinct left neighbours; the text's first gram may have none
            longer = seen[n + 1][0]
            tail, left = np.unique(longer & np.uint64((1 << (8 * n)) - 1), return_counts=True)
            count = look_up(tail, left, keys)
            keys, count = keys[count > 0], count[count > 0]
        n1, n2 = np.sum(count == 1), np.sum(count == 2)
        discount = n1 / (n1 + 2.0 * n2) if n1 + n2 else 0.5
        context, start = np.unique(keys >> short, return_index=True)
        total = np.add.reduceat(count, start)
        kinds = np.diff(np.append(start, len(keys)))
        query = grams(held, n)
        c = look_up(keys, count, query)
        t = look_up(context, total, query >> short)
        k = look_up(context, kinds, query >> short)
        lower = prob[n - 1:]
        known = t > 0
        t = np.maximum(t, 1)
        mixed = (np.maximum(c - discount, 0) + discount * k * lower) / t
        prob[n - 1:] = np.where(known, mixed, lower)
    return float(-np.log2(prob[1:]).mean())


def ngram(args):
    result = {}
    train = open(os.path.join(args.data, "train.txt"), "rb").read()
    held = open(os.path.join(args.data, "heldout.txt"), "rb").read()
    for order in range(3, 9):
        result[str(order)] = ngram_bits(train, held, order)
        print(f"{order}-gram, interpolated Kneser-Ney: {result[str(order)]:.4f} bits/byte", flush=True)
    return result
