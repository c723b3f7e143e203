"""llmcheck: check an LLM fine-tuning run before it is launched, then run the plan that was checked."""

__version__ = "0.1.0.dev0"
