"""What an event costs and what a rate limit does, compared with the function most would write."""
