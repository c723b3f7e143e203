"""One module per command: `configure(parser)` adds the options, `run(args)` does the work and returns the exit code.

A command writes its answer with `llmcheck.console.emit` (stdout) and nothing else there; it raises UserError for the user's mistakes.
"""
