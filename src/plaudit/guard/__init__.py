"""The reward guard: invariants that must hold at run time, and measures of a policy's replies."""
