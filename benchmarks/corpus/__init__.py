"""Real failures of training runs, and what the signatures make of them."""
