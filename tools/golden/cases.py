# SPDX-License-Identifier: MIT
"""The list of golden cases: (name, problem string, seed, options). Append only, so that stored
outputs keep their place."""
from golden.formats import SCHEMES, Format
from golden.problem import ROUTERS

ACTS = [f"act={a}" for a in ("silu", "gelu", "gelu-tanh", "relu", "relu2", "swiglu-oai", "situv2",
                             "identity")] + ["act=silu limit=1.5"]
POSITIONS = ("out", "input", "gemm1", "act")
SMALL = "t=4 e=5 k=2 h=72 i=40"
BLOCKS = "t=3 e=3 k=2 h=160 i=136"  # crosses the edge of a 128-column block


def shape(scheme):
    return BLOCKS if scheme == "fp8-block" else SMALL


def matrix():
    """Every scheme x activation x weight position."""
    for scheme in SCHEMES:
        for act in ACTS:
            for won in POSITIONS:
                name = f"{scheme}/{act[4:].replace(' ', '-')}/{won}"
                yield name, f"{shape(scheme)} scheme={scheme} {act} won={won} y=f32", "plain"


def layouts():
    """Every scheme through the layer's other options."""
    for scheme, formats in SCHEMES.items():
        x, w, mid = (Format.parse(f) for f in formats)
        size, base = shape(scheme), f"scheme={scheme}"
        if w.scaling != "b128":
            words = "gate=interleaved b1 b2 act=swiglu-oai y=f32"
            yield f"{scheme}/interleaved", f"{size} {base} {words}", "plain"
        yield f"{scheme}/ungated", f"{size} {base} gate=none act=relu2 b1 y=f32", "plain"
        yield f"{scheme}/bias", f"{size} {base} b1 b2 won=gemm1 y=f32", "plain"
        yield f"{scheme}/rough", f"{size} {base} act=gelu y=f32", "rough"
        yield f"{scheme}/pads", f"{size} {base} hpad=5 ipad=3 b1 b2 y=f32", "rough"
        yield f"{scheme}/accumulate", f"{size} {base} acc=0.75", "plain"
        yield f"{scheme}/noreduce", f"{size} {base} noreduce y=f16", "plain"
        yield f"{scheme}/slice", f"{size} k=3 {base} first=1 local=2 y=f32", "plain"
        yield f"{scheme}/map", f"{size} k=3 {base} map local=2 y=f32", "plain"
        yield f"{scheme}/rough-slice", f"{size} t=6 k=3 {base} first=2 b2 y=f32", "rough"
        yield f"{scheme}/shared", f"{size} {base} shared=1 y=f32", "plain"
        if mid.quantized:
            yield f"{scheme}/midround", f"{size} {base} midround b1 y=f32", "plain"
        if x.quantized and x.scaling != "smooth":
            yield f"{scheme}/prequantised", f"{size} {base} xq y=f32", "rough"
            yield f"{scheme}/in-f32", f"{size} {base} in=f32 y=f32", "plain"
            yield f"{scheme}/in-f16", f"{size} {base} in=f16 y=f16", "plain"
    for scheme in ("f32", "fp8-token", "mxfp4-w4a4"):
        yield f"{scheme}/all", f"t=4 e=3 k=1 h=72 i=40 scheme={scheme} route=all y=f32", "all"
    for scheme in ("f32", "bf16", "fp8-tensor", "fp8-token", "int8-smooth", "int4-w4a16", "mxfp8"):
        words = "t=16 e=4 k=1 cap=4 sort=batched h=72 i=40 b1 b2"
        yield f"{scheme}/batched", f"{words} scheme={scheme} y=f32", "batched"
    yield "nvfp4-w4a4/static-prequantised", (
        f"{SMALL} scheme=nvfp4-w4a4 x=e2m1/nv16:static mid=e2m1/nv16:static xq y=f32"), "plain"
    words = f"{SMALL} k=3 scheme=fp8-tensor won=input first=2 local=1 y=f32"
    yield "fp8-tensor/input-slice", words, "plain"
    yield "fp8-tensor/input-rough", f"{SMALL} scheme=fp8-tensor won=input y=f32", "rough"
    yield "bf16/odd", "t=3 e=3 k=2 h=37 i=29 scheme=bf16 y=f32", "plain"
    yield "int8-w8a8/odd", "t=3 e=3 k=2 h=37 i=29 scheme=int8-w8a8 y=f32", "plain"
    yield "fp8-block/joint", f"{BLOCKS} scheme=fp8-block joint y=f32", "plain"
    yield "fp8-block/joint-rough", f"{BLOCKS} scheme=fp8-block joint b1 b2 act=gelu y=f32", "rough"
    yield "f32/hot", "t=9 e=5 k=1 h=40 i=33 scheme=f32 y=f32", "plain"


