/* SPDX-License-Identifier: MIT
 * Presets of models and routers, as problem strings: the parser is the only code that applies them.
 *
 * A preset first puts the fields it is about back to their defaults, so that it means the same
 * wherever it stands in a string. */
#include "core/fail.h"

#include <cmoe/problem.h>
#include <string.h>

struct preset {
    const char *name;
    const char *text;
};

/* clang-format off */
static const struct preset routers[] = {
    {"mixtral",          "route=softmax renorm"},
    {"qwen2-moe",        "route=softmax"},
    {"qwen3",            "route=softmax renorm"},
    {"olmoe",            "route=softmax"},
    {"deepseek-v2-lite", "route=softmax"},
    {"deepseek-v2",      "route=softmax groups=8/3 scale=16"},
    {"deepseek-v3",      "route=sigmoid rbias groups=8/4 gsum2 renorm eps=1e-20 scale=2.5"},
    {"deepseek-v4",      "route=sqrtsoftplus rbias renorm"},
    {"glm4",             "route=sigmoid rbias renorm eps=1e-20"},
    {"kimi-k2",          "route=sigmoid rbias renorm eps=1e-20 scale=2.827"},
    {"minimax-m2",       "route=sigmoid rbias renorm"},
    {"gpt-oss",          "route=softmax topkfirst"},
    {"granite",          "route=softmax topkfirst"},
    {"llama4",           "route=sigmoid won=input"},
};

/* One layer's experts, with the shared experts that have the routed experts' size fused in. The
 * weights of -ep8 are one rank's of eight; shared experts are not part of its slice. */
static const struct preset models[] = {
    {"mixtral-8x7b",     "e=8 k=2 h=4096 i=14336 router=mixtral scheme=bf16"},
    {"mixtral-8x22b",    "e=8 k=2 h=6144 i=16384 router=mixtral scheme=bf16"},
    {"qwen3-30b-a3b",    "e=128 k=8 h=2048 i=768 router=qwen3 scheme=bf16"},
    {"qwen3-235b-a22b",  "e=128 k=8 h=4096 i=1536 router=qwen3 scheme=bf16"},
    {"olmoe",            "e=64 k=8 h=2048 i=1024 router=olmoe scheme=bf16"},
    {"deepseek-v2-lite", "e=64 k=6 h=2048 i=1408 shared=2 router=deepseek-v2-lite scheme=bf16"},
    {"deepseek-v2",      "e=160 k=6 h=5120 i=1536 shared=2 router=deepseek-v2 scheme=bf16"},
    {"deepseek-v3",      "e=256 k=8 h=7168 i=2048 shared=1 router=deepseek-v3 scheme=fp8-block"},
    {"deepseek-v3-tp8",  "e=256 k=8 h=7168 i=256 shared=1 router=deepseek-v3 scheme=fp8-block"},
    {"deepseek-v3-ep8",  "e=256 k=8 h=7168 i=2048 local=32 router=deepseek-v3 scheme=fp8-block"},
    {"gpt-oss-20b",      "e=32 k=4 h=2880 i=2880 gate=interleaved act=swiglu-oai b1 b2 "
                         "router=gpt-oss scheme=mxfp4-w4a16"},
    {"gpt-oss-120b",     "e=128 k=4 h=2880 i=2880 gate=interleaved act=swiglu-oai b1 b2 "
                         "router=gpt-oss scheme=mxfp4-w4a16"},
    {"kimi-k2",          "e=384 k=8 h=7168 i=2048 shared=1 router=kimi-k2 scheme=fp8-block"},
    {"llama4-scout",     "e=16 k=1 h=5120 i=8192 shared=1 router=llama4 scheme=bf16"},
    {"glm-4.5-air",      "e=128 k=8 h=4096 i=1408 shared=1 router=glm4 scheme=bf16"},
    {"minimax-m2",       "e=256 k=8 h=3072 i=1536 router=minimax-m2 scheme=fp8-block"},
};
/* clang-format on */

static const char router_reset[] =
    "route=softmax groups=0 eps=0 scale=1 shw=1 won=out renorm=0 topkfirst=0 rbias=0 gsum2=0 "
    "tiehigh=0 hash=0 shsigmoid=0";
static const char model_reset[] =
    "hpad=0 ipad=0 first=0 local=0 shared=0 gate=split act=silu limit=0 alpha=0 beta=0 lbeta=0 "
    "b1=0 b2=0";

enum {
    N_ROUTERS = sizeof routers / sizeof routers[0],
    N_MODELS = sizeof models / sizeof models[0],
};

const char *cmoe_router_name(int i)
{
    return i >= 0 && i < N_ROUTERS ? routers[i].name : NULL;
}

const char *cmoe_model_name(int i)
{
    return i >= 0 && i < N_MODELS ? models[i].name : NULL;
}

static cmoe_status apply(cmoe_problem *p, const char *kind, const struct preset *table, int n,
                         const char *reset, const char *name)
{
    if (!p || !name) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", p ? "name" : "p");
    }
    for (int i = 0; i < n; i++) {
        if (strcmp(table[i].name, name) != 0) continue;
        cmoe_problem changed = *p;
        CMOE_TRY(cmoe_problem_parse(&changed, reset));
        CMOE_TRY(cmoe_problem_parse(&changed, table[i].text));
        *p = changed;
        return CMOE_OK;
    }
    return CMOE_FAIL(CMOE_ERR_INVALID,
                     "There is no %s preset \"%.60s\"; \"cmoe list --%ss\" prints them.", kind,
                     name, kind);
}

cmoe_status cmoe_problem_router(cmoe_problem *p, const char *name)
{
    return apply(p, "router", routers, N_ROUTERS, router_reset, name);
}

cmoe_status cmoe_problem_model(cmoe_problem *p, const char *name)
{
    return apply(p, "model", models, N_MODELS, model_reset, name);
}
