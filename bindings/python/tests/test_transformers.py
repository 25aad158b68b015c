# SPDX-License-Identifier: MIT
"""Small random models of every family: cmoe's experts against transformers' own eager ones."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
if not hasattr(torch.library, "register_fake"):
    pytest.skip("torch is too old", allow_module_level=True)

import cmoe  # noqa: E402
from cmoe.integrations import transformers as integration  # noqa: E402

COMMON = dict(vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
              eos_token_id=None, tie_word_embeddings=False)  # fmt: skip
DEEPSEEK = dict(num_key_value_heads=4, n_routed_experts=16, num_experts_per_tok=4, n_group=4,
                topk_group=2, moe_intermediate_size=48, intermediate_size=80, n_shared_experts=1,
                first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=16,
                qk_nope_head_dim=16, v_head_dim=16)  # fmt: skip
FAMILIES = {
    "Mixtral": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "Qwen2Moe": dict(moe_intermediate_size=48, shared_expert_intermediate_size=64, num_experts=8,
                     num_experts_per_tok=2, intermediate_size=80),
    "Qwen3Moe": dict(moe_intermediate_size=40, num_experts=8, num_experts_per_tok=3, head_dim=16,
                     intermediate_size=80, norm_topk_prob=True),
    "Olmoe": dict(intermediate_size=48, num_experts=8, num_experts_per_tok=2),
    "DeepseekV2": DEEPSEEK | dict(topk_method="group_limited_greedy"),
    "DeepseekV3": DEEPSEEK,
    "Glm4Moe": dict(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, head_dim=16,
                    intermediate_size=80, n_group=1, topk_group=1, first_k_dense_replace=1),
    "GptOss": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2, head_dim=16,
                   layer_types=["full_attention", "full_attention"]),
    "Llama4": dict(intermediate_size=48, intermediate_size_mlp=80, num_local_experts=4, head_dim=16,
                   num_experts_per_tok=1, interleave_moe_layer_step=1,
                   layer_types=["full_attention", "full_attention"]),
}  # fmt: skip


def build(family, dtype=torch.float32, **more):
    config_class = getattr(transformers, family + ("TextConfig" if family == "Llama4" else "Config"))
    config = config_class(**(COMMON | FAMILIES[family] | more))
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = getattr(transformers, family + "ForCausalLM")(config).eval().to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.normal_(0, 0.5 if "router" in name or "gate." in name else 0.12)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pack", [False, True], ids=["in place", "packed"])
def test_family(family, pack, monkeypatch):
    model = build(family)
    integration.register(pack=pack)
    calls = []
    op = "layer" if pack and family != "Llama4" else "moe"
    original = cmoe.Layer.__call__
    monkeypatch.setattr(cmoe.Layer, "__call__",
                        lambda self, *a, **k: calls.append(repr(self)) or original(self, *a, **k))  # fmt: skip
    ids = torch.arange(3, 51).reshape(2, 24) % 96
    with torch.no_grad():
        if family != "Llama4":
            model.set_experts_implementation("eager")
        want = model(ids).logits
        text = model.generate(ids, max_new_tokens=6, do_sample=False)
        assert not calls
        before = torch.cuda.is_available() or sum(p.data_ptr() for p in model.parameters())
        model.set_experts_implementation("cmoe")
        got = model(ids).logits
        assert calls, f"torch.ops.cmoe.{op} was not reached"
        assert all(" reduced" in layer for layer in calls)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), text)
    assert torch.cuda.is_available() or before == sum(p.data_ptr() for p in model.parameters())
    assert want.std() > 0.01


def test_bfloat16():
    model = build("Qwen3Moe", torch.bfloat16)
    integration.register()
    ids = torch.arange(3, 27).reshape(1, 24)
    with torch.no_grad():
        model.set_experts_implementation("eager")
        want = model(ids).logits
        model.set_experts_implementation("cmoe")
        got = model(ids).logits
    assert (got.float() - want.float()).norm() < 0.02 * want.float().norm()


def test_compiled_experts_are_one_graph():
    model = build("Mixtral")
    integration.register()
    model.set_experts_implementation("cmoe")
    block = model.model.layers[0].mlp
    x = torch.randn(1, 5, 64)
    with torch.no_grad():
        want = block(x)
        got = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want)


def test_training_is_refused():
    model = build("Mixtral")
    integration.register()
    model.set_experts_implementation("cmoe")
    loss = model(torch.arange(4)[None]).logits.sum()
    with pytest.raises(RuntimeError, match="no gradient"):
        loss.backward()


def test_an_unknown_activation_is_an_error():
    class Strange(torch.nn.Module):
        down_proj = torch.zeros(2, 8, 4)

        def _apply_gate(self, gate_up):
            gate, up = gate_up.chunk(2, -1)
            return torch.sin(gate) * up

    with pytest.raises(cmoe.UnsupportedError, match="Strange"):
        integration._describe(Strange())