def fp8_formats():
    for d in ("e4m3fnuz", "e5m2"):
        yield "fp8-tensor", f"x={d}/tensor w={d}/tensor mid={d}/tensor"
        yield "fp8-token", f"x={d}/token w={d}/channel mid={d}/token"
        yield "fp8-block", f"x={d}/g128 w={d}/b128 mid={d}/g128"
        yield "fp8-w8a16", f"w={d}/channel"
        yield "mxfp8", f"x={d}/mx32 w={d}/mx32 mid={d}/mx32"
        yield "mxfp4-mxfp8", f"x={d}/mx32 mid={d}/mx32"
    yield "fp8-tensor", "x=e4m3/tensor:static mid=e4m3/tensor:static"
    yield "fp8-tensor", "x=e4m3fnuz/tensor:static w=e4m3fnuz/tensor mid=e4m3fnuz/tensor:static"
    yield "fp8-token", "x=e5m2/token mid=e5m2/token"
    yield "fp8-token", "x=e4m3/g32 mid=e4m3/g16"
    yield "fp8-block", "x=e4m3/g64 mid=e4m3/g64"
    yield "fp8-block", "x=e4m3/token mid=e4m3/token"
    yield "fp8-w8a16", "w=e4m3/tensor"
    yield "fp8-w8a16:block", "w=e4m3/b128"


def integer_formats():
    for r in ("trunc", "away"):
        yield "int8-w8a8", f"x=i8/token:{r} mid=i8/token:{r}"
        yield "int8-smooth", f"x=i8/smooth:{r} mid=i8/smooth:{r}"
    yield "int8-w8a8", "x=i8/g32 w=i8/g32 mid=i8/g32"
    yield "int8-w8a8", "x=i8/tensor w=i8/tensor mid=i8/tensor"
    yield "int8-w8a8", "x=i8/tensor:static w=i8/channel mid=i8/tensor:static"
    for g in (16, 32, 64, 128):
        yield "int8-w8a16", f"w=i8/g{g}"
        yield "int8-w8a16", f"w=u8/g{g}:zp"
        yield "int4-w4a16", f"w=i4/g{g}"
        yield "int4-w4a16", f"w=u4/g{g}"
        yield "int4-w4a16", f"w=u4/g{g}:zp"
        yield "int4-w4a8", f"w=u4/g{g}:zp"
    for d in ("i4", "u4", "u4:zp"):
        name, _, zp = d.partition(":")
        yield "int4-w4a16", f"w={name}/channel{':zp' if zp else ''}"
    yield "int8-w8a16", "w=u8/channel"
    yield "int8-w8a16", "w=u8/channel:zp"
    for d in ("bf16", "f16"):
        yield "int4-w4a16", f"w=i4/g32:{d}"
        yield "int4-w4a16", f"w=u4/g64:zp:{d}"
    yield "int4-w4a8", "x=e4m3/token mid=e4m3/token"
    yield "int4-w4a8", "x=e4m3fnuz/token mid=e4m3fnuz/token"


