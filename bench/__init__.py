"""What an event costs, and what a rate limit does, beside the function most people would write."""
