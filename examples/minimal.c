/* SPDX-License-Identifier: MIT
 * A Mixture-of-Experts layer: each of 2 tokens goes through the best 2 of 4 experts. */
#include <cmoe/cmoe.h>
#include <stdio.h>

int main(void)
{
    float x[2][2] = {{1, 2}, {2, -1}}, logits[2][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}}, y[2][2];
    float w1[16] = {1, 0, 0, 1, 2, -1, 1, 1, 0, 1, 1, 0, -1, 2, 1, -1}; /* [expert, gate|up, x] */
    float w2[8] = {1, -1, 2, 0, 0, 1, -1, 2};                           /* [expert, y, gate*up] */
    const cmoe_fused fused1 = {.data = w1, .experts = 4, .rows = 2, .cols = 2};
    const cmoe_fused fused2 = {.data = w2, .experts = 4, .rows = 2, .cols = 1};
    cmoe_matrix gate_up[4], down[4];
    const cmoe_weights_desc desc = {.gate_up = gate_up, .down = down};
    const cmoe_tensors t = {.n_tokens = 2, .logits = logits, .x = x, .y = y};
    static _Alignas(256) char workspace[1 << 20]; /* cmoe_plan_workspace_size() says how much */
    cmoe_context *ctx;
    cmoe_device *cpu;
    cmoe_weights *w;
    cmoe_plan *plan;
    cmoe_problem p;
    cmoe_problem_init(&p);
    if (cmoe_problem_parse(&p, "t=2 e=4 k=2 h=2 i=1 router=qwen3 scheme=f32") ||
        cmoe_matrix_split(&fused1, p.w, gate_up) || cmoe_matrix_split(&fused2, p.w, down) ||
        cmoe_context_create(NULL, &ctx) || cmoe_device_open(ctx, "cpu", &cpu) ||
        cmoe_weights_create(cpu, &p, &desc, &w) || cmoe_plan_create(cpu, &p, w, NULL, &plan) ||
        cmoe_execute(plan, &t, workspace, sizeof workspace, NULL))
        return puts(cmoe_last_error()), 1;
    printf("%.4f %.4f\n%.4f %.4f\n", y[0][0], y[0][1], y[1][0], y[1][1]);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    cmoe_device_close(cpu);
    cmoe_context_destroy(ctx);
}
