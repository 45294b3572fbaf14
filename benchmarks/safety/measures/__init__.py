"""What is counted of the answers, and what a condition costs."""
