# SPDX-License-Identifier: MIT
"""Other libraries' function names and conventions over cmoe: aiter, vllm, sglang."""