def micro_formats():
    for rule in ("down", "even", "ceil"):
        yield "mxfp4-w4a4", f"x=e2m1/mx32:{rule} mid=e2m1/mx32:{rule}"
        yield "mxfp8", f"x=e4m3/mx32:{rule} mid=e4m3/mx32:{rule}"
        yield "mxfp8", f"x=e5m2/mx32:{rule} w=e5m2/mx32 mid=e5m2/mx32:{rule}"
        yield "mxfp4-mxfp8", f"x=e4m3fnuz/mx32:{rule} mid=e4m3fnuz/mx32:{rule}"
    yield "mxfp4-w4a4", "x=e2m1/mx32:away mid=e2m1/mx32:away"
    yield "mxfp4-w4a8", "x=e4m3/tensor mid=e4m3/tensor"
    yield "mxfp4-w4a8", "x=e5m2/tensor:static mid=e5m2/tensor:static"
    yield "mxfp4-w4a8", "x=i8/token mid=i8/token"
    yield "nvfp4-w4a4", "x=e2m1/nv16:static mid=e2m1/nv16:static"
    yield "nvfp4-w4a4", "x=e2m1/nv16:away mid=e2m1/nv16:away"


def variants():
    """Formats beyond a scheme's defaults: other element types, groups, zero points, roundings."""
    for source in (fp8_formats, integer_formats, micro_formats):
        for scheme, words in source():
            scheme, _, block = scheme.partition(":")
            wide = block or scheme == "fp8-block" or "g64" in words or "g128" in words
            size = BLOCKS if wide else SMALL
            name = f"{scheme}/{words.replace(' ', ',')}"
            yield name, f"{size} scheme={scheme} {words} y=f32", "plain"
    for scheme in ("f32", "bf16", "f16"):
        for y in ("f32", "f16", "bf16"):
            yield f"{scheme}/y-{y}", f"{SMALL} scheme={scheme} y={y} act=gelu-tanh", "plain"
    for act, words in (("swiglu-oai", "alpha=1.5 beta=0.5 limit=2"), ("situv2", "beta=2 lbeta=3"),
                       ("situv2", "beta=3 lbeta=-1"), ("swiglu-oai", "limit=-1"),
                       ("gelu", "limit=0.75"), ("identity", "limit=1")):
        name = f"bf16/{act}-{words.replace(' ', '-')}"
        yield name, f"{SMALL} scheme=bf16 act={act} {words} y=f32", "plain"
    for act in ("silu", "gelu", "gelu-tanh", "relu", "swiglu-oai", "situv2", "identity"):
        yield f"f32/ungated-{act}", f"{SMALL} scheme=f32 gate=none act={act} b1 b2", "plain"


def row_formats():
    """Every format of activations."""
    for d in ("e4m3", "e4m3fnuz", "e5m2"):
        yield from (f"{d}/{s}" for s in ("token", "g16", "g32", "g64", "g128", "mx32", "mx32:down",
                                         "mx32:even", "mx32:ceil"))
        yield from (f"{d}/tensor", f"{d}/tensor:static")
    for r in ("", ":trunc", ":away"):
        yield from (f"i8/token{r}", f"i8/g32{r}", f"i8/tensor{r}", f"i8/tensor:static{r}")
    for r in ("", ":away"):
        yield from (f"e2m1/mx32{m}{r}" for m in ("", ":down", ":even", ":ceil"))
        yield from (f"e2m1/nv16{r}", f"e2m1/nv16:static{r}")


def weight_formats():
    """Every format of weights."""
    for d in ("e4m3", "e4m3fnuz", "e5m2"):
        yield from (f"{d}/{s}" for s in ("tensor", "channel", "b128", "g32", "g128", "mx32",
                                         "mx32:even"))
    for d in ("i8", "u8", "i4", "u4"):
        yield from (f"{d}/{s}" for s in ("channel", "g16", "g32", "g64", "g128", "g32:bf16",
                                         "g32:f16"))
    yield from ("i8/tensor", "u8/tensor", "f16", "bf16", "f32")
    for d in ("u8", "u4"):
        yield from (f"{d}/{s}" for s in ("channel:zp", "g16:zp", "g32:zp", "g128:zp",
                                         "g32:zp:bf16", "g64:zp:f16"))
    yield from (f"e2m1/{s}" for s in ("mx32", "mx32:down", "mx32:even", "mx32:ceil", "nv16"))


def quantisers():
    """kind, name, problem string, seed, inputs: rows quantised as x, matrices as w."""
    n = 7000
    for f in row_formats():
        broken = "/tensor" not in f or "static" in f
        yield "rows", f"rows/{f}", f"t=10 h=140 i=1 x={f}", n, "broken" if broken else "finite"
        n += 1
    for f in weight_formats():
        rows = 132 if "b128" in f else 10
        yield "matrix", f"matrix/{f}", f"t={rows} h=140 i=1 w={f}", n, "finite"
        n += 1


