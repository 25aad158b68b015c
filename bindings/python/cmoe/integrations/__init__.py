# SPDX-License-Identifier: MIT
"""cmoe inside other people's model code; import the module of the host you use."""
