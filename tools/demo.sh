#!/bin/sh
# demo.sh <build folder>: what `make demo` shows, after the build: text from a trained model whose MoE
# layers cmoe runs, and what each quantisation scheme would cost that model.
set -eu
cd "$(dirname "$0")/.."
bin=${1:?usage: tools/demo.sh BUILD_FOLDER}

cat <<'END'
tiny-moe, a language model of 1.8 million parameters trained on the King James Bible, continues a
prompt byte by byte. Its 4 Mixture-of-Experts layers run on cmoe; each byte uses 4 of 16 experts.

END
"$bin/cmoe-lm-demo" --prompt 'And the children of Israel' --tokens 200 --temp 0.7 --seed 1
cat <<'END'

The columns above show how many bytes each of a layer's 16 experts worked on: the router spreads
them, but not evenly.

Now the experts' weights (and, in names with a8 or a4, their inputs) are quantised, and the same
model reads 8 KB of text it has never seen. Perplexity: among how many bytes, all equally likely, it
hesitates on average (lower is better). Logit error: the largest difference from the logits that the
transformers library computed for three prompts; the logits go up to 21.

END
"$bin/cmoe-lm-schemes"
