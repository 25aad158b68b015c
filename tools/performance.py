#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""performance.py: write docs/performance.md from bench/results/*.json.

Every cell that was measured is shown, also those that miss. Ours beside the fastest peer's time on the
same kind of GPU. A share is floor over time: ours by the ceiling measured beside the cell, and both sides by
the same fixed one (YARDSTICK), each with the bytes of its own routings."""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# Microseconds that were set as goals for an H100, by model and scheme, for these token counts.
GOAL_TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
GOALS = {
    ("qwen3-30b-a3b", "bf16"): (29, 170, 350, 405, 425, 480, 1120),
    ("qwen3-30b-a3b", "fp8-block"): (17, 88, 182, 208, 225, 310, 780),
    ("deepseek-v3-tp8", "fp8-block"): (20, 112, 303, 462, 500, 640, 1650),
    ("deepseek-v3", "fp8-block"): (121, 825, 2340, 3580, 3800, 4150, 6200),
    ("mixtral-8x7b", "bf16"): (238, 845, 925, 935, 1080, 2200, 8300),
}

# What both sides are measured by: bytes a second, and operations a second of 16 bits and of 8.
YARDSTICK = {"read": 3.0e12, "bf16": 798e12, "fp8": 1500e12}


def load(name):
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def about(data, name):
    return [f"`bench/results/{name}`, {data['date']}, {data['cells'][0]['device']}, driver {data['driver']}:", "",
            f"    {data['command']}", ""] + ([data["note"], ""] if "note" in data else [])


def us(value):
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def figure(value):
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share(cell):
    return f"{cell['roof_percent']:.0f}" if cell["roof_percent"] is not None else "-"


def ceilings(cells):
    reads = [c["read_gbps_after"] for c in cells if c["read_gbps_after"]]
    out = [f"Reading measured beside the cells: {min(reads):.0f} to {max(reads):.0f} GB/s."] if reads else []
    for kind in sorted({c["scheme"] for c in cells}):
        dots = [c["dot_tflops"] for c in cells if c["scheme"] == kind and c["dot_tflops"]]
        if dots:
            out.append(f"Products beside {kind}: {figure(min(dots))} to {figure(max(dots))} TFLOP/s.")
    return [" ".join(out), ""]


def by_yardstick(cell):
    dot = YARDSTICK["bf16" if cell["scheme"] == "bf16" else "fp8"]
    return 100e6 * max(cell["bytes"] / YARDSTICK["read"], cell["flop"] / dot) / cell["us_median"]


def gpu_tables(data, peers):
    """The tables, and in how many cells ours is no slower, slower, and has no smaller share of the yardstick."""
    best = {(p["model"], p["scheme"], p["tokens"]): p for p in peers["peers"]}
    lines, won, lost, ahead = [], 0, 0, 0
    groups = {}
    for cell in data["cells"]:
        groups.setdefault((cell["model"], cell["scheme"]), []).append(cell)
    for (model, scheme), cells in groups.items():
        lines += [f"### {model}, {scheme}", "",
                  "| tokens | us | goal us | % of ceiling | % of yardstick | best peer us | its % of yardstick | who | ours / peer |",
                  "|---|---|---|---|---|---|---|---|---|"]
        goals = dict(zip(GOAL_TOKENS, GOALS.get((model, scheme), ())))
        for c in cells:
            p = best.get((model, scheme, c["tokens"]))
            peer = "- | - | - | -"
            if p:
                ratio, its = c["us_median"] / p["us"], 100 * p["floor_us"] / p["us"]
                won, lost, ahead = won + (ratio <= 1), lost + (ratio > 1), ahead + (by_yardstick(c) >= its - 0.05)
                peer = f"{us(p['us'])} | {its:.1f} | {p['peer']} | {ratio:.2f}"
            lines.append(f"| {c['tokens']} | {us(c['us_median'])} | {goals.get(c['tokens'], '-')} | {share(c)} | "
                         f"{by_yardstick(c):.1f} | {peer} |")
        lines.append("")
    return lines, won, lost, ahead


def gpu_summary(data, peers):
    """A line a model and scheme, ours over the fastest peer; then every cell in which ours is slower."""
    best = {(p["model"], p["scheme"], p["tokens"]): p for p in peers["peers"]}
    groups, lost = {}, []
    for c in data["cells"]:
        p = best.get((c["model"], c["scheme"], c["tokens"]))
        if p is None:
            continue
        ratio = c["us_median"] / p["us"]
        groups.setdefault((c["model"], c["scheme"]), []).append(ratio)
        if ratio > 1:
            lost.append((ratio, c, p))
    lines = ["Ours over the fastest peer, over all token counts:", "", "| model | scheme | best | median | worst |", "|---|---|---|---|---|"]
    for (model, scheme), ratios in groups.items():
        ratios.sort()
        lines.append(f"| {model} | {scheme} | {ratios[0]:.2f} | {ratios[len(ratios) // 2]:.2f} | {ratios[-1]:.2f} |")
    lines += ["", "Cells in which ours is slower:", "", "| model | scheme | tokens | ours / peer | us | peer us | who |", "|---|---|---|---|---|---|---|"]
    for ratio, c, p in sorted(lost, key=lambda entry: -entry[0]):
        lines.append(f"| {c['model']} | {c['scheme']} | {c['tokens']} | {ratio:.3f} | {us(c['us_median'])} | {us(p['us'])} | {p['peer']} |")
    return lines + [""]


def gpu_layers(data):
    """A line a model and scheme: microseconds of a whole layer, and its share of the ceiling."""
    tokens = sorted({c["tokens"] for c in data["cells"]})
    groups = {}
    for c in data["cells"]:
        groups.setdefault((c["model"], c["scheme"]), {})[c["tokens"]] = f"{us(c['us_median'])} ({share(c)})"
    lines = ["| model | scheme | " + " | ".join(f"us at {t} (% of ceiling)" for t in tokens) + " |",
             "|---|---|" + "---|" * len(tokens)]
    for (model, scheme), cells in groups.items():
        lines.append(f"| {model} | {scheme} | " + " | ".join(cells.get(t, "-") for t in tokens) + " |")
    return lines + [""]


# Per cent of the nearer ceiling that were set as goals for CPUs at 2048 tokens, by the start of a scheme's name.
CPU_GOALS = [("bf16", 92), ("int8-w8a8", 85), ("int4-w4a8", 65), ("mxfp4-w4a8", 65), ("int4-w4a16", 85), ("mxfp4-w4a16", 85),
             ("fp8-w8a16", 85)]


def cpu_goal(cell):
    if cell["tokens"] <= 4:
        return 97
    if cell["tokens"] >= 2048:
        return next((goal for name, goal in CPU_GOALS if cell["scheme"].startswith(name)), "-")
    rows = cell["slots"] / max(cell["experts_hit"], 1)
    return 85 if 8 <= rows <= 64 and cell["scheme"] in ("bf16", "int8-w8a8") else "-"


def cpu_reached(cells):
    """How many cells have a goal, reach it, or miss it by less than a tenth of it."""
    shares = [c["roof_percent"] / cpu_goal(c) for c in cells if c["roof_percent"] is not None and cpu_goal(c) != "-"]
    if not shares:
        return []
    reached, near = sum(s >= 1 for s in shares), sum(0.9 <= s < 1 for s in shares)
    return [f"Of {len(shares)} cells with a goal {reached} reach it and {near} miss it by less than a tenth; "
            "docs/limits.md says what keeps cells from theirs.", ""]


def cpu_tables(data):
    lines, groups = [], {}
    for cell in data["cells"]:
        groups.setdefault((cell["model"], cell["scheme"]), []).append(cell)
    lines += ["| model | scheme | tokens | us | GB/s | TFLOP/s | us floor | % of ceiling | its goal |", "|---|---|---|---|---|---|---|---|---|"]
    for (model, scheme), cells in groups.items():
        for c in cells:
            lines.append(f"| {model} | {scheme} | {c['tokens']} | {us(c['us_median'])} | {c['gbps']:.1f} | "
                         f"{c['tflops']:.3f} | {us(c['us_floor'])} | {share(c)} | {cpu_goal(c)} |")
    return lines + [""]


def cpu_peers_file(stem):
    """What peers did on the machine of cpu-NAME.json or cpu-NAME-MODEL.json."""
    for name in (stem, stem.rpartition("-")[0]):
        data = load(f"peers-{name}.json") or load(name.replace("cpu-", "peers-", 1) + ".json")
        if data:
            return data
    return None


def cpu_pairs(data, peers):
    """Ours and every peer's by cell, fastest peer first. Ours of the peers' own run where they were measured in turn."""
    ours = {(c["model"], c["scheme"], c["tokens"]): c["us_median"] for c in data["cells"]}
    models, cells = {c["model"] for c in data["cells"]}, {}
    for p in peers["peers"]:
        if p["model"] in models:
            cells.setdefault((p["model"], p["scheme"], p["tokens"]), []).append(p)
    return [(key, found[0].get("ours_us") or ours[key], sorted(found, key=lambda p: p["us"])) for key, found in cells.items()]


def cpu_peers_summary(pairs):
    """A line a scheme, ours over the fastest peer; then the cells in which ours is slower."""
    groups, lost = {}, []
    for (model, scheme, tokens), mine, found in pairs:
        ratio = mine / found[0]["us"]
        groups.setdefault(scheme, []).append(ratio)
        if ratio > 1:
            lost.append(f"{model} {scheme} {tokens} ({ratio:.2f}, {found[0]['peer']})")
    lines = ["| scheme | cells | ours faster | ours / fastest peer: best | median | worst |", "|---|---|---|---|---|---|"]
    for scheme, ratios in groups.items():
        ratios.sort()
        lines.append(f"| {scheme} | {len(ratios)} | {sum(r <= 1 for r in ratios)} | {ratios[0]:.2f} | "
                     f"{ratios[len(ratios) // 2]:.2f} | {ratios[-1]:.2f} |")
    return lines + ["", "Slower than the fastest peer: " + ("; ".join(lost) if lost else "none") + ".", ""]


def cpu_peers(data, peers):
    """Ours beside the fastest way that a peer has on the same machine, and beside the others."""
    if peers is None:
        return []
    pairs = cpu_pairs(data, peers)
    if not pairs:
        return []
    others = any(len(found) > 1 for _, _, found in pairs)
    lines = [peers["about"] + ":", ""] + (cpu_peers_summary(pairs) if others else [])
    lines += ["| model | scheme | tokens | us | peer us | who | ours / peer |" + (" others, us |" if others else ""),
              "|---|---|---|---|---|---|---|" + ("---|" if others else "")]
    for (model, scheme, tokens), mine, found in pairs:
        p = found[0]
        rest = ", ".join(f"{q['peer']} {us(q['us'])}" for q in found[1:])
        lines.append(f"| {model} | {scheme} | {tokens} | {us(mine)} | {us(p['us'])} | {p['peer']} | {mine / p['us']:.2f} |" +
                     (f" {rest} |" if others else ""))
    return lines + [""]


def main():
    lines = ["# Performance", "",
             "Written by tools/performance.py from the files of bench/results; bench/README.md says how times are taken.", ""]
    gpu, peers = load("h100.json"), load("peers-h100.json")
    if gpu:
        tables, won, lost, ahead = gpu_tables(gpu, peers)
        lines += ["## H100", ""] + about(gpu, "h100.json") + ceilings(gpu["cells"])
        lines += [f"Of {won + lost} cells with a peer's time, ours is no slower in {won} and slower in {lost}; its share of the same "
                  f"yardstick (3.0 TB/s; 798 TFLOP/s in bf16, 1500 in fp8) is no smaller in {ahead}. Peers are the fastest of vLLM's "
                  "and SGLang's Triton kernels, torch's grouped_mm, triton_kernels (its fp8 has one scale a tensor, which needs no "
                  "maxima of rows), DeepGEMM and Alpha-MoE, each measured on the same kind of GPU, on another day, from the same "
                  "stages. `% of ceiling` is of reading and products measured beside the cell. Goals are those set for this "
                  "backend; docs/limits.md says what keeps cells from theirs. docs/perf-log.md, section 27, has the closest beside "
                  "their peers in one process: at 8192 tokens ratios move by a tenth with the chip's clock, and some were 1.06 "
                  "to 1.25 there (llama4-scout and mixtral-8x7b in fp8-token, deepseek-v3-ep8 in fp8-block), others 0.95 to "
                  "1.05 (deepseek-v3 and kimi-k2 in fp8-block, mixtral-8x7b in bf16).", ""] + gpu_summary(gpu, peers) + tables
    layers = load("h100-layers.json")
    if layers:
        lines += ["## H100: whole layers", ""] + about(layers, "h100-layers.json")
        lines += ["From logits, with each model's own router and its shared experts, and, as `reduced` is not asked for, results between "
                  "GEMM2 and the combine in f32, which cost deepseek-v3 17 % at 8192 tokens (docs/perf-log.md, 38). Peers' times above are "
                  "without all that, so these cells stand alone.", ""] + gpu_layers(layers)
    for path in sorted(RESULTS.glob("cpu-*.json"), key=lambda p: p.stem):
        data = load(path.name)
        lines += [f"## {path.stem}", ""] + about(data, path.name) + ceilings(data["cells"]) + cpu_reached(data["cells"]) + cpu_tables(data)
        lines += cpu_peers(data, cpu_peers_file(path.stem))
    (ROOT / "docs" / "performance.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
