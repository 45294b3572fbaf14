"""What a guard costs a model in ability: lm-eval's own tasks, under every condition, with intervals."""
