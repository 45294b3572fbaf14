"""What the fused op costs, against what one would write instead."""
