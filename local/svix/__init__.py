"""Inside the Svix simulator: what is held, how it is listed, worded and sent on, and its server."""
