#!/usr/bin/env python3
"""Train tiny-moe, the small byte-level Qwen3-MoE model of the demo, and its baselines.

The text is the King James Bible as Debian's packages bible-kjv (the reader)
and bible-kjv-text (the text, public domain) ship it:

    apt-get install bible-kjv
    bible -f 'ge1:1-re22:21' > kjv.txt
    tools/train_tiny_moe.py prepare kjv.txt --data DATA --model models/tiny-moe
    tools/train_tiny_moe.py ngram --data DATA
    tools/train_tiny_moe.py train --data DATA --out OUT
    tools/tiny_moe_oracle.py --model OUT/tiny-moe

`prepare` needs the standard library alone, `ngram` numpy, and `train` PyTorch,
safetensors and transformers (5.x) and, to be done in minutes, a GPU.

The weights are saved under the names that Qwen3-MoE checkpoints use, one tensor
per expert, and the loss reported at the end is that of the saved bf16
checkpoint as transformers runs it.
"""

import argparse
import json
import math
import os
import shutil
import time

from tiny_moe_model import WINDOW, build_model, parameter_counts, save
from tiny_moe_text import SEED, ngram, ngram_bits, prepare

STRIDE = 256  # evaluation scores each byte with at least WINDOW - STRIDE bytes of
              # context (fewer only at the file's start)


def say(*args):
    print(*args, flush=True)


def bits_per_byte(logits_of, text, device, limit=None, batch=32):
    """Mean bits per byte of text[1:], in windows of WINDOW bytes that move by STRIDE."""
    import torch
    from torch.nn import functional as F

    ids = torch.frombuffer(bytearray(text[:limit]), dtype=torch.uint8).long().to(device)
    starts = list(range(0, max(1, len(ids) - WINDOW + STRIDE), STRIDE))
    total, count = 0.0, 0
    with torch.no_grad():
        # The first window scores all its bytes, the others those past the overlap.
        groups = {}
        for s in starts:
            groups.setdefault(min(WINDOW, len(ids) - s), []).append(s)
        for length, members in groups.items():
            for i in range(0, len(members), batch):
                part = members[i:i + batch]
                x = torch.stack([ids[s:s + length] for s in part])
                logits = logits_of(x)[:, :-1].float()
                nats = F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
                for row, s in zip(nats, part):
                    scored = row if s == 0 else row[WINDOW - STRIDE - 1:]
                    total += scored.double().sum().item()
                    count += len(scored)
    assert count == len(ids) - 1, (count, len(ids))
    return total / count / math.log(2)


def train_one(kind, dropout, data, args):
    """Train one model; returns it with the weights of its best validation loss."""
    import torch

    torch.manual_seed(SEED)
    device = args.device
    model = build_model(kind, dropout).to(device)
    text = torch.frombuffer(bytearray(data["train"]), dtype=torch.uint8).to(device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    step_loss = model.loss
    if args.compile and device == "cuda":
        step_loss = torch.compile(model.loss)
    span = torch.arange(WINDOW + 1, device=device)

    def valid_loss():
        model.eval()
        with torch.autocast(device, torch.bfloat16):
            bits = bits_per_byte(lambda x: model(x)[0], data["valid"], device, limit=args.eval_bytes)
        model.train()
        return bits

    best, best_state, history, begin = float("inf"), None, [], None
    model.train()
    step = 0
    while True:
        # The schedule follows the steps done or, on a slow machine, the time spent.
        spent = 0.0 if begin is None else time.time() - begin
        progress = max(step / args.steps, spent / args.max_seconds)
        if progress >= 1 or step % args.eval_every == 0:
            bits = valid_loss()
            history.append([step, round(bits, 4)])
            say(f"{kind} dropout {dropout} step {step}: validation {bits:.4f} bits/byte, {spent:.0f} s")
            if bits < best:
                best = bits
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            if progress >= 1:
                break
        rate = args.lr * min(1.0, (step + 1) / args.warmup) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(0, len(text) - WINDOW - 1, (args.batch, 1), device=device)
        ids = text[at + span].long()
        try:
            with torch.autocast(device, torch.bfloat16):
                loss, entropy = step_loss(ids)
        except Exception as error:  # a compiler that fails must not cost the run
            if step_loss == model.loss:
                raise
            say(f"torch.compile failed, going on without it: {type(error).__name__}: {str(error)[:300]}")
            step_loss = model.loss
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if begin is None and step == 3:
            begin = time.time()  # not counting the compiler's time
        if step % 250 == 0:
            say(f"{kind} dropout {dropout} step {step}: train {entropy.item() / math.log(2):.4f} bits/byte")
    seconds = time.time() - begin if begin else 0.0
    model.load_state_dict(best_state)
    model.eval()
    return model, {"kind": kind, "dropout": dropout, "steps": step, "seconds": round(seconds, 1),
                   "batch": args.batch, "valid_bits": best, "history": history}


def evaluate(model, data, args):
    """Held-out bits per byte, in float32 with the weights rounded to bf16; expert shares."""
    import torch

    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in kept.items()})
    shares = []

    def logits_of(x):
        logits, _, share = model(x)
        if share is not None:
            shares.append(share)
        return logits

    bits = bits_per_byte(logits_of, data["heldout"], args.device, limit=args.eval_bytes)
    model.load_state_dict(kept)
    share = torch.stack(shares).mean(0).tolist() if shares else None
    return bits, share


