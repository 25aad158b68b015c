# SPDX-License-Identifier: MIT
"""The part of the problem grammar (docs/problem.md) that golden cases use."""
from golden.formats import SCHEMES, Format

FLAGS = {"renorm", "topkfirst", "rbias", "gsum2", "tiehigh", "hash", "rx", "shsigmoid", "b1", "b2",
         "noreduce", "xq", "joint", "midround", "map"}
INTEGERS = {"t", "e", "k", "h", "i", "hpad", "ipad", "first", "local", "shared", "cap"}
FLOATS = {"eps", "scale", "shw", "limit", "alpha", "beta", "lbeta", "acc"}
DEFAULTS = {
    "cap": 0, "sort": "index", "t": 1, "e": 1, "k": 1, "hpad": 0, "ipad": 0, "first": 0, "local": 0, "shared": 0,
    "route": "softmax", "groups": (0, 0), "eps": 0.0, "scale": 1.0, "shw": 1.0, "gate": "split",
    "act": "silu", "limit": 0.0, "alpha": 0.0, "beta": 0.0, "lbeta": 0.0, "won": "out",
    "acc": 0.0, "lg": "f32", "in": "bf16", "y": "bf16",
}
# Router presets: the published models' rules, as docs/problem.md lists them.
ROUTERS = {
    "mixtral": "route=softmax renorm",
    "qwen2-moe": "route=softmax",
    "qwen3": "route=softmax renorm",
    "olmoe": "route=softmax",
    "deepseek-v2-lite": "route=softmax",
    "deepseek-v2": "route=softmax groups=8/3 scale=16",
    "deepseek-v3": "route=sigmoid rbias groups=8/4 gsum2 renorm eps=1e-20 scale=2.5",
    "deepseek-v4": "route=sqrtsoftplus rbias renorm eps=1e-20",
    "kimi-k2": "route=sigmoid rbias renorm eps=1e-20 scale=2.827",
    "glm4": "route=sigmoid rbias renorm eps=1e-20",
    "minimax-m2": "route=sigmoid rbias renorm",
    "gpt-oss": "route=softmax topkfirst",
    "granite": "route=softmax topkfirst",
    "llama4": "route=sigmoid topkfirst",
}


class Problem(dict):
    """A parsed problem string; p["x"], p["w"], p["mid"] are Formats, flags are in p.flags."""

    def __init__(self, text):
        super().__init__(DEFAULTS)
        self.flags = set()
        for f in ("x", "w", "mid"):
            self[f] = Format("bf16")
        self.scheme = None
        self._apply(text)

    def _apply(self, text):
        for word in text.split():
            key, eq, value = word.partition("=")
            if not eq:
                assert key in FLAGS, word
                self.flags.add(key)
            elif key == "scheme":
                self.scheme = value
                for name, f in zip(("x", "w", "mid"), SCHEMES[value]):
                    self[name] = Format.parse(f)
                self["in"] = self["y"] = value if value in ("f32", "f16") else "bf16"
            elif key == "router":
                self._apply(ROUTERS[value])
            elif key in ("x", "w", "mid"):
                self[key] = Format.parse(value)
            elif key == "groups":
                self[key] = tuple(int(v) for v in value.split("/"))
            elif key in INTEGERS:
                self[key] = int(value)
            elif key in FLOATS:
                self[key] = float(value)
            else:
                assert key in DEFAULTS, word
                self[key] = value

    @property
    def gated(self):
        return self["gate"] != "none"

    @property
    def slots(self):
        return self["e"] if self["route"] == "all" else self["k"] + self["shared"]

    @property
    def total(self):
        return self["e"] + self["shared"]

    @property
    def local(self):
        if "map" in self.flags or self["local"]:
            return self["local"]
        return self.total - self["first"]
