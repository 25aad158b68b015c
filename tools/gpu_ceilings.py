#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gpu_ceilings.py [seconds]: what the vendor's library sustains on this GPU now, as one JSON object.

Products of 8192 x 8192 x 8192 in bf16 and in e4m3, the latter with fast and with precise accumulation, each
repeated for so many seconds (0.5) on normal random values, and copies within the memory. With each the median
SM clock and power that nvidia-smi saw meanwhile, and the share of its samples at the power cap. Needs PyTorch
with CUDA. A chip at its power cap has no fixed peak: hold long kernels against what lasts, on the same day."""
import json
import statistics
import subprocess
import sys
import threading
import time

import torch

SIZE = 8192
FIELDS = "clocks.sm,power.draw.instant,clocks_event_reasons.sw_power_cap"


class Sampler:
    """Clock, power and power cap of device 0, ten times a second, by nvidia-smi."""

    def __init__(self):
        self.samples = []
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "-lms", "100"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except OSError:
            self.process = None
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            words = [word.strip() for word in line.split(",")]
            try:
                self.samples.append((time.monotonic(), float(words[0]), float(words[1]), words[2] == "Active"))
            except (ValueError, IndexError):
                pass  # "[N/A]": a device that does not say

    def between(self, start, end):
        """What was seen in that time, or nothing."""
        seen = [sample for sample in self.samples if start <= sample[0] <= end]
        if not seen:
            return {}
        return {
            "sm_mhz": statistics.median(sample[1] for sample in seen),
            "watt": statistics.median(sample[2] for sample in seen),
            "power_capped": round(sum(sample[3] for sample in seen) / len(seen), 2),
        }

    def close(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def sustain(call, seconds):
    """The times of single calls in ms, back to back for so long."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    end = time.monotonic() + seconds
    times = []
    while time.monotonic() < end:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        for _ in range(4):
            call()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 4)
    return times


def workloads():
    """(name, unit, work of a call in 1e9 of the unit's, call)"""
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    product = 2 * SIZE**3 / 1e9

    def e4m3(fast):
        return torch._scaled_mm(
            a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast)

    source = torch.empty(1 << 31, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    return [
        ("bf16", "tflops", product, lambda: a @ b.t()),
        ("e4m3 fast", "tflops", product, lambda: e4m3(True)),
        ("e4m3 precise", "tflops", product, lambda: e4m3(False)),
        ("copy", "tb_s", 2 * source.numel() / 1e9, lambda: target.copy_(source)),
    ]


def measure(seconds=0.5):
    """A dictionary of what each workload sustained."""
    sampler = Sampler()
    time.sleep(0.3)
    rows = {}
    for name, unit, work, call in workloads():
        start = time.monotonic()
        times = sustain(call, seconds)
        rows[name] = {
            unit: round(work / statistics.median(times), 3 if unit == "tb_s" else 1),
            "best": round(work / min(times), 3 if unit == "tb_s" else 1),
            "samples": len(times),
            **sampler.between(start + 0.1, time.monotonic()),
        }
    sampler.close()
    return {
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "size": SIZE,
        "seconds": seconds,
        "ceilings": rows,
    }


def main():
    if len(sys.argv) > 2 or not torch.cuda.is_available():
        sys.exit(__doc__ if len(sys.argv) > 2 else "gpu_ceilings: PyTorch finds no CUDA device")
    print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) == 2 else 0.5)))


if __name__ == "__main__":
    main()