def transformers_report(folder, data, args):
    """Loss and a sample of the saved checkpoint as transformers runs it."""
    import torch
    from tiny_moe_oracle import load

    model = load(folder, torch.float32).to(args.device)
    bits = bits_per_byte(lambda x: model(x).logits, data["heldout"], args.device, limit=args.eval_bytes)
    torch.manual_seed(SEED)
    ids = list(b"And it came to pass")
    with torch.no_grad():
        for _ in range(args.sample):
            x = torch.tensor([ids[-WINDOW:]], device=args.device)
            p = torch.softmax(model(x).logits[0, -1].float() / 0.7, -1)
            ids.append(int(torch.multinomial(p, 1)))
    return bits, bytes(ids).decode("utf-8", "replace")


def train(args):
    import torch
    import transformers

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if args.smoke:
        args.steps, args.eval_every, args.eval_bytes, args.sample = 4, 2, 4096, 8
        args.dropouts = args.dropouts[:1]
    began = time.time()
    data = {name: open(os.path.join(args.data, name + ".txt"), "rb").read()
            for name in ("train", "valid", "heldout")}
    folder = os.path.join(args.out, "tiny-moe")
    os.makedirs(folder, exist_ok=True)
    for name in ("heldout.txt", "calibration.txt", "prompts.txt"):
        shutil.copy(os.path.join(args.data, name), folder)

    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "arguments": {k: v for k, v in vars(args).items() if isinstance(v, (int, float, list))},
        "parameters": {kind: dict(zip(("total", "active"), parameter_counts(kind)))
                       for kind in ("moe", "dense")},
        "runs": [],
    }

    def record():
        with open(os.path.join(args.out, "metrics.json"), "w", encoding="ascii") as f:
            f.write(json.dumps(result, indent=1) + "\n")

    # Every rate of dropout for both kinds; validation chooses one for each.
    best = {}
    for dropout in args.dropouts:
        for kind in args.kinds:
            left = args.budget_seconds - (time.time() - began)
            if kind in best and left < args.max_seconds:
                say(f"no time left for {kind} with dropout {dropout}")
                continue
            model, run = train_one(kind, dropout, data, args)
            run["heldout_bits"], run["expert_share"] = evaluate(model, data, args)
            result["runs"].append(run)
            say(f"{kind} dropout {dropout}: validation {run['valid_bits']:.4f}, held-out "
                f"{run['heldout_bits']:.4f} bits/byte after {run['steps']} steps, {run['seconds']} s")
            if kind not in best or run["valid_bits"] < best[kind]["valid_bits"]:
                best[kind] = run
                if kind == "moe":
                    save(model, folder)
            record()
    result["chosen"] = {kind: {k: run[k] for k in ("dropout", "valid_bits", "heldout_bits")}
                        for kind, run in best.items()}
    record()
    result["ngram"] = {"5": ngram_bits(data["train"], data["heldout"], 5)} if args.smoke else ngram(args)
    record()
    if "moe" in best:
        bits, sample = transformers_report(folder, data, args)
        result["moe_heldout_bits_transformers"], result["sample"] = bits, sample
        say(f"saved checkpoint under transformers: {bits:.4f} bits/byte\n{sample}")
        record()
    say(f"all done in {time.time() - began:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("prepare", help="split the text")
    p.add_argument("text", help="output of bible -f 'ge1:1-re22:21'")
    p.add_argument("--data", required=True, help="folder for train.txt, valid.txt, heldout.txt")
    p.add_argument("--model", required=True, help="folder for heldout.txt, calibration.txt, prompts.txt")
    p = commands.add_parser("ngram", help="losses of n-gram byte models")
    p.add_argument("--data", required=True)
    p = commands.add_parser("train", help="train the MoE and the dense baseline, save and report")
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--kinds", nargs="+", default=["moe", "dense"], choices=("moe", "dense"))
    p.add_argument("--dropouts", nargs="+", type=float, default=[0.1, 0.05, 0.2, 0.0])
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--eval-every", type=int, default=500)
    p.add_argument("--eval-bytes", type=int, default=None, help="evaluate on fewer bytes")
    p.add_argument("--sample", type=int, default=400, help="bytes of sample text")
    p.add_argument("--max-seconds", type=float, default=70, help="time for one model's training")
    p.add_argument("--budget-seconds", type=float, default=600, help="time for all of them")
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--smoke", action="store_true", help="a few steps of everything")
    args = parser.parse_args()
    {"prepare": prepare, "ngram": ngram, "train": train}[args.command](args)


if __name__ == "__main__":
    main()
