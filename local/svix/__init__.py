"""The parts of the Svix simulator: store, listings, wire format, dispatch to endpoints, server."""
