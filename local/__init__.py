"""The local stack: a Svix simulator, emulators, and what `make run` starts."""