def layers():
    for n, (name, problem, ids) in enumerate([*matrix(), *layouts(), *variants()]):
        yield name, problem, 1000 + n, ids


R = "t=8 e=16 k=4"


def routers():
    """name, problem, logits kind."""
    for preset in ROUTERS:
        k = 1 if preset == "llama4" else 4
        for kind in ("real", "eighths"):
            lg = "f32" if kind == "real" else "bf16"
            yield f"{preset}/{kind}", f"t=8 e=16 k={k} router={preset} lg={lg}", kind
    yield "deepseek-v3/e32", "t=8 e=32 k=6 router=deepseek-v3", "real"
    yield "deepseek-v2/e32", "t=8 e=32 k=6 router=deepseek-v2", "real"
    for score in ("softmax", "sigmoid", "sqrtsoftplus", "raw"):
        route = f"{R} route={score}"
        yield f"{score}/plain", route, "real"
        yield f"{score}/renorm", f"{route} renorm", "real"
        yield f"{score}/renorm-eps", f"{route} renorm eps=0.125", "real"
        yield f"{score}/scale", f"{route} scale=2.5", "real"
        yield f"{score}/topkfirst", f"{route} topkfirst", "real"
        yield f"{score}/topkfirst-renorm", f"{route} topkfirst renorm scale=0.5", "real"
        yield f"{score}/rbias", f"{route} rbias", "real"
        yield f"{score}/rbias-renorm", f"{route} rbias renorm scale=2.5 eps=1e-20", "real"
        yield f"{score}/groups", f"{route} groups=4/2", "real"
        yield f"{score}/groups-rbias", f"{route} groups=4/2 rbias", "real"
        yield f"{score}/gsum2", f"{route} groups=4/2 gsum2", "real"
        yield f"{score}/gsum2-rbias", f"{route} groups=4/2 gsum2 rbias renorm", "real"
        yield f"{score}/ties", route, "ties"
        yield f"{score}/tiehigh", f"{route} tiehigh", "ties"
        yield f"{score}/groups-ties", f"{route} groups=4/2", "ties"
        yield f"{score}/groups-tiehigh", f"{route} groups=4/2 tiehigh", "ties"
        yield f"{score}/gsum2-tiehigh", f"{route} groups=4/2 gsum2 tiehigh", "ties"
        yield f"{score}/wild", route, "wild"
        yield f"{score}/wild-tiehigh", f"{route} tiehigh renorm", "wild"
        yield f"{score}/wild-rbias", f"{route} rbias", "wild"
        yield f"{score}/wild-groups", f"{route} groups=4/2", "wild"
        yield f"{score}/shared", f"{route} shared=2 shw=0.5 scale=2", "real"
        yield f"{score}/shsigmoid", f"{route} shared=1 shsigmoid renorm", "real"
        yield f"{score}/hash", f"{route} hash", "real"
        yield f"{score}/hash-renorm", f"{route} hash renorm scale=1.5", "real"
        yield f"{score}/rx", f"{route} h=72 i=40 rx scheme=f32", "real"
        yield f"{score}/rx-bf16", f"{route} h=72 i=40 rx renorm shared=1 shsigmoid", "real"
        for lg in ("bf16", "f16"):
            yield f"{score}/lg-{lg}", f"{route} lg={lg}", "eighths"
    yield "softmax/one-expert", "t=8 e=1 k=1 route=softmax", "real"
    yield "softmax/all-chosen", "t=8 e=7 k=7 route=softmax renorm", "ties"
    yield "sigmoid/e33", "t=8 e=33 k=5 route=sigmoid", "real"
    yield "softmax/e256", "t=8 e=256 k=8 route=softmax renorm", "real"
    yield "deepseek-v3/e256", "t=8 e=256 k=8 router=deepseek-v3", "real"
    yield "kimi-k2/e384", "t=8 e=384 k=8 router=kimi-k2", "real"


def router_cases():
    for n, (name, problem, kind) in enumerate(routers()):
        yield name, problem, 5000 + n, kind
